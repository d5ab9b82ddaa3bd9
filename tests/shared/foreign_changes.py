"""Changes that others make, to a plain Hugging Face model and to a bridge alike.

The right value is a plain Hugging Face model with the same change, run one prompt at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from architectures import write_family
from beside_hugging_face import loaded, relative
from family import IDS
from hf_reference import greedy, load_plain, residuals
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from steerlens.activations.cache import cache_residuals
from steerlens.engine.generation import generate
from steerlens.errors import SteerlensError
from steerlens.models.loading import tokenize_prompts
from steerlens.tasks.pairs import ContrastSet

TEXTS = ["a", "Why is the sky blue?"]
N_NEW = 3
END = frozenset({IDS["eos_token_id"]})
UNTOUCHED = "no hook needs"
# Kinds of modules by their names in the Hugging Face model.
MODULES = {
    "llama": {
        "whole model": "",
        "body": "model",
        "embedding": "model.embed_tokens",
        "rotary embedding": "model.rotary_emb",
        "block": "model.layers.1",
        "attention": "model.layers.1.self_attn",
        "query projection": "model.layers.1.self_attn.q_proj",
        "output projection": "model.layers.1.self_attn.o_proj",
        "norm before attention": "model.layers.1.input_layernorm",
        "norm before MLP": "model.layers.1.post_attention_layernorm",
        "MLP": "model.layers.1.mlp",
        "MLP gate": "model.layers.1.mlp.gate_proj",
        "MLP activation": "model.layers.1.mlp.act_fn",
        "MLP output": "model.layers.1.mlp.down_proj",
        "final norm": "model.norm",
        "unembedding": "lm_head",
    },
    "gpt-2": {
        "whole model": "",
        "body": "transformer",
        "embedding": "transformer.wte",
        "position embedding": "transformer.wpe",
        "dropout": "transformer.drop",
        "block": "transformer.h.1",
        "attention": "transformer.h.1.attn",
        "joint projection": "transformer.h.1.attn.c_attn",
        "output projection": "transformer.h.1.attn.c_proj",
        "norm before attention": "transformer.h.1.ln_1",
        "norm before MLP": "transformer.h.1.ln_2",
        "MLP": "transformer.h.1.mlp",
        "MLP input": "transformer.h.1.mlp.c_fc",
        "MLP activation": "transformer.h.1.mlp.act",
        "MLP output": "transformer.h.1.mlp.c_proj",
        "final norm": "transformer.ln_f",
        "unembedding": "lm_head",
    },
}
# The same kinds by TransformerLens's names.
COMPONENTS = {
    "embedding": "embed",
    "position embedding": "pos_embed",
    "block": "blocks.1",
    "attention": "blocks.1.attn",
    "norm before attention": "blocks.1.ln1",
    "norm before MLP": "blocks.1.ln2",
    "MLP": "blocks.1.mlp",
    "final norm": "ln_final",
    "unembedding": "unembed",
}
# TransformerLens computes these itself: after booting, `model(ids)` never calls the module named
# (joint projection), or not the one that Hugging Face made. A refusal is right there.
NEVER_CALLED = {("gpt-2", "joint projection")}
NOT_CALLED_INSIDE = NEVER_CALLED | {
    ("llama", "attention"),
    ("gpt-2", "attention"),
    ("gpt-2", "norm before attention"),
    ("gpt-2", "norm before MLP"),
    ("gpt-2", "final norm"),
}
SHIFT = 2.0 * torch.randn(300, generator=torch.Generator().manual_seed(5))

Register = Callable[[nn.Module], Any]


def adds(_module: nn.Module, _args: Any, output: Any) -> Any:
    """A forward hook: a fixed vector is added to what comes out."""
    for name in ("logits", "last_hidden_state"):
        if hasattr(output, name):
            output[name] = output[name] + SHIFT[: output[name].shape[-1]]
            return output
    if isinstance(output, tuple):
        return (output[0] + SHIFT[: output[0].shape[-1]], *output[1:])
    return output + SHIFT[: output.shape[-1]]


def scales(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward pre-hook: the first tensor that goes in is scaled; token ids become others."""

    def other(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return value * (1 + SHIFT[: value.shape[-1]])
        return (value - 1).clamp_min(0)

    if args:
        return (other(args[0]), *args[1:]), kwargs
    name = next(n for n in ("input_ids", "hidden_states", "x") if kwargs.get(n) is not None)
    return args, {**kwargs, name: other(kwargs[name])}


KINDS: dict[str, Register] = {
    "hook": lambda module: module.register_forward_hook(adds),
    "pre-hook": lambda module: module.register_forward_pre_hook(scales, with_kwargs=True),
}


class Pair:
    """A family booted once, the modules it was made of, and a plain model beside it."""

    def __init__(self, name: str, folder: Path) -> None:
        write_family(name, folder)
        self.name, self.folder = name, folder
        self.plain = load_plain(folder, torch.float32)
        self.model = loaded(folder, "float32")
        hf_model = load_plain(folder, torch.float32)
        self.inside = dict(hf_model.named_modules())
        self.around = self.boot(hf_model)
        self.untouched: dict[str, tuple[list[list[int]], Tensor]] = {}

    def boot(self, hf_model: nn.Module) -> TransformerBridge:
        """A bridge around a given Hugging Face model, as TransformerLens's users make it."""
        return TransformerBridge.boot_transformers(
            str(self.folder),
            hf_model=hf_model,
            tokenizer=AutoTokenizer.from_pretrained(self.folder),
            device="cpu",
            dtype=torch.float32,
        )

    def before(self, prompts: list[list[int]]) -> tuple[list[list[int]], Tensor]:
        """The plain model's tokens and residuals without any change."""
        key = repr(prompts)
        if key not in self.untouched:
            self.untouched[key] = expected(self.plain, prompts)
        return self.untouched[key]


def prompts_of(model: TransformerBridge) -> list[list[int]]:
    """The prompts as a bridge reads them; one booted by hand puts a BOS before them."""
    return tokenize_prompts(model, TEXTS, chat_format="plain")


def expected(changed: nn.Module, prompts: list[list[int]]) -> tuple[list[list[int]], Tensor]:
    """Greedy tokens and residuals of a plain model, one prompt at a time."""
    tokens = [greedy(changed, prompt, (), N_NEW, END) for prompt in prompts]
    return tokens, torch.stack([residuals(changed, prompt) for prompt in prompts])


def outcome(model: TransformerBridge) -> tuple[list[list[int]], Tensor, dict[str, Any]]:
    """What the package makes of a ragged batch: tokens, residuals, settings."""
    made = generate(model, TEXTS, max_new_tokens=N_NEW, batch_size=2, chat_format="plain")
    pairs = ContrastSet.from_prompts(TEXTS, [f"{text} Well?" for text in TEXTS])
    cache = cache_residuals(model, pairs, chat_format="plain", batch_size=2)
    return [list(row) for row in made.tokens], cache.instructed, dict(made.settings)


def check(
    pair: Pair,
    changed: nn.Module,
    model: TransformerBridge,
    may_refuse: bool = False,
    may_be_fast: bool = False,
) -> None:
    """The package's outcome is the plain one's, and the settings say why the slow path was taken.

    The control: the change matters, in the tokens or in the residuals.

    Args:
        pair: The family.
        changed: The plain model with the change.
        model: The bridge with the change.
        may_refuse: A sentence is right as well.
        may_be_fast: The fast path is right as well: the change is an ordinary submodule.
    """
    prompts = prompts_of(model)
    tokens, resid = expected(changed, prompts)
    tokens_before, resid_before = pair.before(prompts)
    assert tokens != tokens_before or relative(resid_before, resid).max() > 0.01
    try:
        ours, ours_resid, settings = outcome(model)
    except SteerlensError:
        if not may_refuse:
            raise
        return
    assert ours == tokens
    assert relative(ours_resid, resid).max() < 1e-4
    if not may_be_fast:
        assert settings["attention"] == "eager"
        assert UNTOUCHED not in settings["attention_reason"]


@contextmanager
def registered(register: Register, *modules: nn.Module) -> Iterator[None]:
    """The change on each of some modules, taken away afterwards."""
    handles = [register(module) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
