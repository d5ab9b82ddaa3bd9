"""Claims about the store of finished pieces: what a crash, a bad disk or a full one can cost."""

import errno
import logging
import os
import resource
import shutil
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from run_example import NAMES, PIECES, compute, final_bytes, half_run, open_run, whole_run, work
from stored_pieces import stored_pieces

from steerlens.errors import FileFormatError, SteerlensError
from steerlens.runs import read_manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    return whole_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """The folder of a run with its first six pieces."""
    return half_run(tmp_path / "half")


def killed_at(folder: Path, copy: Path) -> Path:
    """The files of an open run at this moment, as a SIGKILL would leave them."""
    shutil.copytree(folder, copy)
    return copy


def test_what_is_finished_survives_a_kill_at_any_moment(tmp_path: Path, whole: Path) -> None:
    copies = []
    with open_run(tmp_path / "run") as run:
        work(run, lambda name: copies.append(killed_at(run.folder, tmp_path / name)))
    assert len(copies) == len(PIECES)

    for number, copy in enumerate(copies[::3]):
        with open_run(copy, resume=True) as run:
            assert run.names == tuple(NAMES[: 3 * number + 1])
            assert work(run) == len(PIECES) - 3 * number - 1
        assert final_bytes(copy) == final_bytes(whole)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_a_torn_write_ahead_log_costs_only_the_pieces_it_held(
    tmp_path: Path, whole: Path, fraction: float
) -> None:
    with open_run(tmp_path / "run") as run:
        for name, piece in zip(NAMES[:6], PIECES, strict=False):
            run.finish(name, compute(piece))
        copy = killed_at(run.folder, tmp_path / "copy")
    log = copy / "run.sqlite-wal"
    os.truncate(log, round(fraction * log.stat().st_size))

    with open_run(copy, resume=True) as run:
        n_kept = len(run.names)
        assert run.names == tuple(NAMES[:n_kept])
        assert work(run) == len(PIECES) - n_kept
    assert final_bytes(copy) == final_bytes(whole)


def test_a_damaged_piece_is_computed_again_with_one_warning(
    half: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = half / "run.sqlite"
    store.write_bytes(store.read_bytes().replace(b"Zeile 0", b"Zeile\xff0", 1))

    with caplog.at_level(logging.WARNING), open_run(half, resume=True) as run:
        assert work(run) == len(PIECES) - 5
    assert caplog.text.count("is damaged and is computed again") == 1
    assert final_bytes(half) == final_bytes(whole)

    caplog.clear()
    with open_run(half, resume=True) as run:
        assert work(run) == 0
    assert caplog.text == ""


@pytest.mark.parametrize("damage", [b"no database", b"SQLite format 3\0" + bytes(5000)])
def test_a_store_that_is_none_is_refused_in_a_sentence(half: Path, damage: bytes) -> None:
    (half / "run.sqlite").write_bytes(damage)
    for read in (lambda: open_run(half, resume=True), lambda: read_manifest(half)):
        with pytest.raises(FileFormatError, match="is damaged or no store of a run"):
            read()


def test_of_a_piece_finished_twice_the_first_records_count(half: Path) -> None:
    with open_run(half, resume=True) as run:
        before = run.finished(NAMES[3])
        assert run.finish(NAMES[3], [{"late": "worker"}]) == before != []
    with open_run(half, resume=True) as run:
        assert run.finished(NAMES[3]) == before


def test_the_manifest_is_read_while_a_process_is_at_work_and_a_closed_run_is_one_file(
    half: Path,
) -> None:
    with open_run(half, resume=True) as run:
        run.finish(NAMES[6], compute(PIECES[6]))
        assert not read_manifest(half).complete and len(stored_pieces(half)) == 7
        run.conclude()
        assert read_manifest(half).complete
    assert sorted(path.name for path in half.iterdir()) == [".lock", "manifest.json", "run.sqlite"]
    assert (half / "manifest.json").read_text() == run_manifest_text(half)


def run_manifest_text(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "run.sqlite")) as store:
        return store.execute("SELECT record FROM manifest").fetchone()[0]


def test_a_file_that_may_not_grow_is_told_and_loses_no_piece(half: Path, whole: Path) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_run(half, resume=True) as run:
        written = (half / "run.sqlite-wal").stat().st_size
        # The kernel takes the first 20 bytes of what is written next and refuses the rest.
        resource.setrlimit(resource.RLIMIT_FSIZE, (written + 20, unlimited[1]))
        try:
            with pytest.raises(SteerlensError, match=r"cannot write .*space left.*--resume"):
                run.finish(NAMES[6], compute(PIECES[6]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert run.finished(NAMES[6]) is None and len(run.names) == 6
        run.finish(NAMES[6], compute(PIECES[6]))

    with open_run(half, resume=True) as run:
        assert work(run) == len(PIECES) - 7
    assert final_bytes(half) == final_bytes(whole)


def test_a_full_disk_is_told(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_run(half, resume=True) as run:
        run.write_json("summary.json", 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(SteerlensError, match=r"no space left for .*summary.json"):
                run.write_json("summary.json", 2)
        [(pages,)] = run._opened().execute("PRAGMA page_count")
        run._opened().execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(SteerlensError, match=r"no space left for .*sqlite.*with --resume"):
            run.finish("large", [{"response": "x" * 100_000}])
        assert run.finished("large") is None
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
