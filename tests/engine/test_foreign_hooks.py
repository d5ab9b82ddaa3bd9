"""Changes that others made with PyTorch act in `generate` and `cache_residuals` as in plain loops.

A hook on any module, a parametrised or foreign weight, a replaced forward or submodule: whatever
`model(ids)` of the plain Hugging Face model does with it, the package does as well, and says why
it left its fast path. The right value is a plain Hugging Face model with the same change, run one
prompt at a time.
"""

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import IDS, write_family
from beside_hugging_face import loaded, relative
from hf_reference import greedy, load_plain, residuals
from steering_vectors import SteeringVector
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from steerlens.activations.cache import cache_residuals
from steerlens.engine.generation import generate
from steerlens.engine.outside import outside_change
from steerlens.errors import SteerlensError
from steerlens.models.loading import load_model, tokenize_prompts
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


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {name: Pair(name, tmp_path_factory.mktemp("hooked") / name) for name in MODULES}


EVERY = [(family, what) for family, modules in MODULES.items() for what in modules]
NAMED = [(family, what) for family, what in EVERY if what in COMPONENTS]


# The rotary embedding looks at its input's dtype and device only: a pre-hook there does nothing.
HOOKED = [(*one, kind) for one in EVERY for kind in KINDS]
HOOKED.remove(("llama", "rotary embedding", "pre-hook"))


@pytest.mark.parametrize(("family", "what", "kind"), HOOKED)
def test_a_hook_on_the_wrapped_model_acts_as_on_the_plain_one(pairs, family, what, kind):
    pair, path = pairs[family], MODULES[family][what]
    theirs, ours = pair.plain.get_submodule(path), pair.model.original_model.get_submodule(path)
    changed = copy.deepcopy(pair.plain)
    with registered(KINDS[kind], changed.get_submodule(path), ours):
        assert theirs is not ours
        check(pair, changed, pair.model, may_refuse=(family, what) in NEVER_CALLED)


@pytest.mark.parametrize(("family", "what"), NAMED)
def test_a_hook_on_the_bridges_own_component_acts_as_on_the_plain_module(pairs, family, what):
    pair = pairs[family]
    changed = copy.deepcopy(pair.plain)
    theirs = changed.get_submodule(MODULES[family][what])
    with registered(KINDS["hook"], theirs, pair.model.get_submodule(COMPONENTS[what])):
        check(pair, changed, pair.model)


@pytest.mark.parametrize(("family", "what"), EVERY)
def test_a_hook_on_a_module_inside_the_bridge_acts_or_is_refused(pairs, family, what):
    """Modules that Hugging Face made, by references kept from before the bridge was made."""
    pair, path = pairs[family], MODULES[family][what]
    changed = copy.deepcopy(pair.plain)
    with registered(KINDS["hook"], changed.get_submodule(path), pair.inside[path]):
        check(pair, changed, pair.around, may_refuse=(family, what) in NOT_CALLED_INSIDE)


