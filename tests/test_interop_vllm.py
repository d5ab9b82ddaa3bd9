"""Claims about declarative interventions: TransformerLens takes them, and they are ``add``.

vLLM itself is not needed: TransformerLens's own checks and the function with which its workers
apply an intervention are run on this model's residual stream.
"""

import json
from dataclasses import replace

import pytest
import torch
from interop_examples import example_vector
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources.vllm.intervention_specs import validate_spec
from transformer_lens.model_bridge.sources.vllm.worker_extension import (
    _apply_intervention,
    _apply_op,
)

from steerlens.errors import SteeringError
from steerlens.vectors.formats.vllm import vllm_interventions

HOOK = "blocks.1.hook_out"


def residual(model: TransformerBridge, hook: str = HOOK) -> torch.Tensor:
    tokens = torch.tensor([[1, 40, 41, 42]])
    _, cache = model.run_with_cache(tokens, names_filter=[hook])
    return cache[hook].detach()


def test_transformer_lens_applies_the_specification_as_add_does(
    tiny_model: TransformerBridge,
) -> None:
    vector = example_vector(layers=(0, 1), d_model=tiny_model.cfg.d_model)
    steering = vector.at(1, operation="add", strength=-1.5)
    before = residual(tiny_model)

    specifications = vllm_interventions(steering)

    assert set(specifications) == {HOOK}
    spec = validate_spec(HOOK, specifications[HOOK], width=tiny_model.cfg.d_model)
    with steering.applied(tiny_model):
        after = residual(tiny_model)
    torch.testing.assert_close(_apply_op(before, spec), after)
    # The compiled path writes the specification into two buffers instead.
    scale, bias = torch.ones(tiny_model.cfg.d_model), torch.zeros(tiny_model.cfg.d_model)
    _apply_intervention(scale, bias, spec)
    torch.testing.assert_close(before * scale + bias, after)


def test_several_adds_become_one_specification_a_layer(tiny_model: TransformerBridge) -> None:
    width = tiny_model.cfg.d_model
    first, second = example_vector(d_model=width), example_vector(d_model=width, seed=1)
    steering = (
        first.at(1, operation="add", strength=2.0)
        + second.at(1, operation="add")
        + second.at(0, operation="add")
    )
    specifications = vllm_interventions(steering)
    assert list(specifications) == ["blocks.0.hook_out", HOOK]
    expected = 2 * first.gaps[1] * first.directions[1] + second.gaps[1] * second.directions[1]
    torch.testing.assert_close(torch.tensor(specifications[HOOK]["value"]), expected)


def test_a_specification_is_plain_json_and_exact() -> None:
    vector = example_vector(d_model=16)
    specifications = vllm_interventions(vector.at(2, operation="add"))
    assert json.loads(json.dumps(specifications)) == specifications
    value = torch.tensor(specifications["blocks.2.hook_out"]["value"], dtype=torch.float32)
    assert torch.equal(value, (vector.gaps[2].double() * vector.directions[2].double()).float())


@pytest.mark.parametrize("operation", ["set_projection", "ablate"])
def test_operations_that_need_a_projection_are_refused(operation: str) -> None:
    with pytest.raises(SteeringError, match=f"cannot express {operation}.*use operation 'add'"):
        vllm_interventions(example_vector().at(1, operation=operation))


@pytest.mark.parametrize("scope", ["prompt", "response"])
def test_scopes_are_refused(scope: str) -> None:
    steering = example_vector().at(1, operation="add", scope=scope)
    with pytest.raises(SteeringError, match=f"cannot express scope '{scope}'.*use scope 'all'"):
        vllm_interventions(steering)


def test_vectors_of_different_models_and_overflows_are_refused() -> None:
    steering = example_vector(d_model=4).at(1, operation="add") + example_vector(d_model=5).at(
        1, operation="add"
    )
    with pytest.raises(SteeringError, match="for different models"):
        vllm_interventions(steering)
    [one] = example_vector(d_model=4).at(1, operation="add").interventions
    with pytest.raises(SteeringError, match="does not fit float32"):
        vllm_interventions(type(steering)((replace(one, strength=3e38, gap=10.0),)))
