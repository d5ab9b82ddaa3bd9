"""Arguments are checked where they arrive, and what is stored is what was checked."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_activations import planted

import steerlens as sl
from steerlens.activations.shards import write_shards
from steerlens.errors import ActivationError, SteeringError, SteerlensError
from steerlens.errors.arguments import arguments, finite_number, texts, whole_number
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering
from steerlens.vectors import from_directions

LARGEST = float(np.finfo(np.float32).max)


# --- whole numbers ---


@given(value=st.integers(-(2**40), 2**40))
def test_a_whole_number_is_one_in_every_dress(value):
    dresses = [value, float(value), np.int64(value), np.float64(value), torch.tensor(value)]
    assert [whole_number("n", one) for one in dresses] == [value] * len(dresses)
    assert all(type(whole_number("n", one)) is int for one in dresses)


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), 2.5, np.nan, np.inf, None, "3", [3], 1j, torch.ones(2)],
)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(SteerlensError, match="n must be a whole number; got "):
        whole_number("n", value)


@pytest.mark.parametrize("value", [True, np.False_, np.nan, -np.inf, None, "1.0", [1.0], 1j])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(SteerlensError, match="x must be a finite number; got "):
        finite_number("x", value)
    assert finite_number("x", np.float32(0.5)) == 0.5
    with pytest.raises(SteerlensError, match="of at least 1; got 0"):
        finite_number("x", 0, least=1.0)


@arguments
def _called(n: int, x: float | None, word: str, layers: Sequence[int] | None = None):
    return n, x, word, layers


def test_a_checked_function_gets_what_its_annotations_say():
    assert _called(np.int64(3), None, np.str_("a"), range(2)) == (3, None, "a", (0, 1))
    assert _called(3.0, math.inf, "a", layers=None) == (3, math.inf, "a", None)
    for given_ in [(True, 1.0, "a"), (1, True, "a"), (1, "1", "a"), (1, 1.0, 3), (1, 1.0, "a", 3)]:
        with pytest.raises(SteerlensError):
            _called(*given_)


# --- texts ---


@given(st.lists(st.text(), max_size=5))
def test_texts_come_from_anything_that_gives_them_once(values):
    class Kind(str):
        __slots__ = ()

    given_ = [
        values,
        tuple(values),
        iter(values),
        (one for one in values),
        pd.Series(values, dtype=object),
        np.array(values, dtype=object),
        [Kind(one) for one in values],
        dict.fromkeys(values).keys() if len(set(values)) == len(values) else values,
    ]
    for one in given_:
        found = texts("prompts", one)
        assert found == tuple(values)
        assert {type(text) for text in found} <= {str}


def test_prompts_from_a_table_a_generator_or_an_array_are_the_same_prompts(tiny_model):
    prompts = ["Tell me about Rome.", "Why?"]
    expected = sl.generate(tiny_model, prompts, max_new_tokens=3)
    for given_ in (
        tuple(prompts),
        np.array(prompts),
        pd.Series(prompts, index=[5, 3]),
        iter(prompts),
    ):
        found = sl.generate(tiny_model, given_, max_new_tokens=3)
        assert found.prompts == tuple(prompts)
        assert found.tokens == expected.tokens


# --- what is stored ---


@given(
    value=st.one_of(
        st.floats(allow_nan=True, allow_infinity=True),
        st.floats(1e38, 1e39),
        st.sampled_from([1e300, LARGEST, -LARGEST, np.nextafter(LARGEST, np.inf)]),
    ),
    side=st.booleans(),
)
@settings(max_examples=80)
def test_a_cache_of_any_numbers_holds_finite_ones_or_is_refused(value, side):
    sides = np.zeros((2, 3, 2, 4))
    sides[int(side), 1, 1, 2] = value
    one, other = torch.from_numpy(sides)
    with np.errstate(over="ignore"):
        fits = np.isfinite(np.float32(value))
    if fits:
        cache = sl.ResidualCache.from_tensors(one, other)
        assert bool(
            torch.isfinite(cache.instructed).all() & torch.isfinite(cache.uninstructed).all()
        )
    else:
        words = "do" if np.isfinite(value) else "NaN or infinity"
        with pytest.raises(ActivationError, match=f"{words}.* first at pair 1, layer 1"):
            sl.ResidualCache.from_tensors(one, other)


def test_shards_refuse_numbers_beyond_their_dtype(tmp_path):
    one = torch.full((2, 1, 4), 7e4)
    with pytest.raises(ActivationError, match="too large for float16"):
        write_shards(tmp_path / "a", [(one, -one)], dtype="float16")
    wide = torch.full((2, 1, 4), 1e300, dtype=torch.float64)
    with pytest.raises(ActivationError, match="do not fit float32"):
        write_shards(tmp_path / "b", [(wide, -wide)])


@pytest.mark.parametrize("part", ["gaps", "targets", "baselines"])
def test_a_vector_refuses_numbers_that_float32_does_not_hold(part):
    parts = {name: torch.ones(1, dtype=torch.float64) for name in ("gaps", "targets", "baselines")}
    parts[part] = parts[part] * 1e300
    with pytest.raises(SteeringError, match=f"{part} hold .* that do not fit float32"):
        sl.SteeringVector(torch.eye(4)[:1], **parts, layers=(0,))


@pytest.mark.parametrize("length", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_directions_of_any_length_give_the_same_vector(length):
    cache = planted(d_prime=4.0, n_layers=1, layer=0)
    unit = torch.zeros(1, 16, dtype=torch.float64)
    unit[0, 3], unit[0, 5] = 0.6, 0.8
    vector = from_directions(cache, unit * length)
    assert torch.allclose(vector.directions.double(), unit, atol=1e-7)


# --- interventions ---


def _intervention(**changes):
    parts = {
        "layer": 0,
        "direction": torch.eye(4)[0],
        "gap": 1.0,
        "target": 2.0,
        "operation": "add",
        "strength": 1.0,
        "scope": "all",
    }
    return sl.Intervention(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"direction": torch.ones(4)}, "unit vector; got one of norm 2; divide it by its norm"),
        ({"direction": torch.zeros(4)}, "unit vector; got one of norm 0$"),
        ({"direction": torch.tensor([1.0, torch.nan, 0, 0])}, "NaN, infinity"),
        ({"direction": torch.tensor([1e300, 0], dtype=torch.float64)}, "do not fit float32"),
        ({"gap": float("nan")}, "gap must be a finite number; got nan"),
        ({"gap": -1.0}, "gap is a length and cannot be negative; got -1"),
        ({"target": float("inf")}, "target must be a finite number; got inf"),
        ({"baseline": float("nan")}, "baseline must be a finite number"),
        ({"strength": float("inf")}, "strength must be a finite number; got inf"),
        ({"gap": 1e39}, "gap must fit float32; got 1e\\+39"),
        ({"target": -1e39, "operation": "set_projection"}, "target must fit float32; got -1e"),
    ],
)
def test_an_intervention_that_would_steer_into_nonsense_is_refused(changes, words):
    with pytest.raises(SteeringError, match=words):
        _intervention(**changes)


@given(angle=st.floats(0, 6.3), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_unit_vectors_in_half_precision_are_unit_vectors(angle, dtype):
    direction = torch.tensor([np.cos(angle), np.sin(angle), 0, 0], dtype=dtype)
    assert _intervention(direction=direction).direction is direction


def test_what_an_intervention_accepts_is_finite_when_it_is_applied():
    largest = _intervention(gap=LARGEST)
    rows = RowSteering([sl.Steering((largest,))])
    on = torch.ones(1, 2, dtype=torch.bool)
    steered = rows.apply(0, torch.zeros(1, 2, 4), TokenRoles(prompt=on, response=~on))
    assert bool(torch.isfinite(steered).all())


def test_layers_of_numpy_and_of_tables_are_layers():
    vector = sl.difference_of_means(planted())
    table = pd.DataFrame({"layer": [2, None]})  # a gap makes floats of a table's layers
    for layer in (np.int64(2), 2.0, table["layer"][0], torch.tensor(2)):
        found = vector.at(layer=layer).interventions[0].layer
        assert found == 2 and type(found) is int


# --- sentences, without the type checking of the tests ---

CALLS = {
    "vector.at(layer=True)": "layer must be a whole number; got True",
    "vector.at(layer=1.5)": "layer must be a whole number; got 1.5",
    "vector.at(layer=None)": "layer must be a whole number; got None",
    "vector.at(1, strength=True)": "strength must be a finite number; got True",
    "vector.at(1, strength='1')": "strength must be a finite number; got '1'",
    "vector.at(1, strength=float('nan'))": "strength must be a finite number; got nan",
    "cache.layer_index(True)": "layer must be a whole number; got True",
    "sl.generate(model, 3)": "prompts is a value of type int; give a list of strings",
    "sl.generate(model, None)": "prompts is a value of type NoneType; give a list of strings",
    "sl.generate(model, b'a')": "prompts is a value of type bytes; give a list of strings",
    "sl.generate(model, ['a', 3])": "entry 1 of prompts is a value of type int; give a string",
    "sl.generate(model, ['a', None])": "entry 1 of prompts is a value of type NoneType",
    "sl.generate(model, CHAT[0])": "prompts is a message of a conversation; give a list of them",
    "sl.generate(model, ['a', CHAT[0]])": "entry 1 of prompts is a message of a conversation",
    "sl.generate(model, [{'role': 'user', 'content': [1]}])": "message 0 of prompts has no text",
    "sl.generate(model, [[5, 1.5]])": "every token id of entry 0 of prompts must be a whole numbe",
    "sl.generate(model, [5, True])": "every token id of prompts must be a whole number of at lea",
    "sl.generate(model, torch.tensor([5, 300]))": "prompt 0 has the token id 300, and",
    "sl.generate(model, 'a', top_k=2.5)": "top_k must be a whole number of at least 0; got 2.5",
    "sl.generate(model, 'a', min_p=True)": "min_p must be a finite number; got True",
    "sl.generate(model, 'a', stop=[3])": "entry 0 of stop is a value of type int; give a string",
    "sl.generate(model, 'a', stop=None)": "stop is a value of type NoneType; give a list of stri",
    "sl.generate(model, 'a', samples=None)": "samples must be a whole number of at least 1; got",
    "sl.steer(model, 3, vector.at(1))": "prompt is a value of type int; give a string",
    "sl.steer(model, 'a', vector.at(1), max_new_tokens=True)": "max_new_tokens must be a whole",
    "sl.generate(model, 'a', max_new_tokens=True)": "max_new_tokens must be a whole number of at",
    "sl.generate(model, 'a', max_new_tokens=2.5)": "max_new_tokens must be a whole number of at",
    "sl.generate(model, 'a', max_new_tokens=None)": "max_new_tokens must be a whole number of at",
    "sl.generate(model, 'a', max_new_tokens=0)": "max_new_tokens must be a whole number of at lea",
    "sl.generate(model, 'a', batch_size=True)": "batch_size must be a whole number of at least 1",
    "sl.generate(model, 'a', batch_size=0)": "batch_size must be a whole number of at least 1; got",
    "sl.generate(model, 'a', seed=None)": "seed must be a whole number; got",
    "sl.generate(model, 'a', seed='1')": "seed must be a whole number; got '1'",
    "sl.generate(model, 'a', temperature=None)": "temperature must be a finite number of at least",
    "sl.generate(model, 'a', temperature=True)": "temperature must be a finite number of at",
    "sl.generate(model, 'a', temperature=-1)": "temperature must be a finite number of at",
    "sl.generate(model, 'a', top_p=float('nan'))": "top_p must be a finite number; got nan",
    "sl.generate(model, 'a', top_p=0)": "top_p must be above 0 and at most 1; got 0",
    "sl.generate(model, ['a'], [vector])": "every steering must be a Steering or None; got Steer",
    "sl.cache_residuals(model, pairs, layers=[True])": "every one of layers must be a whole number",
    "sl.cache_residuals(model, pairs, layers='1')": "layers must be a list of whole numbers; got",
    "sl.cache_residuals(model, pairs, layers=1)": "layers must be a list of whole numbers; got 1",
    "sl.cache_residuals(model, pairs, batch_size=0)": "batch_size must be a whole number of at lea",
    "sl.cache_residuals(model, pairs, batch_size=True)": "batch_size must be a whole number of at",
    "sl.cache_residuals(model, pairs, position=True)": "position must be a whole number; got True",
    "sl.cache_residuals(model, pairs, position=None)": "position must be a whole number; got None",
    "sl.contrast_pairs('punctuation:no_comma', n=True)": "n must be a whole number; got True",
    "sl.contrast_pairs('punctuation:no_comma', n=2.5)": "n must be a whole number; got 2.5",
    "sl.contrast_pairs('punctuation:no_comma', n=4, seed=None)": "seed must be a whole number; got",
    "sl.contrast_pairs('punctuation:no_comma', n=4, seed=1.5)": "seed must be a whole number; got",
    "sl.random_direction(cache, seed='a')": "seed must be a whole number; got 'a'",
    "sl.random_direction(cache, seed=True)": "seed must be a whole number; got True",
    "sl.rank_layers(cache, seed=None)": "seed must be a whole number; got",
    "sl.rank_layers(cache, seed=True)": "seed must be a whole number; got True",
    "sl.rank_layers(cache, n_folds=True)": "n_folds must be a whole number; got True",
    "sl.rank_layers(cache, n_resamples=2.5)": "n_resamples must be a whole number of at least 1",
    "sl.rank_layers(cache, n_resamples=True)": "n_resamples must be a whole number of at least 1",
    "sl.linear_probe(cache, regularisation=True)": "regularisation must be a finite number; got Tr",
    "sl.linear_probe(cache, regularisation=float('nan'))": "regularisation must be a finite number",
    "sl.ResidualCache.from_tensors(*sides, layers=[True])": "every one of layers must be a whole",
    "sl.ResidualCache.from_tensors(*sides, groups=[0, 1.5])": "every one of groups must be a whole",
    "ContrastSet.from_prompts('ab', 'cd')": "'instructed' must be a list of prompts",
    "ContrastSet.from_prompts([CHAT[0]] * 2, ['a', 'b'])": "row 1: the field 'instructed' is a mes",
    "ContrastSet.from_prompts([3, 4], ['a', 'b'])": "row 1: the field 'instructed' must be a text",
    "sl.contrast_pairs(3)": "task must be a Task, an id of the catalogue or a file, but is a",
    "sl.contrast_pairs('punctuation:no_comma', split=None)": "unknown split 'None'; choose one of",
    "sl.generate(model, 'a', chat_format=None)": "unknown chat_format 'None'; choose one of",
    "recovery(layers=1)": "layers must be a list of whole numbers; got 1",
    "recovery(layers=[True])": "every one of layers must be a whole number; got True",
    "recovery(batch_size=True)": "batch_size must be a whole number; got True",
    "recovery(batch_size='4')": "batch_size must be a whole number; got '4'",
    "recovery(strength=True)": "strength must be a number; got True",
    "recovery(scope=None)": "scope is a value of type NoneType; give a string",
    "sl.causal_recovery(model, pairs, vector, strengths=1.0)": "strengths must be a list of num",
    "sl.causal_recovery(model, pairs, vector, horizons=[1.5])": "every one of horizons must be a",
    "sl.activation_patching(model, pairs, n_positions=2.5)": "n_positions must be a whole number",
    "vocabulary_readout(model, vector, n_tokens=True)": "n_tokens must be a whole number; got",
    "response_kl(model, vector.at(1), 3)": "prompts is a value of type int; give a list",
    "response_kl(model, vector.at(1), ['a'], seed=None)": "seed must be a whole number; got",
    "fit_condition(model, 3, ['a'])": "positive is a value of type int; give a list of strings",
    "catalogue_prompts(['punctuation:no_comma'], True)": "n_per_task must be a whole",
    "sl.token_effects(model, [1.5], [3], vector.at(1))": "every one of prompt_tokens must be",
    "sl.steer(model, 'a', vector.at(1), read_at=True)": "read_at must be a whole number; got True",
    "vector.at(1).scaled(None)": "factor must be a number; got None",
    "vector.interpolate(vector, True)": "share must be a number; got True",
    "layer_geometry(cache, above=None)": "above must be a number; got None",
    "mean_centred(cache, [3])": "the pool must be a list of caches; got one with a int",
}
"""What is called -> how the sentence begins, or a part of it."""

SCRIPT = """
import json, sys
import torch
import steerlens as sl
from steerlens.attribution import layer_geometry, vocabulary_readout
from steerlens.behaviour.evaluation import catalogue_prompts
from steerlens.effects.divergence import response_kl
from steerlens.errors import SteerlensError
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import mean_centred
from steerlens.vectors.conditional import fit_condition

model = sl.load_model(sys.argv[1], device="cpu")
pairs = ContrastSet.from_prompts(["a b", "c d"], ["a", "c"])
cache = sl.cache_residuals(model, pairs)
vector = sl.difference_of_means(cache)
sides = torch.ones(2, 1, 4), torch.zeros(2, 1, 4)
CHAT = [{"role": "user", "content": "Hi."}]


def recovery(**given):
    return sl.first_token_recovery(model, pairs, vector, **given)


heard = {}
for call in json.load(sys.stdin):
    try:
        heard[call] = f"nothing: {eval(call)!r}"
    except SteerlensError as error:
        heard[call] = str(error)
    except Exception as error:
        heard[call] = f"raw {type(error).__name__}: {error}"
print(json.dumps(heard))
"""


@pytest.fixture(scope="module")
def heard(tmp_path_factory, tiny_folder):
    """What each of the calls says in a process where nothing checks types."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_folder)],
        input=json.dumps(list(CALLS)),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("call", CALLS)
def test_an_argument_of_the_wrong_kind_gets_a_sentence(call, heard):
    assert CALLS[call] in heard[call]
