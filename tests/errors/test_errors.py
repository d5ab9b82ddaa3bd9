"""Errors are sentences for the user, caught together or apart."""

import pytest

from steerlens import errors
from steerlens.errors import SteerlensError, UnknownNameError, unknown_name


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_error_is_a_steerlens_error_and_a_value_error(name: str) -> None:
    kind = getattr(errors, name)

    assert issubclass(kind, SteerlensError)
    assert issubclass(kind, ValueError)


def test_an_unknown_name_can_be_caught_as_a_key_error() -> None:
    with pytest.raises(KeyError):
        raise unknown_name("layer", "x", ["y"])


def test_an_unknown_name_reads_as_a_sentence_without_the_quotes_of_key_error() -> None:
    error = UnknownNameError("unknown scope 'al'; did you mean 'all'?")

    assert str(error) == "unknown scope 'al'; did you mean 'all'?"


def test_near_names_are_suggested_and_far_ones_are_not() -> None:
    sentence = str(unknown_name("operation", "set_projektion", ["add", "set_projection"]))

    assert sentence == "unknown operation 'set_projektion'; did you mean 'set_projection'?"


def test_without_a_near_name_the_first_dozen_are_listed() -> None:
    known = [f"name{k:02d}" for k in range(20)]

    sentence = str(unknown_name("thing", "???", known))

    assert "'name00', " in sentence
    assert "'name11', …" in sentence
    assert "name12" not in sentence


def test_the_names_may_come_from_an_iterator() -> None:
    sentence = str(unknown_name("thing", "zzz", iter(["a", "b"])))

    assert sentence == "unknown thing 'zzz'; choose one of 'a', 'b'"


def test_a_piece_of_a_long_name_suggests_the_names_that_hold_it() -> None:
    sentence = str(unknown_name("instruction", "Title", ["punctuation:no_comma", "format:title"]))

    assert sentence == "unknown instruction 'Title'; did you mean 'format:title'?"
