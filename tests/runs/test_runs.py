"""Claims about run folders: nothing finished is lost, and the end does not show the way."""

import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import run_example
from run_example import (
    NAMES,
    PIECES,
    SETTINGS,
    compute,
    final_bytes,
    half_run,
    open_run,
    whole_run,
    work,
)
from stored_pieces import stored_pieces

from steerlens.cli.main import main
from steerlens.errors import FileFormatError, SteerlensError
from steerlens.runs import Run, read_manifest

PROGRAM = Path(run_example.__file__)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    return whole_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """The folder of a run with its first six pieces."""
    return half_run(tmp_path / "half")


# ── What stands in the folder ────────────────────────────────────────────────────────────────────


def test_final_files_are_what_the_json_module_makes_of_the_records(whole: Path) -> None:
    records = [record for piece in PIECES for record in compute(piece)]
    for record in records:  # what JSON cannot hold
        record["span"] = list(record["span"])
        if record["perplexity"] != record["perplexity"]:
            record["perplexity"] = None

    text = (whole / "responses.jsonl").read_text(encoding="utf-8")
    assert text.splitlines() == text.split("\n")[:-1]  # no line end hides in a response
    assert [json.loads(line) for line in text.splitlines()] == records
    assert "„schräg“" in text

    known = [r["perplexity"] for r in records if r["perplexity"] is not None]
    summary = {"n": len(records), "perplexity": sum(known) / len(known)}
    assert (whole / "summary.json").read_text() == json.dumps(summary, indent=2) + "\n"


def test_the_manifest_says_what_the_run_is_and_that_it_is_complete(whole: Path) -> None:
    record = json.loads((whole / "manifest.json").read_text())

    assert record["kind"] == "example" and record["state"] == "complete"
    assert record["settings"] == SETTINGS
    assert (record["model"], record["weights_hash"]) == ("tiny", "sha256:00")
    assert record["versions"]["torch"] == version("torch")
    sorted_settings = json.dumps(SETTINGS, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(sorted_settings.encode()).hexdigest()
    assert record["settings_hash"] == f"sha256:{expected}"
    assert read_manifest(whole).complete


# ── Interruptions ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A folder whose process was killed at its fifth piece, the names it had announced, and what a
    second process was told while the first was alive."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    command = [sys.executable, str(PROGRAM), str(folder), "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        announced = [process.stdout.readline().strip() for _ in range(5)]
        with pytest.raises(SteerlensError) as refusal:
            open_run(folder, resume=True)
        process.send_signal(signal.SIGKILL)
        announced += process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL
    return folder, announced, str(refusal.value)


def test_a_killed_run_ends_with_the_same_bytes_and_computes_nothing_twice(
    killed: tuple[Path, list[str], str], whole: Path
) -> None:
    folder, announced, _ = killed
    assert read_manifest(folder).complete is False

    with open_run(folder, resume=True) as run:
        found = run.names
        computed = work(run)

    # The piece that was just finished may not have been announced any more.
    assert list(found[: len(announced)]) == announced and len(found) - len(announced) in (0, 1)
    assert 0 < computed == len(PIECES) - len(found)
    assert final_bytes(folder) == final_bytes(whole)
    assert list(stored_pieces(folder).items()) == list(stored_pieces(whole).items())
    assert read_manifest(folder).complete


def test_a_second_process_is_refused_while_the_first_is_alive(
    killed: tuple[Path, list[str], str],
) -> None:
    # That it is accepted after the SIGKILL is what the claim above rests on.
    folder, _, refusal = killed
    assert "another process is at work in" in refusal and str(folder) in refusal


def test_a_process_killed_in_a_final_file_leaves_the_old_one_and_no_litter(
    tmp_path: Path, whole: Path
) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path / "run"), "0", "--die-in-final-file"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert final_bytes(tmp_path / "run") == final_bytes(whole)
    assert len(list((tmp_path / "run").glob(".*.tmp"))) == 1

    with open_run(tmp_path / "run", resume=True) as run:
        assert work(run) == 0

    assert final_bytes(tmp_path / "run") == final_bytes(whole)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in whole.iterdir()}


def test_ctrl_c_leaves_the_folder_free_and_resumable(tmp_path: Path, whole: Path) -> None:
    def interrupt(name: str) -> None:
        if name == NAMES[7]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "run") as run:
        work(run, interrupt)
    with pytest.raises(SteerlensError, match="has been closed"):
        run.finish("late", [])

    with open_run(tmp_path / "run", resume=True) as run:
        assert work(run) == len(PIECES) - 8
    assert final_bytes(tmp_path / "run") == final_bytes(whole)


# ── What is refused at the door ──────────────────────────────────────────────────────────────────


def test_a_folder_with_a_run_is_continued_only_on_request(half: Path) -> None:
    with pytest.raises(SteerlensError, match="holds a run already; add --resume"):
        open_run(half)
    with open_run(half, resume=True) as run:
        assert len(run.names) == 6


