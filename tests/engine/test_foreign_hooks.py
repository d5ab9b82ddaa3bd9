"""Changes that others made with PyTorch act in `generate` and `cache_residuals` as in plain loops.

A hook on any module: whatever `model(ids)` of the plain Hugging Face model does with it, the
package does as well, and says why it left its fast path. The right value is a plain Hugging Face
model with the same hook, run one prompt at a time. `test_foreign_modules` has other changes.
"""

import copy
from typing import Any

import pytest
import torch
from foreign_changes import (
    COMPONENTS,
    END,
    KINDS,
    MODULES,
    N_NEW,
    NEVER_CALLED,
    NOT_CALLED_INSIDE,
    SHIFT,
    TEXTS,
    Pair,
    Register,
    check,
    expected,
    outcome,
    prompts_of,
    registered,
)
from hf_reference import greedy
from steering_vectors import SteeringVector
from torch import nn

from steerlens.engine.generation import generate


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