@pytest.mark.parametrize("family", MODULES)
@pytest.mark.parametrize("what", ["block", "attention", "MLP"])
def test_a_hook_from_before_the_bridge_was_made_acts_or_is_refused(pairs, family, what):
    pair = pairs[family]
    changed = copy.deepcopy(pair.plain)
    KINDS["hook"](changed.get_submodule(MODULES[family][what]))
    model = pair.boot(copy.deepcopy(changed))
    check(pair, changed, model, may_refuse=(family, what) in NOT_CALLED_INSIDE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_on_the_bridge_itself_acts_on_what_it_generates(pairs, kind):
    pair = pairs["llama"]
    changed = copy.deepcopy(pair.plain)
    with registered(KINDS[kind], changed, pair.model):
        tokens, _ = expected(changed, prompts_of(pair.model))
        ours = generate(pair.model, TEXTS, max_new_tokens=N_NEW, chat_format="plain")
        assert [list(row) for row in ours.tokens] == tokens
        assert ours.settings["attention"] == "eager"


def first_token_only(_module: nn.Module, _args: Any, output: Any) -> Any:
    """A hook whose effect depends on the place: only the first token of what is read changes."""
    hidden = (output[0] if isinstance(output, tuple) else output).clone()
    if hidden.shape[1] > 1:
        hidden[:, 0] = hidden[:, 0] + 5 * SHIFT[: hidden.shape[-1]]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def position_counted(_module: nn.Module, _args: Any, output: Any) -> Any:
    """A hook whose effect grows with the place in what is read."""
    hidden = output[0] if isinstance(output, tuple) else output
    places = torch.arange(hidden.shape[1])[:, None]
    hidden = hidden + places * SHIFT[: hidden.shape[-1]] / 10
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@pytest.mark.parametrize("hook", [first_token_only, position_counted])
@pytest.mark.parametrize("what", ["block", "MLP", "embedding"])
@pytest.mark.parametrize("family", MODULES)
def test_a_hook_that_depends_on_the_position_sees_each_prompt_without_padding(
    pairs, family, what, hook
):
    pair, path = pairs[family], MODULES[family][what]
    changed = copy.deepcopy(pair.plain)
    ours = pair.model.original_model.get_submodule(path)
    with registered(lambda m: m.register_forward_hook(hook), changed.get_submodule(path), ours):
        check(pair, changed, pair.model)


@pytest.mark.parametrize("family", MODULES)
def test_a_transformer_lens_hook_that_depends_on_the_position_sees_no_padding_either(pairs, family):
    pair = pairs[family]
    changed = copy.deepcopy(pair.plain)
    changed.get_submodule(MODULES[family]["block"]).register_forward_hook(first_token_only)
    hooks = [("blocks.1.hook_out", lambda resid, hook: first_token_only(None, None, resid))]
    with pair.model.hooks(fwd_hooks=hooks):
        check(pair, changed, pair.model)


@pytest.mark.parametrize("family", MODULES)
def test_a_hook_sees_the_tokens_that_it_sees_in_the_plain_loop(pairs, family):
    pair, path = pairs[family], MODULES[family]["block"]
    changed = copy.deepcopy(pair.plain)
    seen: dict[str, list[tuple[int, int]]] = {"ours": [], "theirs": []}

    def recording(whose: str) -> Register:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            seen[whose].append(tuple(hidden.shape[:2]))

        return lambda module: module.register_forward_hook(hook)

    ours = pair.model.original_model.get_submodule(path)
    with (
        registered(recording("ours"), ours),
        registered(recording("theirs"), changed.get_submodule(path)),
    ):
        greedy(changed, prompts_of(pair.model)[1], (), N_NEW, END)
        generate(pair.model, [TEXTS[1]], max_new_tokens=N_NEW, chat_format="plain")
    assert seen["ours"] == seen["theirs"]


@pytest.mark.parametrize("family", MODULES)
@pytest.mark.parametrize("first", [0, 3])
def test_the_steering_vectors_package_steers_what_is_generated(pairs, family, first):
    pair = pairs[family]
    width = pair.model.cfg.d_model
    vector = SteeringVector({1: SHIFT[:width], 2: -SHIFT[1 : width + 1]})
    prefix = "model.layers" if family == "llama" else "transformer.h"
    layers = {"decoder_block": prefix + ".{num}"}
    changed = copy.deepcopy(pair.plain)
    with (
        vector.apply(changed, layer_config=layers, min_token_index=first),
        vector.apply(pair.model.original_model, layer_config=layers, min_token_index=first),
    ):
        check(pair, changed, pair.model)
    assert outcome(pair.model)[0] == pair.before(prompts_of(pair.model))[0]


class Grown(nn.Module):
    """A parametrisation: the weight times 1.5."""

    def forward(self, weight: Tensor) -> Tensor:
        return 1.5 * weight


class GrownTensor(Tensor):
    """A weight that is 1.5 times as large wherever a product uses it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain_args = [
            one.as_subclass(Tensor) if isinstance(one, GrownTensor) else one for one in args
        ]
        if func in (nn.functional.linear, torch.addmm):
            plain_args[-1 if func is torch.addmm else 1] = (
                1.5 * plain_args[-1 if func is torch.addmm else 1]
            )
            return func(*plain_args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


class LowRank(nn.Module):
    """What adapters put in a projection's place: itself, and a product of two thin matrices."""

    def __init__(self, base: nn.Module, n_in: int, n_out: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.base = base
        self.down = nn.Parameter(torch.randn(2, n_in, generator=draw))
        self.up = nn.Parameter(torch.randn(n_out, 2, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + x @ self.down.T @ self.up.T


def grown_by_parametrisation(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    parametrize.register_parametrization(modules[path], "weight", Grown())


def grown_by_subclass(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    weight = modules[path].weight
    modules[path].weight = nn.Parameter(weight.data.as_subclass(GrownTensor))


def replaced_forward(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    before = modules[path].forward
    modules[path].forward = lambda x: 1.5 * before(x)  # type: ignore[method-assign]


def replaced_block_forward(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    block = modules[path.rsplit(".", 2)[0]]
    before = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return adds(block, args, before(*args, **kwargs))

    block.forward = forward  # type: ignore[method-assign]


def low_rank_beside(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    parent, _, name = path.rpartition(".")
    projection = modules[path]
    n_out, n_in = projection.weight.shape
    if name == "c_proj":
        n_in, n_out = n_out, n_in
    setattr(modules[parent], name, LowRank(modules[parent]._modules[name], n_in, n_out))


CHANGES = [
    grown_by_parametrisation,
    grown_by_subclass,
    replaced_forward,
    replaced_block_forward,
    low_rank_beside,
]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
@pytest.mark.parametrize("family", MODULES)
def test_a_module_changed_after_the_bridge_was_made_acts_as_in_the_plain_model(
    pairs, family, change
):
    pair, path = pairs[family], MODULES[family]["MLP output"]
    changed, inner = copy.deepcopy(pair.plain), copy.deepcopy(pair.plain)
    modules = dict(inner.named_modules())
    model = pair.boot(inner)
    outcome(model)  # the verdict about this model is made before the change
    change(changed, dict(changed.named_modules()), path)
    change(inner, modules, path)
    check(pair, changed, model, may_be_fast=change is low_rank_beside)


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
@pytest.mark.parametrize("family", MODULES)
def test_a_module_changed_before_the_bridge_was_made_acts_as_in_the_plain_model(
    pairs, family, change
):
    pair, path = pairs[family], MODULES[family]["MLP output"]
    changed, inner = copy.deepcopy(pair.plain), copy.deepcopy(pair.plain)
    change(changed, dict(changed.named_modules()), path)
    change(inner, dict(inner.named_modules()), path)
    check(pair, changed, pair.boot(inner), may_be_fast=change is low_rank_beside)


def test_a_forward_replaced_by_a_wrapping_function_is_seen(tmp_path):
    model = load_model(write_family("llama", tmp_path / "m"), device="cpu")
    mlp = model.original_model.model.layers[0].mlp.original_component
    inner = mlp.forward

    @functools.wraps(inner)
    def doubled(*args, **kwargs):
        return 2 * inner(*args, **kwargs)

    mlp.forward = doubled
    made = generate(model, "Where is Rome?", max_new_tokens=2)
    assert made.settings["attention"] == "eager"
    assert "replaced forward" in made.settings["attention_reason"]


def test_transformer_lens_caching_hooks_around_generate_are_filled(tmp_path):
    model = load_model(write_family("llama", tmp_path / "m"), device="cpu")
    cache = model.add_caching_hooks()
    generate(model, "Where is Rome?", max_new_tokens=2)
    assert len(cache) > 0
    model.reset_hooks()


def test_looking_for_changes_waits_for_a_thread_that_decodes(tmp_path):
    model = load_model(write_family("llama", tmp_path / "m"), device="cpu")
    expected = generate(model, "Where is Rome?", max_new_tokens=12).tokens
    stop, found = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            found.append(outside_change(model))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(10):
            assert generate(model, "Where is Rome?", max_new_tokens=12).tokens == expected
    finally:
        stop.set()
        thread.join()
    assert set(found) == {None}
