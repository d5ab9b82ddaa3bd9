"""Claims about tokens laid out in lines: nothing lost, nothing overlapping, both directions."""

from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from steerlens.views.layout import lay_out
from steerlens.views.tokens import visible

TOKENS = st.lists(st.text(max_size=30), max_size=20)


@settings(max_examples=150, deadline=None)
@given(TOKENS, st.integers(4, 40))
def test_every_character_is_drawn_once_and_no_two_pieces_overlap(texts, columns):
    pieces = lay_out(texts, columns)

    for token, text in enumerate(texts):
        drawn = "".join(piece.text for piece in pieces if piece.token == token)
        assert drawn == visible(text).replace("\n", "")
    for _, line in groupby(sorted(pieces, key=lambda p: (p.line, p.start)), lambda p: p.line):
        end = 0.0
        for piece in line:
            assert piece.start >= end
            end = piece.start + piece.width
        assert end <= columns


def test_lines_break_after_newlines_and_before_what_does_not_fit():
    pieces = lay_out(["aaa", " bbb", "\n\n", "cc"], columns=6)

    assert [(p.text, p.line) for p in pieces] == [
        ("aaa", 0), (" bbb", 1), ("⏎", 1), ("⏎", 2), ("cc", 3),
    ]  # fmt: skip
    assert [len(p.text) for p in lay_out(["x" * 25], columns=10)] == [10, 10, 5]


def test_right_to_left_paragraphs_run_from_the_right_and_others_do_not():
    pieces = lay_out(["שלום", " עולם", "\n", "Rome", " שלום"], columns=20)

    hebrew, latin = pieces[:3], pieces[3:]
    assert [piece.start + piece.width for piece in hebrew] == [20, 16, 11]
    assert [piece.start for piece in latin] == [0, 4]


def test_wide_characters_take_two_columns_and_combining_ones_none():
    assert [p.width for p in lay_out(["日本", "😀", "e\u0301", "👩\u200d💻"])] == [4, 2, 1, 4]
