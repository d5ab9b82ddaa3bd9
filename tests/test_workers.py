"""Workers: the files of the local engine, whatever happens to a worker; and clear refusals."""

import importlib.util
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from test_search import SMALL, TITLE

from steerlens.answers import Answerer, Piece, Question
from steerlens.cli import main
from steerlens.errors import SteerlensError
from steerlens.evaluation import EvaluationPrompt
from steerlens.evaluation.run import EvaluationSettings, evaluate
from steerlens.models import load_model
from steerlens.search import search
from steerlens.steering import Intervention, Steering
from steerlens.workers import WorkerSettings
from steerlens.workers.cluster import connected
from steerlens.workers.packing import pack, unpack
from steerlens.workers.pool import Pool, worker_pool

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")
TWO = WorkerSettings(workers=2, cpus=0.5)
FILES = ("responses.jsonl", "summary.json")


def steering(width: int = 16, layer: int = 1, seed: int = 0) -> Steering:
    direction = torch.nn.functional.normalize(
        torch.randn(width, generator=torch.Generator().manual_seed(seed)), dim=0
    )
    return Steering((Intervention(layer, direction, 1.0, 2.0, "add", 1.0, "all"),))


def pieces(n: int, n_rows: int = 4, n_tokens: int = 16) -> list[Piece]:
    one = steering()
    rows = [[Question(f"{p} {r}", one if r % 2 else None) for r in range(n_rows)] for p in range(n)]
    return [Piece(f"piece-{i}", tuple(row), n_tokens, 4) for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path):
    """A model of its own: the session's may have hooks of other tests."""
    return load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def pool(tiny):
    with worker_pool(tiny, TWO) as found:
        yield found


def test_a_direction_travels_once_and_comes_back_bit_by_bit():
    first, other = steering(seed=1), steering(seed=2)
    kept = {}
    packed = pack([first, None, other, first + other], kept.setdefault)
    assert len(kept) == 2
    again = unpack(packed, kept)
    assert again[1] is None
    assert [len(one.interventions) for one in again if one] == [1, 1, 2]
    assert torch.equal(again[3].interventions[1].direction, other.interventions[0].direction)


def test_without_ray_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SteerlensError, match=r"pip install 'steerlens\[ray\]'"):
        connected(TWO).__enter__()


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(SteerlensError, match="at least one worker"):
        WorkerSettings(workers=0)
    with pytest.raises(SteerlensError, match="at least 0"):
        WorkerSettings(cpus=-1)


