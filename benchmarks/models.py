"""What benchmarks run on: the default model, or random weights of a known shape.

Nothing is fetched. Both give bridges and plain Hugging Face models of the same weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM, ByT5Tokenizer, LlamaConfig

import steerlens as sl
from steerlens.models.loading import model_info
from steerlens.models.placement import resolve_device
from steerlens.models.sources import DEFAULT_MODEL
from steerlens.models.weights import weights_entry

__all__ = ["SHAPES", "InstalledModel", "RandomModel", "Shape"]


class InstalledModel:
    """The default model on a device.

    Args:
        device: By default as `steerlens.load_model` chooses it.
    """

    weights = "its own"

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    @cached_property
    def folder(self) -> Path:
        """Its weights in Hugging Face's form."""
        known = model_info(self.bridge(torch.bfloat16)).weights_hash.removeprefix("sha256:")
        return weights_entry(known)

    def bridge(self, dtype: torch.dtype) -> Any:
        """The model, hooked."""
        return sl.load_model(DEFAULT_MODEL, dtype=dtype, device=self.device)

    def plain(self, dtype: torch.dtype, attention: str) -> Any:
        """The model as Hugging Face has it, with this attention."""
        hf = AutoModelForCausalLM.from_pretrained(
            self.folder, attn_implementation=attention, dtype=dtype
        )
        return hf.to(resolve_device(self.device)).eval()


@dataclass(frozen=True)
class Shape:
    """A Llama of some size.

    Attributes:
        name: What results call it.
        config: Arguments of its `LlamaConfig`.
        n_checked: Blocks of the copy that is compared in float32.
    """

    name: str
    config: Mapping[str, Any]
    n_checked: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "smollm2-135m",
            {
                "vocab_size": 49152,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "max_position_embeddings": 8192,
                "rope_theta": 100000.0,
                "tie_word_embeddings": True,
            },
            30,
        ),
        # Llama 3.1 8B, without its long-range scaling of positions.
        Shape(
            "llama-8b",
            {
                "vocab_size": 128256,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 8192,
                "rope_theta": 500000.0,
                "tie_word_embeddings": False,
            },
            2,
        ),
        Shape(
            "tiny",
            {
                "vocab_size": 512,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 4096,
                "initializer_range": 0.1,
                "tie_word_embeddings": False,
            },
            3,
        ),
    )
}


class RandomModel:
    """Random weights of a shape, drawn on a device.

    Args:
        shape: The shape.
        device: Where weights are drawn and stay.
        n_layers: Blocks, if not all.
    """

    weights = "random"

    def __init__(self, shape: Shape, device: torch.device, n_layers: int | None = None) -> None:
        self.device = device
        settings = dict(shape.config)
        settings["num_hidden_layers"] = n_layers or settings["num_hidden_layers"]
        self.config = LlamaConfig(
            **settings, bos_token_id=None, eos_token_id=1, pad_token_id=0, use_cache=True
        )
        self.name = shape.name

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        """In float32, on the CPU: the device may not hold several copies."""
        state = self.drawn(torch.float32).state_dict()
        return {name: tensor.cpu() for name, tensor in state.items()}

    def drawn(self, dtype: torch.dtype, attention: str = "sdpa") -> Any:
        """A plain model with weights drawn where they stay, in their dtype."""
        torch.manual_seed(0)
        with torch.device(self.device):
            hf = AutoModelForCausalLM.from_config(
                self.config, dtype=dtype, attn_implementation=attention
            )
        return hf.eval()

    def plain(self, dtype: torch.dtype, attention: str) -> Any:
        """A plain model with this attention; those of one object have the same weights."""
        hf = self.drawn(dtype, attention)
        hf.load_state_dict(self._weights)
        return hf

    def bridge(self, dtype: torch.dtype) -> Any:
        """The same, hooked."""
        return self.hooked(self.plain(dtype, "eager"))

    def hooked(self, hf: Any) -> Any:
        """A bridge around a plain model, whose parts it takes."""
        bridge = build_bridge_from_module(
            hf,
            "LlamaForCausalLM",
            hf_config=hf.config,
            tokenizer=ByT5Tokenizer(),  # one token a byte; every vocabulary here is larger
            dtype=hf.dtype,
            device=str(self.device),
            model_name=self.name,
        )
        return bridge.eval()
