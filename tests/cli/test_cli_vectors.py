"""Claims about the commands for vectors: libraries, formats, calibration and transfer."""

import json

import pytest
import torch
from interop_examples import assert_same_vector
from steering_examples import random_vector
from tiny_models import write_tiny_folder

from steerlens.cli.main import main
from steerlens.cli.vectors import FORMATS
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats import load_vector, vector_format
from steerlens.vectors.library import load_library

PAIRS = "\n".join(
    json.dumps({"instructed": f"{one} in caps", "uninstructed": one})
    for one in ("a tree", "a bird", "a fish", "a fruit")
)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(PAIRS)
    return path


def run(capsys, *argv):
    code = main([str(part) for part in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- vector ---


def test_a_library_and_its_exports_hold_the_same_vectors(capsys, tmp_path):
    names = ["detectable_format:title", "startend:quotation"]
    code, out, err = run(
        capsys, "vector", "--instruction", names[0], "--instruction", names[1], "--n", 2,
        "--out", tmp_path / "lib", "--format", "gguf", "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    library = load_library(tmp_path / "lib")
    assert list(library.names) == names == [one["name"] for one in result["vectors"]]
    for name, exported in zip(names, result["exported"], strict=True):
        assert_same_vector(load_vector(tmp_path / "lib" / exported), library.load(name))
        assert (tmp_path / "lib" / library.entries[name]["card"]).is_file()


@pytest.mark.parametrize("form", FORMATS)
def test_a_vector_in_any_format_steers_on_the_command_line(
    capsys, tmp_path, tiny_folder, pairs, form
):
    path = tmp_path / f"v{FORMATS[form]}"
    code, out, err = run(
        capsys, "vector", "--model", tiny_folder, "--pairs", pairs, "--format", form,
        "--estimator", "pca_of_differences", "--out", path, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["metadata"]["estimator"] == "pca_of_differences"
    assert vector_format(path) == {"steerlens": "steerlens"}.get(
        form, "gguf" if path.suffix == ".gguf" else "plain"
    )
    code, out, err = run(
        capsys, "steer", "--model", tiny_folder, "--vector", path, "--layer", 1, "--prompt", "Hi",
        "--max-new-tokens", 2, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["effects"]
    steered = ["steer", "--model", tiny_folder, "--vector", path, "--layer", 1, "--json"]
    code, out, err = run(capsys, *steered, "--token-ids", "3, 4, 5", "--max-new-tokens", 2)
    assert code == 0, err
    rows = [row for row in json.loads(out)["effects"] if row["role"] == "prompt"]
    assert [row["token"] for row in rows] == ["!", '"', "#"]
    for given in (["--token-ids", "3,x"], ["--token-ids", "3", "--prompt", "Hi"]):
        assert run(capsys, *steered, *given)[0] == 2


def test_a_vector_without_targets_is_added_unless_told_otherwise(capsys, tmp_path, tiny_folder):
    # Given a file of another tool, which knows shifts only
    from safetensors.torch import save_file

    path = tmp_path / "foreign.safetensors"
    save_file({"layer_1": torch.ones(16)}, path)
    steer = ["steer", "--model", tiny_folder, "--vector", path, "--layer", 1, "--prompt", "Hi"]

    # When it steers by default, it is added
    code, out, err = run(capsys, *steer, "--max-new-tokens", 1)
    assert code == 0, err
    assert "add" in out
    # And what it cannot do is refused with the reason
    code, _, err = run(capsys, *steer, "--operation", "set_projection")
    assert code == 2 and "needs a target" in err


# --- convert ---


def test_converting_there_and_back_changes_nothing(capsys, tmp_path):
    vector = random_vector(3, 8)
    path = vector.save(tmp_path / "v.safetensors")
    for form, ending in FORMATS.items():
        there, back = tmp_path / f"{form}{ending}", tmp_path / f"back-{form}.safetensors"
        assert run(capsys, "convert", "--vector", path, "--out", there, "--format", form)[0] == 0
        code, out, err = run(capsys, "convert", "--vector", there, "--out", back, "--json")
        assert code == 0, err
        assert json.loads(out)["layers"] == [0, 1, 2]
        assert_same_vector(SteeringVector.load(back), vector)


def test_one_layer_can_be_converted_alone(capsys, tmp_path):
    path = random_vector(3, 8).save(tmp_path / "v.safetensors")
    out = tmp_path / "v.gguf"
    assert run(capsys, "convert", "--vector", path, "--out", out, "--format", "gguf",
               "--layer", 2)[0] == 0  # fmt: skip
    assert load_vector(out).layers == (2,)


# --- calibrate ---


def test_calibrate_saves_the_strength_with_the_vector(capsys, tmp_path, tiny_folder):
    vector = random_vector(3, 16).save(tmp_path / "v.safetensors")
    out = tmp_path / "calibrated.safetensors"
    code, text, err = run(
        capsys, "calibrate", "--model", tiny_folder, "--chat-format", "plain", "--vector", vector,
        "--layer", 1, "--operation", "add", "--target-kl", 0.01, "--n", 2, "--max-new-tokens", 2,
        "--out", out, "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(text)
    assert found["kl"] == pytest.approx(0.01, rel=0.02)
    [saved] = SteeringVector.load(out).metadata["calibration"]
    assert saved["strength"] == pytest.approx(found["strength"])


def test_calibrate_by_an_instruction_counts_what_follows_it(capsys, tmp_path, tiny_folder):
    vector = random_vector(3, 16).save(tmp_path / "v.safetensors")
    options = ["--model", tiny_folder, "--chat-format", "plain", "--vector", vector, "--layer", 1]
    options += ["--operation", "add", "--n", 2]
    code, text, err = run(
        capsys, "calibrate", *options, "--instruction", "detectable_format:title",
        "--max-new-tokens", 2, "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(text)
    assert not found["reached"] and found["curve"]["rate"] == [0.0] * 8
    code, _, err = run(capsys, "calibrate", *options, "--target-rate", 0.5)
    assert code == 2 and "--task" in err


# --- transfer ---


def test_transfer_writes_a_vector_measured_on_the_target(capsys, tmp_path, tiny_folder, pairs):
    # Given a vector of one tiny model, and a copy with other weights
    other = write_tiny_folder(tmp_path / "other", seed=1)
    path, out = tmp_path / "v.safetensors", tmp_path / "w.safetensors"
    assert run(capsys, "vector", "--model", tiny_folder, "--pairs", pairs, "--out", path)[0] == 0

    # When it is transferred
    code, text, err = run(
        capsys, "transfer", "--vector", path, "--model", other, "--pairs", pairs, "--out", out,
        "--json",
    )  # fmt: skip

    # Then it is a vector of the copy, unless its direction means nothing there
    assert code == 0, err
    result = json.loads(text)
    assert result["method"] == "same-shape"
    usable = [row["layer"] for row in result["layers"] if row["usable"]]
    assert list(SteeringVector.load(out).layers) == usable
    assert SteeringVector.load(out).metadata["model"] == str(other)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["vector", "--pairs", "p.jsonl", "--out", "v", "--format", "ggfu"], "did you mean 'gguf'"),
        (["vector", "--all", "--out", "v.gguf"], "exactly one --task, or a folder"),
        (["convert", "--vector", "v", "--out", "w", "--format", "x"], "unknown format"),
        (["convert", "--vector", "none", "--out", "w"], "no file at none"),
        (["transfer", "--vector", "v", "--out", "w", "--method", "ridge"], "needs --source"),
        (["transfer", "--vector", "v", "--out", "w", "--method", "rigde"], "did you mean 'ridge'"),
        (["transfer", "--vector", "v", "--out", "w", "--method", "same-shape", "--source", "x"],
         "takes no --source"),
        (["calibrate", "--vector", "none", "--layer", "1"], "no file at none"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_code_2_and_one_line(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_estimator_that_does_not_exist_is_refused_before_a_model_is_loaded(capsys, pairs):
    code, _, err = run(
        capsys, "vector", "--pairs", pairs, "--out", "v.safetensors", "--estimator", "lda",
        "--model", "no-such-model",
    )  # fmt: skip
    assert code == 2 and "unknown estimator 'lda'" in err


def test_a_vector_that_carries_nothing_known_needs_pairs_to_transfer(capsys, tmp_path):
    path = random_vector(3, 16).save(tmp_path / "v.safetensors")
    code, _, err = run(capsys, "transfer", "--vector", path, "--out", tmp_path / "w.safetensors")
    assert code == 2 and "give --task or --pairs" in err
