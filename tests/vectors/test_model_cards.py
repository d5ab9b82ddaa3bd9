"""Claims about cards: data, rates with their intervals and controls, limits."""

import pytest
from interop_examples import example_vector
from scipy.stats import binomtest

from steerlens.errors import SteerlensError
from steerlens.vectors.model_cards import LibraryItem, Rate, file_stem, vector_card

RATES = (
    Rate("uninstructed", 1, 20),
    Rate("uninstructed+steering", 13, 20),
    Rate("uninstructed+placebo", 0, 20),
)
VECTOR = example_vector(weights_hash="sha256:ab", split="fit", n_pairs=64)


def test_a_card_gives_data_rates_with_intervals_and_limits() -> None:
    best = VECTOR.at(2, operation="add", strength=1.5, scope="prompt")
    item = LibraryItem(VECTOR, best, RATES, limits=["Only English was tried."])
    card = vector_card(item, "title.safetensors")
    exact = binomtest(13, 20).proportion_ci(method="wilson")
    for words in (
        "64 contrast pairs, split fit",
        "| seed | 3 |",
        "sha256:ab",
        "vector.at(layer=2, operation='add', strength=1.5, scope='prompt')",
        f"13 of 20 | 65% ({exact.low:.0%} to {exact.high:.0%})",
        "Only English was tried.",
        "fitted on the fit split",
    ):
        assert words in card
    assert "No placebo" not in card


def test_a_card_says_what_was_not_measured() -> None:
    assert "None were measured" in vector_card(LibraryItem(VECTOR), "v")
    without_control = vector_card(LibraryItem(VECTOR, rates=RATES[:2]), "v")
    assert "No placebo was measured" in without_control
    imported = example_vector(targets_known=False)
    assert "targets are not known" in vector_card(LibraryItem(imported), "v")


def test_file_names_are_safe_and_never_empty() -> None:
    names = ("detectable_format:title", "../../x|<a>\n", "...", "", "ü")
    assert [file_stem(name) for name in names] == [
        "detectable_format-title",
        "x-a",
        "vector",
        "vector",
        "vector",
    ]


@pytest.mark.parametrize(("passed", "n"), [(3, 2), (-1, 4), (0, 0)])
def test_rates_that_are_no_shares_are_refused(passed: int, n: int) -> None:
    with pytest.raises(SteerlensError, match="a rate needs"):
        Rate("steered", passed, n)
