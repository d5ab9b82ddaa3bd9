"""Claims about plain JSON: one spelling for each value, and nothing lost without being said."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_example import open_run

from steerlens.errors import SteerlensError
from steerlens.runs import json_document, json_line, json_value, piece_name

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(record=st.dictionaries(st.text(), values, max_size=4))
@settings(max_examples=100, deadline=None)
def test_writing_and_reading_gives_what_json_value_gives(record: dict[str, Any]) -> None:
    expected = json_value(record)
    assert json.loads(json_line(record)) == expected
    assert json.loads(json_document(record)) == expected
    assert json_line(expected) == json_line(record) and len(json_line(record).splitlines()) == 1


def test_a_piece_is_named_by_what_it_is() -> None:
    text = '{"model":"ü","rows":[1,2],"strength":2}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:20]

    assert piece_name({"strength": 2.0, "rows": (1, 2), "model": "ü"}) == expected
    assert piece_name({"strength": True, "rows": (1, 2), "model": "ü"}) != expected
    with pytest.raises(SteerlensError, match=r"content.strength is nan; expected a finite number"):
        piece_name({"strength": float("nan")})


def test_scalars_become_numbers_and_what_json_cannot_hold_is_refused_with_its_place(
    tmp_path: Path,
) -> None:
    numbers = {
        "a": np.float32(0.1),
        "b": np.int64(3),
        "c": np.bool_(True),
        "d": torch.tensor(0.5, dtype=torch.bfloat16),
        "e": np.float64("inf"),
        "f": "half a pair: \ud83d",
    }
    with open_run(tmp_path / "run") as run:
        (record,) = run.finish("a", [numbers])
        assert record == {"a": 0.10000000149011612, "b": 3, "c": True, "d": 0.5, "e": None} | {
            "f": "half a pair: \ufffd"
        }
        assert record["c"] is True and run.finished("a") == [record]

        for bad, message in (
            ({"scores": np.zeros(3)}, r"records of piece b\[1\].scores is a ndarray.*tolist"),
            ({"x": [{"y": torch.zeros(2)}]}, r"\[1\].x\[0\].y is a Tensor"),
            ({"x": {1: 2}}, r"\[1\].x has the key 1; JSON's keys are text"),
            ({"x": Path("a")}, r"\[1\].x is a PosixPath"),
            ({"x": 1j}, r"\[1\].x is a complex"),
        ):
            with pytest.raises(SteerlensError, match=message):
                run.finish("b", [{}, bad])
        with pytest.raises(SteerlensError, match="must be a list of JSON objects"):
            run.finish("b", range(0))  # type: ignore[arg-type]
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(SteerlensError, match="holds itself"):
            run.finish("b", [{"x": endless}])
        assert run.names == ("a",)
