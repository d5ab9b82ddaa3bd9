"""Claims about the command line: real commands, exit codes, one-line errors, clean JSON."""

import json
import subprocess
import sys

import pytest
from steering_examples import random_vector

from steerlens.cli.main import main
from steerlens.vectors import SteeringVector

TITLE = "detectable_format:title"


def run(capsys, *argv):
    code = main([str(part) for part in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("verb", ["tasks", "instructions"])
def test_tasks_are_listed_as_json_objects_with_an_id(capsys, verb):
    code, out, _ = run(capsys, verb, "--json")
    listed = json.loads(out)
    assert code == 0
    assert len(listed) >= 24
    assert TITLE in {one["id"] for one in listed}


def test_models_lists_the_packaged_default(capsys):
    code, out, _ = run(capsys, "models", "--json")
    assert code == 0
    assert "smollm2-135m-instruct" in {one["name"] for one in json.loads(out)}


def test_rank_prints_every_layer_with_its_interval(capsys, tmp_path):
    code, out, _ = run(capsys, "rank", "--task", TITLE, "--n", 8, "--json", "--out", tmp_path)
    result = json.loads(out)
    assert code == 0
    assert result["model"] == "smollm2-135m-instruct"
    assert (result["task"], result["n_pairs"], result["position"]) == (
        TITLE,
        8,
        "last_prompt",
    )
    assert [row["layer"] for row in result["layers"]] == list(range(30))
    for row in result["layers"]:
        assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "ranking.json",
        "ranking.csv",
        "ranking.html",
    }


def test_a_vector_made_on_the_command_line_steers_on_the_command_line(capsys, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [("Name a fruit.", "apple"), ("Name a tree.", "oak"), ("Name a bird.", "owl")]
    pairs.write_text(
        "\n".join(
            json.dumps({"instructed": f"{query} Answer in French.", "uninstructed": query})
            for query, _ in rows
        )
    )
    path = tmp_path / "v.safetensors"
    code, _, _ = run(capsys, "vector", "--pairs", pairs, "--out", path)
    assert code == 0
    assert SteeringVector.load(path).directions.shape == (30, 576)
    code, out, _ = run(
        capsys, "steer", "--vector", path, "--layer", 20, "--prompt", "Name a fish.",
        "--max-new-tokens", 5, "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert result["baseline"] and result["steered"]
    assert result["effects"][0]["logprob_baseline"] is None
    assert result["effects"][3]["kl"] >= 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["rank", "--instruction", "detectable_format:titel"], "did you mean"),
        (["rank"], "--task ID"),
        (["rank", "--model", "smollm2-135m-instrukt", "--instruction", TITLE], "did you mean"),
        (["rank", "--pairs", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["rank", "--instruction", TITLE, "--n", "1"], "gives 2 to"),
        (["rank", "--instruction", TITLE, "--n", "100000"], "100000"),
        (["rank", "--instruction", TITLE, "--n", "2", "--position", "lst"], "position"),
        (["steer", "--vector", "none.safetensors", "--layer", "1", "--prompt", "x"], "no file at"),
        (["report", "--out", "r"], "--task ID"),
        (["vector", "--all", "--out", "v.safetensors"], "exactly one --task, or a folder"),
        (["rank", "--instruction", "title"], "did you mean 'detectable_format:title'"),
        (["rank", "--instruction", TITLE, "--n", "2", "--position", "²"], "position"),
        (["rank", "--instruction", TITLE, "--n", "4", "--seed", "-1"], "seed must be between 0"),
        (["report", "--instruction", TITLE, "--out", "r", "--samples", "-1"], "n_samples must be"),
        (["report", "--instruction", TITLE, "--out", "r", "--samples", "0"], "n_samples must be"),
        (["report", "--instruction", TITLE, "--out", "r", "--seed", "-1"], "seed must be between"),
        (["report", "--instruction", TITLE, "--out", "/dev/null/r"], "/dev/null is a file"),
        (["vector", "--instruction", TITLE, "--out", "/dev/null/v"], "/dev/null is a file"),
        (["rank", "--instruction", TITLE, "--out", "/dev/null/r"], "/dev/null is a file"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_line(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("steerlens: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_layer_out_of_range_and_a_wrong_operation_are_refused(capsys, tmp_path):
    path = random_vector(30, 576).save(tmp_path / "v.safetensors")
    for flags, words in [
        (["--layer", 30], "layer 30 is out of range"),
        (["--layer", 3, "--operation", "sub"], "unknown operation 'sub'"),
    ]:
        code, _, err = run(capsys, "steer", "--vector", path, "--prompt", "Hi", *flags)
        assert code == 2
        assert words in err


def test_an_empty_prompt_is_refused(capsys, tmp_path):
    path = random_vector(30, 576).save(tmp_path / "v.safetensors")
    code, _, err = run(capsys, "steer", "--vector", path, "--layer", 3, "--prompt", " ")
    assert code == 2
    assert "empty" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "command"),
        (["bogus"], "No such command 'bogus'"),
        (["rnak"], "Did you mean 'rank'?"),
        (["rank", "--instrction", TITLE], "--instruction"),
        (["rank", "--n", "many"], "'--n'"),
        (["steer", "--prompt", "Hi"], "--vector"),
        (["report", "--out", "r", "--chat-format", "plain"], "--chat-format"),
    ],
)
def test_a_command_that_cannot_be_parsed_ends_with_code_2_and_one_line(capsys, argv, words):
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert err.startswith("steerlens: ")
    assert len(err.splitlines()) == 1
    assert words in err


def test_undefined_numbers_are_null_in_files_too_and_csv_may_be_in_capitals(
    capsys, tmp_path, tiny_folder
):
    pairs = tmp_path / "PAIRS.CSV"
    pairs.write_text("instructed,uninstructed\na b,a\nc d,c\n")
    code, _, err = run(
        capsys, "rank", "--model", tiny_folder, "--pairs", pairs, "--out", tmp_path / "out"
    )
    assert code == 0, err

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    ranking = json.loads((tmp_path / "out" / "ranking.json").read_text(), parse_constant=refuse)
    assert ranking["layers"][0]["d_prime_high"] is None


def test_the_name_of_a_model_without_its_owner_is_answered_with_what_hub_ids_look_like(capsys):
    code, _, err = run(capsys, "rank", "--instruction", TITLE, "--n", 2, "--model", "gpt2")
    assert code == 2
    [line] = [line for line in err.splitlines() if line.startswith("steerlens: ")]
    assert "unknown model 'gpt2'" in line and "openai-community/gpt2" in line


def test_help_does_not_wait_for_torch():
    code = """
import sys
from steerlens.cli.main import main
assert main(["--help"]) == 0 and main(["rank", "--help"]) == 0 and main(["--version"]) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_control_c_ends_with_code_130_and_one_line(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("steerlens.models.loading.available_models", interrupt)
    assert run(capsys, "models") == (130, "", "steerlens: interrupted\n")
