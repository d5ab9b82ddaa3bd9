"""What a family of toy models is: a Hugging Face config, and what may happen to it here.

What changes with length does so early: a window or chunk at 8 tokens, longrope's factors and
Llama 4's temperature at 24. Weights are random and large (0.3) and no gain is one and no bias zero,
so that every part of every block matters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers
from tiny_models import vocabulary
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

WINDOW = 8
"""Tokens of a sliding window or an attention chunk."""
SWITCH = 24
"""Length from which on longrope takes its other factors, and Llama 4 other temperatures."""
CONTEXT = 128
IDS = {"vocab_size": len(vocabulary()), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
# Names of the usual config; four heads of width 8 on two key-value heads.
USUAL: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
CHUNKED = ["chunked_attention", "chunked_attention", "full_attention", "chunked_attention"]
ALL_EXPERTS = {"num_experts_per_tok": 4}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 5.0, 8.0],
    "factor": CONTEXT / SWITCH,
    "original_max_position_embeddings": SWITCH,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Family:
    """One architecture at toy size.

    Attributes:
        config: Name of the config class in transformers.
        options: Its arguments.
        may_refuse: What may be refused with a sentence instead: ``"crossing"``, responses that
            cross the length at which the whole text's arithmetic changes (longrope); ``"any"``, the
            model (a recurrent state that padding enters, no keys and values to keep); ``"half"``,
            the model in half precision, where TransformerLens's own forward pass fails.
        recomputes: The plain loop reads everything again at each step, as Hugging Face's `generate`
            does at longrope's switch, and as a model without keys and values needs.
        in_half: Options that differ in half precision: every token goes to all experts, since
            rounding can send one elsewhere, which is no rounding any more.
        sees: It is a language model inside a model of text and images.
        is_plain: It may take the bridge's own path, for a reason of the architecture.
    """

    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    may_refuse: Literal["", "crossing", "any", "half"] = ""
    recomputes: bool = False
    in_half: Mapping[str, Any] = field(default_factory=dict)
    is_plain: bool = False
    sees: bool = False

    def build(self, half: bool = False) -> nn.Module:
        """The model with its random weights, in float32; always the same."""
        torch.manual_seed(0)
        options = {**self.options, **self.in_half} if half else self.options
        config = getattr(transformers, self.config)(**options)
        kind = AutoModelForImageTextToText if self.sees else AutoModelForCausalLM
        model = kind.from_config(config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model


def usual(
    config: str,
    *,
    may_refuse: Literal["", "crossing", "any", "half"] = "",
    recomputes: bool = False,
    in_half: Mapping[str, Any] | None = None,
    is_plain: bool = False,
    **options: Any,
) -> Family:
    """A family whose config has the usual names; an option of ``None`` leaves the name out."""
    merged = {**USUAL, **options}
    return Family(
        config,
        {name: value for name, value in merged.items() if value is not None},
        may_refuse=may_refuse,
        recomputes=recomputes,
        in_half=in_half or {},
        is_plain=is_plain,
    )


def with_images(
    config: str, text: Family, vision: Mapping[str, Any] | None = None, **options: Any
) -> Family:
    """A family's model as the language model of one that also sees."""
    ids = {name: value for name, value in IDS.items() if name != "vocab_size"}
    text_config = dict(text.options)
    text_config["model_type"] = getattr(transformers, text.config).model_type
    return Family(
        config,
        {**ids, "text_config": text_config, "vision_config": {**VISION, **(vision or {})}}
        | options,
        may_refuse=text.may_refuse,
        recomputes=text.recomputes,
        is_plain=text.is_plain,
        sees=True,
    )
