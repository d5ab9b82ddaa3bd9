"""The inside of transformers' decoder blocks: which modules do what, for kinds that are known."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from steerlens.models.adapter import private

__all__ = ["BlockParts", "attention_named", "block_parts"]

# Blocks that compute x + W_o attention(norm x), then x + W_d (act(W_g norm x) * W_u norm x), with
# rotary positions on whole heads. Those of Gemma 3 have a norm after either as well, and gains
# that are counted from 1.
_PLAIN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
_SANDWICHED = ("Gemma3DecoderLayer",)


@dataclass(frozen=True, eq=False)
class BlockParts:
    """The modules of one block, by what they do; a norm that it does not have is ``None``.

    `gain_from` is what the gains of its norms are counted from: 0, or 1 for Gemma's.
    """

    attention: Any
    norm_in: Any
    norm_out: Any
    norm_mlp_in: Any
    norm_mlp_out: Any
    norm_query: Any
    norm_key: Any
    mlp: Any
    gain_from: int

    @property
    def readers(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """What makes queries, keys and values."""
        return self.attention.q_proj, self.attention.k_proj, self.attention.v_proj

    @property
    def products(self) -> list[tuple[nn.Linear, ...]]:
        """Its linear layers, together where they read the same input."""
        mlp = self.mlp
        return [
            self.readers,
            (self.attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj),
            (mlp.down_proj,),
        ]

    @property
    def layer(self) -> int:
        """The block's number."""
        return int(self.attention.layer_idx)


def block_parts(block: nn.Module) -> BlockParts | None:
    """The parts of a block of a known kind in its plain state; ``None`` for any other block."""
    kind = type(block)
    known = kind.__module__.startswith("transformers.models.") and (
        kind.__name__ in _PLAIN or kind.__name__ in _SANDWICHED
    )
    if (
        not known
        or any(map(_is_replaced, block.modules()))
        or not all(_is_dense(block, name) for name in _LINEARS)
    ):
        return None
    own: Any = block
    sandwiched = kind.__name__ in _SANDWICHED
    return BlockParts(
        attention=own.self_attn,
        norm_in=own.input_layernorm,
        norm_out=own.post_attention_layernorm if sandwiched else None,
        norm_mlp_in=own.pre_feedforward_layernorm if sandwiched else own.post_attention_layernorm,
        norm_mlp_out=own.post_feedforward_layernorm if sandwiched else None,
        norm_query=getattr(own.self_attn, "q_norm", None),
        norm_key=getattr(own.self_attn, "k_norm", None),
        mlp=own.mlp,
        gain_from=int(sandwiched),
    )


_LINEARS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def _is_replaced(module: nn.Module) -> bool:
    """Whether someone gave the module, or its class, another forward."""
    home = type(module).forward.__module__
    return "forward" in vars(module) or not home.startswith(("torch.", "transformers."))


def _is_dense(block: nn.Module, name: str) -> bool:
    try:
        return type(block.get_submodule(name)) is nn.Linear
    except AttributeError:
        return False


def norm_epsilon(norm: Any) -> float:
    """What a root-mean-square norm adds to the mean square."""
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)


def attention_named(module: Any) -> Any:
    """The attention function that a module's configuration names now."""
    name = private("transformers", module.config, "_attn_implementation")
    return AttentionInterface().get_interface(  # type: ignore[no-untyped-call]
        name, sdpa_attention_forward
    )