@needs_ray
def test_too_few_resources_and_nobody_at_the_address_are_said_at_once():
    with pytest.raises(SteerlensError, match="this machine has"):
        connected(WorkerSettings(workers=4096, cpus=2)).__enter__()
    with pytest.raises(SteerlensError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        connected(WorkerSettings(address="127.0.0.1:1")).__enter__()


@needs_ray
def test_workers_answer_as_this_process_does(tiny, pool):
    asked = pieces(3)
    local = Answerer(tiny)
    for piece, records in pool.answers(asked):
        assert records == local._generate(piece.questions, piece.max_new_tokens)
    # The same direction in every row of every piece was sent once.
    assert pool.n_sent == 1


@needs_ray
def test_a_piece_wanted_twice_is_computed_once(pool):
    [piece] = pieces(1, n_tokens=64)
    assert pool._task(piece) is pool._task(piece)
    assert len(list(pool.answers([piece]))) == 1


@needs_ray
def test_a_poisonous_piece_is_set_aside_and_the_others_are_finished(pool):
    bad = Piece("poison", (Question("Hi", steering(width=7)),), 4, 4)
    found = []
    with pytest.raises(SteerlensError, match=r"1 of 3 pieces were set aside, the first is poison"):
        for piece, _ in pool.answers([bad, *pieces(2)]):
            found.append(piece.name)
    assert sorted(found) == ["piece-0", "piece-1"]
    assert "d_model 7" in pool.set_aside["poison"]


@needs_ray
def test_a_killed_worker_costs_its_piece_only(tiny, pool):
    asked = pieces(8, n_rows=16, n_tokens=80)
    found = {}
    before = pool.lost
    for piece, records in pool.answers(asked):
        if not found:
            os.kill(pool.members[0]["pid"], signal.SIGKILL)
        assert piece.name not in found
        found[piece.name] = records
    assert pool.lost == before + 1
    local = Answerer(tiny)
    for piece in asked:
        assert found[piece.name] == local._generate(piece.questions, piece.max_new_tokens)


@needs_ray
def test_a_piece_that_kills_every_worker_is_given_up(pool, monkeypatch):
    [piece] = pieces(1, n_rows=32, n_tokens=100)
    sent = Pool._sent

    def and_killed(self, actor, one):
        reference = sent(self, actor, one)
        threading.Timer(0.02, self._ray.kill, [actor]).start()
        return reference

    monkeypatch.setattr(Pool, "_sent", and_killed)
    with pytest.raises(SteerlensError, match=r"its worker died .* after 3 attempts"):
        list(pool.answers([piece]))
    monkeypatch.setattr(Pool, "_sent", sent)
    assert len(list(pool.answers(pieces(2)))) == 2


@needs_ray
def test_workers_of_other_versions_are_refused(pool, monkeypatch):
    other = {"steerlens": pool.members[0]["versions"]["steerlens"], "torch": "0.1"}
    monkeypatch.setattr("steerlens.workers.pool.library_versions", lambda: other)
    with pytest.raises(SteerlensError, match=r"has torch .*, this process 0\.1; install the same"):
        pool._checked(pool._actors[0])


@needs_ray
def test_a_model_workers_cannot_have_is_refused(tiny_folder, tmp_path):
    gone = tmp_path / "gone"
    gone.symlink_to(tiny_folder)
    model = load_model(gone, device="cpu")
    gone.unlink()
    with pytest.raises(SteerlensError, match="a worker cannot load"), worker_pool(model, TWO):
        pass


@needs_ray
def test_an_evaluation_whose_worker_is_killed_has_the_files_of_a_local_one(
    tiny, tmp_path, monkeypatch
):
    rows = [
        EvaluationPrompt(
            key=i,
            row=str(i),
            prompt=f"Name {i}. No commas.",
            instruction_ids=("punctuation:no_comma",),
            kwargs=({},),
            prompt_without_instruction=f"Name {i}.",
        )
        for i in range(40)
    ]
    settings = EvaluationSettings(max_new_tokens=40, batch_size=8, piece_rows=8)
    evaluate(tiny, rows, tmp_path / "local", None, settings, progress=False)
    kept = Answerer._keep
    killed = []

    def kill_one(self, name, records):
        if not killed:
            killed.append(self.elsewhere.members[1]["pid"])
            os.kill(killed[0], signal.SIGKILL)
        return kept(self, name, records)

    monkeypatch.setattr(Answerer, "_keep", kill_one)
    evaluate(tiny, rows, tmp_path / "ray", None, settings, progress=False, workers=TWO)
    assert killed
    for name in FILES:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


@needs_ray
def test_a_search_by_workers_writes_the_plan_of_a_local_one(model, tmp_path):
    names = [TITLE, "punctuation:no_comma"]
    search(model, names, tmp_path / "local", SMALL, progress=False)
    search(model, names, tmp_path / "ray", SMALL, progress=False, workers=TWO)
    local = sorted(p.relative_to(tmp_path / "local") for p in (tmp_path / "local").rglob("*.*"))
    for name in local:
        if name.name not in ("manifest.json", "pieces.jsonl", ".lock"):
            assert (tmp_path / "ray" / name).read_bytes() == (
                tmp_path / "local" / name
            ).read_bytes()


@needs_ray
def test_the_command_refuses_more_than_there_is_with_one_line(capsys, tmp_path, tiny_folder):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(
        '{"key": 1, "prompt": "Name a city.", "instruction_id_list": ["punctuation:no_comma"], '
        '"kwargs": [{}]}\n'
    )
    model = ["--model", str(tiny_folder), "--data", str(prompts), "--judge", "none"]
    workers = ["--engine", "ray", "--workers", "9999", "--out", str(tmp_path / "out")]
    code = main(["evaluate", *model, *workers])
    assert code == 2
    assert "ask for fewer with --workers" in capsys.readouterr().err
