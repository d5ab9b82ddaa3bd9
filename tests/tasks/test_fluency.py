"""Which responses count as degenerate, and the measures behind it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlens.tasks.fluency import fluency, is_degenerate, why_degenerate

PROSE = (
    "The sea covers most of the planet, and its colour changes with the light. Near the coast the "
    "water carries sand and small plants, so it looks green or brown. Far from land there is "
    "little to scatter the light, and only the blue part of it comes back to the eye. Storms mix "
    "the upper layers, bring up cold water from below and feed the fish that live there. People "
    "have crossed it for thousands of years, first with oars and sails, later with engines, and "
    "still know less about its floor than about the surface of the moon."
)
OTHER = (
    "Think of the ocean as a slow machine. The sun warms the tropics, currents carry that warmth "
    "towards the poles, and the cooled water sinks and creeps back along the bottom. One round "
    "takes about a thousand years. Everything that lives in the sea depends on this motion, "
    "because it carries oxygen down and food up."
)
CHINESE = (
    "海洋覆盖了地球表面的大部分，它的颜色随着光线而变化。靠近海岸的水带有泥沙和小植物，"
    "所以看起来是绿色或棕色的。远离陆地的地方几乎没有东西散射光线，只有蓝色的部分回到眼睛里。"
)
JAPANESE = "海は地球の大部分をおおい、その色は光によって変わります。岸の近くでは緑に見えます。"
THAI = "ทะเลปกคลุมพื้นที่ส่วนใหญ่ของโลก และสีของมันเปลี่ยนไปตามแสง ใกล้ชายฝั่งน้ำดูเป็นสีเขียว"
PROMPT = "Write a short note about the colour of the sea. First repeat this request word for word."
SONG_CHORUS = "Row with me over the water, row with me back to the shore"

DEGENERATE = {
    "nothing": "",
    "white space": " \n\t ",
    "punctuation only": "... --- !!! ???",
    "one word again and again": "the " * 80,
    "three times the same word": "the the the",
    "two words in turn": "Part X: " * 60,
    "a sentence five times": "The sky is blue because air scatters light. " * 5,
    "a short sentence four times": "I am fine. " * 4,
    "the same line again and again": "* Use a clean cloth.\n" * 9,
    "the same numbered line": "".join(f"{i}. Use a clean cloth.\n" for i in range(1, 10)),
    "loop with case changing": "Go home. GO HOME. go home. Go Home. gO hOmE. go home.",
    "prose that ends in a loop": PROSE + " and so on and on" * 8,
    "prose with a loop inside": PROSE + " we are here to help" * 12 + " and then it stopped.",
    "a signature without end": PROSE + "\n\nSincerely,\n" + "[Your Company]\n\n" * 8,
    "placeholders without end": "Subject: " + "[Order Status] - " * 30,
    "a counter": "".join(f"Step {i}: Water. " for i in range(1, 25)),
    "numbers that count on": "To plant:\n" + "".join(f"# {i}\n\n" for i in range(2, 45)),
    "one phrase varied a little": "".join(
        f"You can use the towel to wash your {part}, which is a good alternative to soap. "
        for part in ("hands", "face", "feet", "hair", "neck", "arms", "back")
    ),
    "two lines that alternate with others": (
        "Subject: the order of today.\nSubject: the order of today.\nDraft:\n" * 2
        + "Customer: the order of today.\nSubject: the order of today.\n" * 3
    ),
    "a letter": "a" * 300,
    "a digit": "I will " + "1" * 250,
    "laughter": "hahaha" * 40,
    "a run of brackets": "The code is:\n" + "<" * 200,
    "code fences": "```python\n# Python\n```\n\n" * 20,
    "asterisks": "* * *\n" * 60,
    "a hyphen chain": "Bidgeri" + "-Bidger" * 60,
    "blanks at the end": "I am" + " " * 300,
    "line breaks at the end": "Here it is:" + "\n" * 60,
    "Chinese sentence again and again": "海洋是蓝色的。" * 12,
    "Chinese character": "好" * 100,
    "Japanese phrase": PROSE[:40] + "ありがとう" * 20,
    "Thai phrase": "สวัสดีครับ " * 15,
    "two responses of which both loop": "no no no no no no ****** no no no no no no",
    "all capitals loop": "YES WE CAN. " * 20,
}

FLUENT = {
    "prose": PROSE,
    "prose in capitals": PROSE.upper(),
    "prose without commas": PROSE.replace(",", ""),
    "one word": "Yes.",
    "a number": "42",
    "a forced choice": "My answer is yes.",
    "one sentence": "The sky is blue because air scatters blue light the most.",
    "an emphatic answer": "No, no, no! Please never put metal in the microwave.",
    "a very emphatic answer": "That is very, very, very good news.",
    "a sentence said twice": "I am fine. I am fine.",
    "two responses": f"{PROSE}\n\n******\n\n{OTHER}",
    "two short responses": "It is blue.\n\n******\n\nIt is mostly blue, sometimes green.",
    "two equal responses": f"{PROSE}\n******\n{PROSE}",
    "the prompt repeated": f"{PROMPT}\n\nThe sea is blue because it scatters blue light.",
    "the prompt repeated three times in a long answer": (
        f"{PROMPT}\n{PROSE} {PROMPT} {OTHER} {PROMPT} That is all."
    ),
    "bullets": "* Buy fresh milk.\n* Call the bank before noon.\n* Water the plants.\n* Sleep.",
    "bullets that begin alike": "".join(
        f"* You can {do}.\n"
        for do in ("walk along the river", "read a novel", "bake bread", "call an old friend")
    ),
    "a numbered list": "1. Wash the rice.\n2. Add water.\n3. Boil it.\n4. Let it rest.\n5. Serve.",
    "sections": "".join(
        f"Section {i}\n{text}\n\n" for i, text in enumerate(PROSE.split(". "), start=1)
    ),
    "JSON": json.dumps({"title": "The sea", "facts": ["wide", "deep", "blue"]}, indent=2),
    "JSON with equal keys": json.dumps(
        [
            {"name": name, "age": age, "city": city}
            for name, age, city in (
                ("Ann", 31, "Oslo"),
                ("Bo", 45, "Rome"),
                ("Cy", 28, "Lima"),
                ("Di", 52, "Bonn"),
                ("Ed", 39, "Cork"),
            )
        ],
        indent=4,
    ),
    "a table": (
        "| city | people | river |\n|------|--------|-------|\n| Rome | many | Tiber |\n"
        "| Bonn | fewer | Rhine |\n| Cork | some | Lee |\n"
    ),
    "code": (
        "```python\ndef mean(values):\n    total = 0\n    for value in values:\n"
        "        total += value\n    return total / len(values)\n```"
    ),
    "a song with a refrain": "\n".join(
        f"{verse}\n{SONG_CHORUS}"
        for verse in (
            "The morning was grey and the harbour asleep, we pushed the old boat from the sand",
            "The gulls had gone quiet, the wind came around and the lantern went out in my hand",
            "At last came a light from the house on the hill and a voice that was saying our names",
        )
    ),
    "placeholders": "Dear [name], your order [number] left [city] on [date]. Yours, [company]",
    "highlights": "The *sea* is *wide*, its *floor* is *unknown*, and *storms* cross it.",
    "a rule of dashes": f"{OTHER}\n\n{'-' * 60}\n\n{PROSE}",
    "a form to fill in": "Name: __________ Date: __________ City: __________ Signature: __________",
    "ten primes": "2, 3, 5, 7, 11, 13, 17, 19, 23, 29",
    "a word three times as asked": "The sea is wide. I love the sea. Every sea has its own light.",
    "an end phrase": f"{OTHER}\n\nI hope this helps.",
    "a quotation": f'"{PROSE}"',
    "Chinese prose": CHINESE,
    "Japanese prose": JAPANESE,
    "Thai prose": THAI,
    "a French sentence": "L'eau est bleue parce qu'elle absorbe moins le bleu que le rouge.",
    "blank lines between": PROSE.replace(". ", ".\n\n\n"),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_a_stuck_response_is_degenerate(name: str) -> None:
    assert is_degenerate(fluency(DEGENERATE[name]))


@pytest.mark.parametrize("name", FLUENT)
def test_an_ordinary_response_is_not_degenerate(name: str) -> None:
    assert why_degenerate(fluency(FLUENT[name])) is None


def test_the_measures_are_those_of_a_count_by_hand() -> None:
    # given: seven words; trigrams abc bcd cda dab abc, four of them different
    measured = fluency("a b c d a b c")
    # then
    assert measured.n_words == 7
    assert measured.distinct_trigrams == pytest.approx(4 / 5)
    assert measured.frequent_trigrams == 0
    assert measured.repeated_span == pytest.approx(3 / 7)
    assert (measured.loop, measured.final_loop) == (0, 0)
    # and: a block of two, three and a half times
    assert fluency("x a b a b a b a").loop == 7
    assert fluency("x a b a b a b a").final_loop == 7
    assert fluency("a b a b a b x").final_loop == 0
    assert fluency("a b a b").loop == 0


@given(st.lists(st.sampled_from("abc"), max_size=25))
def test_span_and_loop_agree_with_a_search_over_all_spans(words: list[str]) -> None:
    measured = fluency(" ".join(words))
    n = len(words)
    spans = [
        length
        for length in range(1, n // 2 + 1)
        for i in range(n - 2 * length + 1)
        for j in range(i + length, n - length + 1)
        if words[i : i + length] == words[j : j + length]
    ]
    assert measured.repeated_span == pytest.approx(max(spans, default=0) / max(n, 1))
    loops = [
        stop - start
        for start in range(n)
        for stop in range(start + 3, n + 1)
        for block in range(1, (stop - start) // 3 + 1)
        if all(words[k] == words[k - block] for k in range(start + block, stop))
    ]
    assert measured.loop == max(loops, default=0)


@given(st.lists(st.sampled_from(["sea", "sky", "sun"]), max_size=30))
def test_trigram_shares_agree_with_numpy(words: list[str]) -> None:
    measured = fluency(" ".join(words))
    if len(words) < 3:
        assert (measured.distinct_trigrams, measured.frequent_trigrams) == (1.0, 0.0)
        return
    windows = np.lib.stride_tricks.sliding_window_view(np.array(words), 3)
    _, counts = np.unique(windows, axis=0, return_counts=True)
    assert measured.distinct_trigrams == pytest.approx(len(counts) / counts.sum())
    assert measured.frequent_trigrams == pytest.approx(counts[counts >= 3].sum() / counts.sum())


@given(st.text(max_size=120))
def test_any_text_can_be_measured(text: str) -> None:
    measured = fluency(text)
    assert 0 <= measured.distinct_trigrams <= 1
    assert 0 <= measured.repeated_span <= 0.5
    assert measured.loop <= measured.n_words
    assert measured.character_loop <= measured.n_characters
    why_degenerate(measured)


def test_words_of_scripts_without_spaces_are_their_characters() -> None:
    assert fluency("海是蓝色的 blue").n_words == 6
    assert fluency("it's 3 o'clock").n_words == 3


def test_each_clause_names_itself() -> None:
    assert why_degenerate(fluency("?!")) == "says nothing"
    assert why_degenerate(fluency("Sure." + " " * 40)) == "ends in blanks"
    assert why_degenerate(fluency("ha ha ha ha")) == "is one loop"
    assert why_degenerate(fluency(DEGENERATE["prose that ends in a loop"])) == "loops"
    assert why_degenerate(fluency(DEGENERATE["a counter"])) == "only counts on"
    assert why_degenerate(fluency("a" * 90)) == "loops in its characters"
    assert (
        why_degenerate(fluency(DEGENERATE["one phrase varied a little"]))
        == "repeats the same phrases"
    )
