"""Claims about long commands that are killed: resumed, they give an unbroken run's files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stored_pieces import wait_for_pieces

from steerlens.cli.main import main


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """An evaluation file whose prompts fit a model of 128 bytes."""
    file = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [
        {
            "key": key,
            "prompt": f"Name {key}. No commas.",
            "prompt_without_instruction": f"Name {key}.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for key in range(300)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def command(tiny_folder: Path, prompts: Path, out: Path) -> list[str]:
    """Those prompts, with and without the instruction, answered in several pieces."""
    sizes = ["--max-new-tokens", "24", "--batch-size", "32", "--judge", "none"]
    model = ["--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu"]
    return ["evaluate", *model, "--data", str(prompts), *sizes, "--out", str(out)]


@pytest.fixture(scope="module")
def unbroken(tiny_folder, prompts, tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(command(tiny_folder, prompts, out)) == 0
    return out


def killed_after_a_piece(arguments: list[str], out: Path) -> None:
    """Start the command in a process of its own and SIGKILL it once its first piece is kept."""
    process = subprocess.Popen(
        [sys.executable, "-m", "steerlens.cli.main", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    wait_for_pieces(process, out, 1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_evaluation_resumes_to_the_files_of_an_unbroken_one(
    tiny_folder, prompts, unbroken, tmp_path, capsys
):
    # Given an evaluation killed in the middle,
    out = tmp_path / "run"
    killed_after_a_piece(command(tiny_folder, prompts, out), out)
    assert not (out / "summary.json").exists()
    # when it is started again without saying so, then it is refused and nothing is lost,
    assert main(command(tiny_folder, prompts, out)) == 2
    assert "--resume" in capsys.readouterr().err
    # and resumed it gives the same files.
    assert main([*command(tiny_folder, prompts, out), "--resume"]) == 0
    for name in ("responses.jsonl", "summary.json", "evaluation.html"):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_folder_made_with_other_settings_is_refused_with_the_difference(
    tiny_folder, prompts, unbroken, capsys
):
    other = [*command(tiny_folder, prompts, unbroken), "--resume", "--seed", "7"]
    assert main(other) == 2
    assert "seed" in capsys.readouterr().err
