"""Claims about options of the command line: what is given has an effect, or a sentence says not."""

import json
from pathlib import Path

import pytest
from steering_examples import random_vector

from steerlens.cli.main import main

TITLE = "detectable_format:title"
PAIRS = ["--pairs", "pairs.jsonl"]
VECTOR = ["--vector", "v.safetensors"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a pairs file, a vector and a prompts file, and nothing that could be loaded."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instructed": f"{one} in caps", "uninstructed": one} for one in ("a tree", "a bird")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    random_vector(3, 16).save(tmp_path / "v.safetensors")
    row = {"key": 1, "prompt": "Hi.", "instruction_id_list": [TITLE], "kwargs": [{}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    return tmp_path


def refused(capsys, argv):
    """What is said of a command that is refused before its model, which there is not, is loaded."""
    code = main([*map(str, argv), "--model", "no-such-model"])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, ""), captured.out
    [line] = captured.err.splitlines()
    assert "no-such-model" not in line, "the model was asked for first"
    return line


RAY = ("--workers", "--worker-cpus", "--worker-gpus", "--worker-device-map",
       "--worker-max-memory", "--address")  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["rank", *PAIRS, "--n", "2"], "--n is how many pairs of a task are drawn"),
        (["vector", *PAIRS, "--n", "2", "--out", "w"], "--n is how many pairs"),
        (["transfer", *VECTOR, *PAIRS, "--n", "64", "--out", "w"], "--n is how many pairs"),
        (["evaluate", "--data", "data.jsonl", "--n", "4", "--out", "e"], "--n is how many prompts"),
        *[
            (["rank", *PAIRS, option, "1"], f"{option} is for --engine ray, and everything is")
            for option in RAY
        ],
        *[
            (["search", "--instruction", TITLE, "--out", "s", option, "1"], "is for --engine ray")
            for option in RAY
        ],
        (["evaluate", "--data", "data.jsonl", "--out", "e", "--workers", "2"], "--engine ray"),
        (["rank", *PAIRS, "--engine", "ray"], "say with --shards DIR"),
        (
            ["calibrate", *VECTOR, "--layer", "1", "--instruction", TITLE, "--target-kl", "0.1"],
            "--target-kl belongs to a KL budget",
        ),
        (
            ["calibrate", *VECTOR, "--layer", "1", "--instruction", TITLE, "--quantile", "0.5"],
            "--quantile belongs to a KL budget",
        ),
        (["transfer", *VECTOR, *PAIRS, "--out", "w", "--match", "cka"], "--match is for fitting"),
        (["transfer", *VECTOR, *PAIRS, "--out", "w", "--texts", "9"], "--texts is for fitting"),
        (
            ["transfer", *VECTOR, *PAIRS, "--out", "w", "--source", "x", "--chat-format", "plain"],
            "--chat-format has no effect on the texts a map is fitted on",
        ),
    ],
)  # fmt: skip
def test_an_option_that_would_have_no_effect_is_refused(folder, capsys, argv, words):
    before = sorted(folder.iterdir())
    assert words in refused(capsys, argv)
    assert sorted(folder.iterdir()) == before, "and nothing is left behind"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["rank", *PAIRS, "--position", "lst"], "unknown position 'lst'"),
        (
            ["vector", *PAIRS, "--position", "last_promt", "--out", "w"],
            "did you mean 'last_prompt'",
        ),
        (["transfer", *VECTOR, *PAIRS, "--out", "w", "--source", "x", "--match", "ckq"], "'cka'"),
        (["calibrate", *VECTOR, "--layer", "1", "--target-kl", "-1"], "--target-kl must be a"),
        (["calibrate", *VECTOR, "--layer", "1", "--quantile", "2"], "quantile must lie between"),
        (
            ["calibrate", *VECTOR, "--layer", "1", "--instruction", TITLE, "--target-rate", "2"],
            "--target-rate must be above 0",
        ),
        (
            ["calibrate", *VECTOR, "--layer", "1", "--instruction", TITLE, "--n", "100000"],
            "100000",
        ),
        (
            ["evaluate", "--data", "data.jsonl", "--out", "e", "--top-p", "0.5"],
            "top_p is for tokens that are drawn, and at temperature 0 none is",
        ),
        (
            ["search", "--task", TITLE, "--out", "s", "--messages", "data.jsonl"],
            "data.jsonl holds no list",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_model_is_loaded(folder, capsys, argv, words):
    assert words in refused(capsys, argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["rank", *PAIRS, "--batch-size", "0"],
        ["steer", *VECTOR, "--layer", "1", "--prompt", "x", "--max-new-tokens", "-1"],
        ["report", "--instruction", TITLE, "--out", "r", "--max-new-tokens", "0"],
        ["evaluate", "--data", "d", "--out", "e", "--piece-rows", "many"],
    ],
)
def test_counts_are_whole_numbers_of_at_least_one(capsys, argv):
    assert main(argv) == 2
    assert "is not a whole number of at least 1" in capsys.readouterr().err


def test_a_seed_by_which_nothing_is_drawn_is_said_and_does_not_stop(folder, capsys, tiny_folder):
    model = ["--model", str(tiny_folder)]
    steer = ["steer", *model, *VECTOR, "--layer", "1", "--prompt", "Hi", "--max-new-tokens", "1"]
    make = ["vector", *model, *PAIRS, "--out", "w.safetensors"]
    for argv, why in ((steer, "no token is drawn"), (make, "no pair is drawn")):
        assert main([*argv, "--seed", "3"]) == 0
        assert "note: --seed has no effect" in (told := capsys.readouterr().err) and why in told
        assert main(argv) == 0
        assert "note:" not in capsys.readouterr().err
    assert main([*steer, "--seed", "3", "--temperature", "1"]) == 0
    assert "note:" not in capsys.readouterr().err


def test_steer_decodes_as_asked_after_a_conversation(folder, capsys, tiny_folder):
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    Path("messages.json").write_text(json.dumps(before))
    model, steered = ["--model", str(tiny_folder)], [*VECTOR, "--layer", "1", "--json"]
    steer = ["steer", *model, *steered, "--messages", "messages.json", "--max-new-tokens", "4"]
    drawn = ["--temperature", "1", "--top-k", "9", "--samples", "2", "--stop", "x", "--stop", "y"]
    assert main([*steer, *drawn, "--seed", "3"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == before
    assert record["settings"]["decoding"]["stop"] == ["x", "y"]
    assert record["settings"]["decoding"]["seed"] == 3
    assert len(record["samples"]) == len(record["finish_reasons"]) == 2
    Path("messages.json").write_text(json.dumps(before[:1]))
    assert main([*steer, "--prompt", "Hi"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == before
    assert main(steer) == 2
    assert "the last message of messages.json has the role 'system'" in capsys.readouterr().err
    Path("messages.json").write_text('{"role": "user"}')
    assert main(steer) == 2
    assert "messages.json holds no list" in capsys.readouterr().err
    assert main(["steer", *model, *steered]) == 2
    assert "give --prompt TEXT, or --messages FILE" in capsys.readouterr().err


def test_counts_of_pairs_are_by_default_as_before(capsys):
    assert main(["rank", "--instruction", TITLE, "--n", "8", "--model", "no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err, "--n is taken with --instruction"
