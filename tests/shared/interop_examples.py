"""Vectors and damaged files that the tests of the exchange formats use."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from steerlens.errors import SteerlensError
from steerlens.vectors import SteeringVector

PARTS = ("directions", "gaps", "targets", "baselines")


def example_vector(
    layers: Sequence[int] = (0, 1, 2), d_model: int = 8, seed: int = 0, **metadata: Any
) -> SteeringVector:
    """A vector whose targets are not what its gaps say, so that losing them shows."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(len(layers), d_model, generator=generator)
    numbers = torch.randn(3, len(layers), generator=generator) * 7
    return SteeringVector(
        directions=raw / raw.norm(dim=-1, keepdim=True),
        gaps=numbers[0].abs() + 0.1,
        targets=numbers[1],
        baselines=numbers[2],
        layers=tuple(layers),
        metadata={"instruction": "title: “ü”", "model": "a-model", "seed": 3, **metadata},
    )


def assert_same_vector(found: SteeringVector, expected: SteeringVector) -> None:
    """Every number bit for bit, the layers and the provenance."""
    assert found.layers == expected.layers
    for name in PARTS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert dict(found.metadata) == dict(expected.metadata)


def ulps(found: torch.Tensor, expected: torch.Tensor) -> int:
    """Largest distance of two float32 tensors in units in the last place."""
    steps = found.view(torch.int32).long() - expected.view(torch.int32).long()
    return int(steps.abs().max())


@st.composite
def damage(draw: Any, size: int) -> Callable[[bytes], bytes]:
    """A way to damage a file: bytes changed, a piece cut out, doubled, or the end cut off."""
    places = st.integers(0, size - 1)
    kind = draw(st.sampled_from(["change", "cut", "double", "truncate"]))
    begin, end = sorted((draw(places), draw(places)))
    # Lengths and counts stand near the beginning, so most changes should as well.
    near = st.one_of(st.integers(0, min(400, size - 1)), places)
    changes = draw(st.lists(st.tuples(near, st.integers(0, 255)), min_size=1, max_size=4))

    def apply(raw: bytes) -> bytes:
        if kind == "cut":
            return raw[:begin] + raw[end:]
        if kind == "double":
            return raw[:end] + raw[begin:]
        if kind == "truncate":
            return raw[:begin]
        array = bytearray(raw)
        for place, byte in changes:
            array[place] = byte
        return bytes(array)

    return apply


def outcome(read: Callable[[Path], SteeringVector], path: Path) -> SteeringVector | str:
    """What a reader makes of a file: a vector, or the sentence of its refusal."""
    try:
        return read(path)
    except SteerlensError as error:
        return str(error)


def assert_vector_or_sentence(found: SteeringVector | str) -> None:
    """The only two outcomes a reader may have."""
    if isinstance(found, str):
        assert found and "\n" not in found.strip()
    else:
        assert torch.isfinite(found.directions).all() and torch.isfinite(found.gaps).all()
        assert len(set(found.layers)) == len(found.layers) == len(found.directions)
