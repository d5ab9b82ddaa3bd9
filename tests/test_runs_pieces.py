"""Claims about the log of finished pieces: what a crash, a bad disk or a full one can cost."""

import errno
import hashlib
import json
import logging
import os
import resource
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_example import NAMES, PIECES, compute, final_bytes, half_run, open_run, whole_run, work

from steerlens.errors import SteerlensError
from steerlens.runs import read_manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    return whole_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """The folder of a run with its first six pieces."""
    return half_run(tmp_path / "half")


@contextmanager
def changed_log(whole: Path, log: bytes) -> Iterator[Path]:
    """A copy of the folder with another log, on a disk that need not be waited for."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(os, "fsync", lambda _: None)
        folder = Path(name)
        (folder / "manifest.json").write_bytes((whole / "manifest.json").read_bytes())
        (folder / "pieces.jsonl").write_bytes(log)
        yield folder


def test_every_line_of_the_log_is_json_that_begins_with_the_hash_of_its_rest(whole: Path) -> None:
    lines = (whole / "pieces.jsonl").read_bytes().splitlines()

    assert [json.loads(line)["piece"] for line in lines] == NAMES
    for line in lines:
        rest = line[line.index(b'"piece"') :]
        assert json.loads(line)["sha256"] == hashlib.sha256(rest).hexdigest()


@given(fraction=st.floats(0, 1), junk=st.sampled_from([b"", b"\0" * 40, b'{"sha256": "']))
@settings(max_examples=40, deadline=None)
def test_any_beginning_of_the_log_resumes_to_the_same_pieces(
    whole: Path, fraction: float, junk: bytes
) -> None:
    log = (whole / "pieces.jsonl").read_bytes()
    prefix = log[: round(fraction * len(log))]
    with changed_log(whole, prefix + junk) as folder:
        with open_run(folder, resume=True) as run:
            assert run.names == tuple(NAMES[: prefix.count(b"\n")])
            assert work(run) == len(PIECES) - prefix.count(b"\n")

        assert final_bytes(folder) == final_bytes(whole)
        assert (folder / "pieces.jsonl").read_bytes() == log


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_one_changed_byte_costs_at_most_the_pieces_it_touches(
    whole: Path, place: float, byte: int
) -> None:
    log = bytearray((whole / "pieces.jsonl").read_bytes())
    log[int(place * len(log))] = byte
    with changed_log(whole, bytes(log)) as folder:
        with open_run(folder, resume=True) as run:
            assert work(run) <= 2  # two, where a line end was lost

        assert final_bytes(folder) == final_bytes(whole)


def test_a_damaged_line_in_the_middle_is_dropped_with_one_warning(
    half: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = half / "pieces.jsonl"
    log.write_bytes(log.read_bytes().replace(b"Zeile 0", b"Seile 0", 1))

    with caplog.at_level(logging.WARNING), open_run(half, resume=True) as run:
        assert run.finished(NAMES[1]) is None
        assert run.names == (NAMES[0], *NAMES[2:6])
        assert work(run) == len(PIECES) - 5
    assert "1 damaged line was dropped" in caplog.text
    assert read_manifest(half).resumed[-1]["damaged_lines"] == 1
    assert final_bytes(half) == final_bytes(whole)

    caplog.clear()
    with open_run(half, resume=True) as run:
        assert work(run) == 0
    assert caplog.text == ""


def test_of_a_piece_finished_twice_the_first_records_count(half: Path) -> None:
    first = half / "pieces.jsonl"
    lines = first.read_bytes().splitlines(keepends=True)
    with open_run(half, resume=True) as run:
        before = run.finished(NAMES[3])
        assert run.finish(NAMES[3], [{"late": "worker"}]) == before
        assert first.read_bytes() == b"".join(lines)

    body = f'"piece": "{NAMES[3]}", "records": []}}'.encode()
    first.write_bytes(
        b"".join(lines)
        + b'{"sha256": "%s", %s\n' % (hashlib.sha256(body).hexdigest().encode(), body)
    )
    with open_run(half, resume=True) as run:
        assert run.finished(NAMES[3]) == before != []


def test_an_interrupt_while_a_line_is_written_leaves_no_half_of_it(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (half / "pieces.jsonl").read_bytes()

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with open_run(half, resume=True) as run:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "fsync", interrupted)
            run.finish(NAMES[6], compute(PIECES[6]))
        assert (half / "pieces.jsonl").read_bytes() == before
        run.finish(NAMES[6], compute(PIECES[6]))
    assert (half / "pieces.jsonl").read_bytes().count(b"\n") == 7


def test_a_file_that_may_not_grow_is_told_and_keeps_no_torn_line(half: Path, whole: Path) -> None:
    before = (half / "pieces.jsonl").read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_run(half, resume=True) as run:
        # The kernel takes the first 20 bytes of the line and refuses the rest.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, unlimited[1]))
        try:
            with pytest.raises(SteerlensError, match=r"no space left.*resume with --resume"):
                run.finish(NAMES[6], compute(PIECES[6]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert (half / "pieces.jsonl").read_bytes() == before

    with open_run(half, resume=True) as run:
        assert work(run) == len(PIECES) - 6
    assert final_bytes(half) == final_bytes(whole)


def test_a_disk_that_is_full_only_when_synchronised_is_told_too(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (half / "pieces.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_run(half, resume=True) as run:
        run.write_json("summary.json", 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(SteerlensError, match=r"no space left for .*pieces.jsonl"):
                run.finish(NAMES[6], compute(PIECES[6]))
            with pytest.raises(SteerlensError, match=r"no space left for .*summary.json"):
                run.write_json("summary.json", 2)
        assert run.finished(NAMES[6]) is None
    assert (half / "pieces.jsonl").read_bytes() == before
    assert (half / "summary.json").read_text() == "1\n"


def test_records_are_read_when_asked_for(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        for number in range(20):
            run.finish(f"p{number}", [{"response": str(number) * 500_000}])  # ASCII: 0.5 to 1 MB

    tracemalloc.start()
    try:
        with open_run(tmp_path / "run", resume=True) as run:
            lengths = [len(r["response"]) for r in run.records(f"p{n}" for n in range(20))]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(lengths) == 15_000_000
    assert peak < 7_500_000  # half of them
