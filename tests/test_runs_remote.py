"""Claims about run folders at a URL: the files of a folder, also after an interruption."""

import uuid
from pathlib import Path

import fsspec
import pytest
from run_example import FINAL_FILES, NAMES, PIECES, compute, open_run, whole_run, work

from steerlens.cli.main import main
from steerlens.errors import FileFormatError, SteerlensError
from steerlens.files.locations import place
from steerlens.runs.remote import RemoteFolder, fetched, keep_text


@pytest.fixture
def url() -> str:
    """A folder in this process's memory that no other test uses."""
    return f"memory://{uuid.uuid4().hex}/run"


def stop_after(n: int, url: str) -> None:
    """Begin the example's run there and leave it when so many pieces are finished."""
    with open_run(url) as run:
        for name, piece in list(zip(NAMES, PIECES, strict=True))[:n]:
            run.finish(name, compute(piece))


def test_an_interrupted_run_at_a_url_ends_with_the_files_of_a_folder(url, tmp_path):
    whole = whole_run(tmp_path / "whole")
    # Given a run that is interrupted twice, each time by the end of its process,
    stop_after(4, url)
    with open_run(url, resume=True) as run:
        assert run.names == tuple(NAMES[:4])
        run.finish(NAMES[4], compute(PIECES[4]))
        staging = run.folder
    assert not staging.exists()
    # when it is resumed, then only the rest is computed
    with open_run(url, resume=True) as run:
        run.path("vectors").mkdir()
        run.path("vectors/one.bin").write_bytes(b"\x01\x02")
        assert work(run) == len(PIECES) - 5
    # and the URL holds what the folder holds, the pieces in one file.
    names = RemoteFolder(url).names()
    assert names == sorted([*FINAL_FILES, "manifest.json", "pieces.jsonl", "vectors/one.bin"])
    with fetched(url) as here:
        for name in (*FINAL_FILES, "pieces.jsonl"):
            assert (here / name).read_bytes() == (whole / name).read_bytes()
        assert (here / "vectors" / "one.bin").read_bytes() == b"\x01\x02"


def test_a_piece_is_at_the_url_when_finish_returns(url):
    with open_run(url) as run:
        run.finish(NAMES[3], compute(PIECES[3]))
        memory = fsspec.filesystem("memory")
        assert any(NAMES[3].encode() in memory.cat_file(one) for one in memory.find(url))


def test_a_list_is_taken_from_the_url_before_the_files_it_names_are_sent_again(url):
    def write(content: bytes):
        return lambda path: (path.parent.mkdir(exist_ok=True), path.write_bytes(content))

    with open_run(url) as run:
        run.write_file("vectors/one.bin", write(b"first"))
        run.write_json("plan.json", {"vectors": ["one"]})
        run.conclude()
    with open_run(url, resume=True) as run:
        run.retract("plan.json")
        assert "plan.json" not in RemoteFolder(url).names()
        run.write_file("vectors/one.bin", write(b"second"))
        with fetched(url) as here:
            assert (here / "vectors" / "one.bin").read_bytes() == b"second"
        run.retract("plan.json")


def test_what_stands_at_a_url_is_respected(url):
    stop_after(1, url)
    with pytest.raises(SteerlensError, match=rf"{url} holds a run already; add --resume"):
        open_run(url)
    with pytest.raises(SteerlensError, match=r"n: was 12, now 13"):
        open_run(url, resume=True, n=13)
    other = f"{url}-other"
    assert keep_text(other, "thesis.tex", "…") == f"{other}/thesis.tex"
    with pytest.raises(SteerlensError, match=r"holds files but no run \(thesis.tex\)"):
        open_run(other)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("s4://bucket/run", r"cannot use s4://bucket/run: Protocol not known: s4"),
        ("file://elsewhere/run", "names a file of the machine elsewhere"),
    ],
)
def test_a_url_that_cannot_be_used_is_one_sentence(where, words):
    with pytest.raises(SteerlensError, match=words):
        open_run(where)


def test_a_file_url_is_a_folder_and_nothing_at_a_url_is_said(tmp_path, url):
    assert place(tmp_path.as_uri()) == tmp_path
    whole_run(tmp_path.as_uri() + "/run")
    assert (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(FileFormatError, match=f"nothing at {url}"), fetched(url):
        pass


def test_the_commands_take_a_url_only_where_they_can_write_to_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["rank", "--instruction", "detectable_format:title", "--out", "s3://bucket/x"])
    assert left.value.code == 2
    assert "only search and evaluate write to one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "--instruction", "detectable_format:title", "--out", "file://far/x"])
    assert "of the machine far" in capsys.readouterr().err
    assert list(Path().iterdir()) == []