def test_other_settings_are_refused_with_each_difference_named(tmp_path: Path) -> None:
    settings = {"n": 64, "judge": {"model": "a", "batch": 8}, "keys": list(range(200)), "old": 1.0}
    Run.open(tmp_path, kind="search", settings=settings).close()
    before = (tmp_path / "manifest.json").read_bytes()
    other = {
        "n": 32,
        "judge": {"model": "b", "batch": 8},
        "keys": [*range(150), 0],
        "old": 1,
        "new": None,
    }

    with pytest.raises(SteerlensError) as refusal:
        Run.open(tmp_path, kind="search", settings=other, resume=True)

    text = str(refusal.value)
    assert "n: was 64, now 32" in text
    assert 'judge.model: was "a", now "b"' in text
    assert "new: was not set, now null" in text
    assert "147,148,149,150," in text and "147,148,149,0]" in text  # where the lists part
    assert "batch:" not in text and "old:" not in text  # 1.0 and 1 are the same
    assert (tmp_path / "manifest.json").read_bytes() == before

    many = {f"s{number}": number for number in range(9)}
    with pytest.raises(SteerlensError, match=r"and 9 more\)"):  # 9 new and 5 gone, 5 shown
        Run.open(tmp_path, kind="search", settings=many, resume=True)


def changed_manifest(folder: Path, **changes: Any) -> None:
    """Write other fields into the manifest that a run is resumed from."""
    with closing(sqlite3.connect(folder / "run.sqlite")) as store, store:
        [(text,)] = store.execute("SELECT record FROM manifest")
        store.execute(
            "UPDATE manifest SET record = ?", [json.dumps({**json.loads(text), **changes})]
        )


def test_another_kind_schema_or_minor_version_is_refused_and_other_libraries_are_noted(
    half: Path,
) -> None:
    record = json.loads((half / "manifest.json").read_text())

    with pytest.raises(SteerlensError, match="holds a run of kind 'example', not 'search'"):
        Run.open(half, kind="search", settings=SETTINGS, resume=True)

    for change, message in (
        ({"schema": "steerlens-run/99"}, "has the run schema 'steerlens-run/99'"),
        ({"resumed": None}, "is damaged or no store of a run"),
        ({"versions": {**record["versions"], "steerlens": "0.0.9"}}, "was made with steerlens 0.0"),
    ):
        changed_manifest(half, **{**record, **change})
        with pytest.raises(SteerlensError, match=message):
            open_run(half, resume=True)

    major, minor, *_ = record["versions"]["steerlens"].split(".")
    older = {**record["versions"], "steerlens": f"{major}.{minor}.99", "torch": "2.6.0"}
    changed_manifest(half, **{**record, "versions": older})
    open_run(half, resume=True).close()
    after = json.loads((half / "manifest.json").read_text())
    assert after["versions"] == older
    assert after["resumed"][-1]["versions"] == record["versions"]
    assert after["resumed"][-1]["pieces"] == 6


def test_a_folder_of_an_earlier_version_and_a_url_are_refused_with_what_to_do(
    tmp_path: Path,
) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": "steerlens-run/1"}')
    (tmp_path / "pieces.jsonl").touch()
    for resume in (False, True):
        with pytest.raises(FileFormatError, match=r"earlier versions .* with another folder"):
            open_run(tmp_path, resume=resume)
    with pytest.raises(FileFormatError, match="earlier versions"):
        read_manifest(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "pieces.jsonl"]

    for url in ("s3://bucket/run", tmp_path.as_uri()):
        with pytest.raises(SteerlensError, match=r"is a URL; give a folder of this machine"):
            open_run(url)


def test_a_folder_with_other_files_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")

    for resume in (False, True):
        with pytest.raises(SteerlensError, match=r"holds files but no run \(thesis.tex\)"):
            open_run(tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    with pytest.raises(SteerlensError, match=r"thesis.tex is a file"):
        open_run(tmp_path / "thesis.tex")
    with pytest.raises(FileFormatError, match="no run in"):
        read_manifest(tmp_path)


def test_an_empty_folder_and_one_whose_first_process_died_at_once_start_a_run(
    tmp_path: Path,
) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "run.sqlite").touch()
    (tmp_path / ".manifest.json.abc_1234.tmp").write_text('{"ki')

    with open_run(tmp_path, resume=True) as run:
        assert run.names == () and run.manifest.resumed == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "manifest.json", "run.sqlite"]


def test_a_folder_can_be_opened_once_at_a_time_in_a_process_too(half: Path) -> None:
    with (
        open_run(half, resume=True),
        pytest.raises(SteerlensError, match="another process is at work"),
    ):
        open_run(half, resume=True)
    with pytest.raises(SteerlensError, match="other settings"):
        open_run(half, resume=True, n=1)
    open_run(half, resume=True).close()  # a refusal keeps no lock


def test_final_files_stay_in_the_folder_and_off_the_runs_own_files(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        assert run.write_json("vectors/title.json", {"b": 1, "a": 2}).parent.name == "vectors"
        for name in ("manifest.json", "./run.sqlite", ".lock"):
            with pytest.raises(SteerlensError, match="kept by the run itself"):
                run.write_json(name, {})
        for name in ("../escaped.json", str(tmp_path / "absolute.json"), ""):
            with pytest.raises(SteerlensError, match="no file inside the run's folder"):
                run.write_json(name, {})
        with pytest.raises(SteerlensError, match="piece missing is not finished"):
            run.write_jsonl("responses.jsonl", run.records(["missing"]))
        assert not run.path("responses.jsonl").exists()


@pytest.mark.parametrize("command", ["search", "evaluate", "rank"])
def test_commands_refuse_a_url_before_anything_is_loaded(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with suppress(SystemExit):
        main([command, "--instruction", "detectable_format:title", "--out", "s3://bucket/x"])
    assert "s3://bucket/x is a URL; give a" in capsys.readouterr().err
    assert list(Path().iterdir()) == []
