"""Workers: the files of the local engine, whatever happens to a worker; and clear refusals."""

import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from small_search import SMALL, TITLE
from stored_pieces import stored_pieces, wait_for_pieces

from steerlens.activations.shards import shard_residuals
from steerlens.behaviour.answers import Answerer, Piece, Question
from steerlens.behaviour.judge import Judge
from steerlens.behaviour.plans import Plan
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.search import search
from steerlens.behaviour.search.halving import search_task
from steerlens.cli.main import main
from steerlens.errors import SteerlensError
from steerlens.models.loading import load_model
from steerlens.models.placement import Placement
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.tasks import Task
from steerlens.tasks.pairs import ContrastSet
from steerlens.workers import WorkerSettings
from steerlens.workers.cluster import _check_resources, _start, connected
from steerlens.workers.pool import _compact, worker_pool
from steerlens.workers.worker import ModelWorker, WorkerModels

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(
    not HAS_RAY, reason="Ray is not installed; pip install 'steerlens[ray]' (or [dev]) runs it"
)
ONE = WorkerSettings(workers=1, cpus=0.5)
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


def evaluation(tiny_folder: Path, data: Path, out: Path) -> list[str]:
    """The command that answers 96 prompts, with and without their instruction, in 12 pieces."""
    rows = [
        {
            "key": key,
            "prompt": f"Name {key}. No commas.",
            "prompt_without_instruction": f"Name {key}.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for key in range(96)
    ]
    (data / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = ["--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu"]
    sizes = ["--max-new-tokens", "40", "--batch-size", "8", "--piece-rows", "16"]
    rest = ["--judge", "none", "--out", str(out)]
    return ["evaluate", *model, "--data", str(data / "prompts.jsonl"), *sizes, *rest]


def worker_of(driver: subprocess.Popen) -> psutil.Process:
    """The worker of a driver; Ray gives its process the name of what it runs."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[0].startswith("ray::ModelWorker"):
                found.append(process)
    [worker] = found
    return worker


def wait_until_ended(processes: list[psutil.Process]) -> None:
    """Wait for processes that are not our children; a zombie has ended, whoever may collect it."""
    deadline = time.monotonic() + 300
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, f"{process} outlived its driver"
                time.sleep(0.05)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path):
    """A model of its own: the session's may have hooks of other tests."""
    return load_model(tiny_folder, device="cpu")


@pytest.fixture
def threads() -> Iterator[None]:
    """Sets torch's number of threads back, which a worker in this process changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pool(tiny):
    with worker_pool(tiny, TWO, Judge(tiny)) as found:
        yield found


def test_directions_are_sent_without_the_tensor_they_are_rows_of_and_once_per_piece():
    all_layers = torch.nn.functional.normalize(torch.randn(1000, 64), dim=1)
    row = Intervention(1, all_layers[3], 1.0, 2.0, "add", 1.0, "all")
    general = Intervention(2, write=all_layers[4] * 3, read=all_layers[5], gate="relu")
    one = Steering((row, general))
    piece = Piece("a", (Question("x", one), Question("y"), Question("z", one)), 4, 4)

    sent = pickle.loads(data := pickle.dumps(_compact(piece)))

    assert 10 * len(data) < len(pickle.dumps(piece))
    steerings = [question.steering for question in sent.questions]
    assert steerings[0] is steerings[2] and steerings[1] is None
    for ours, theirs in zip(steerings[0].interventions, one.interventions, strict=True):
        assert ours.label == theirs.label
        for name in ("direction", "write", "read"):
            there, here = getattr(ours, name), getattr(theirs, name)
            assert there is here is None or torch.equal(there, here)


def test_without_ray_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SteerlensError, match=r"pip install 'steerlens\[ray\]'"):
        connected(TWO).__enter__()


@needs_ray
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--workers", "4096"], "4096 workers of 1 CPUs need 4096, this machine has"),
        (["--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_workers_that_cannot_be_had_are_one_line_before_anything_is_written(
    asked, words, tiny_folder, tmp_path, capsys, monkeypatch
):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    command = evaluation(tiny_folder, tmp_path, tmp_path / "out")
    assert main([*command, "--engine", "ray", *asked]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("steerlens: ") and words in said[-1]
    assert not (tmp_path / "out").exists()


@needs_ray
def test_a_cluster_of_another_version_is_refused(monkeypatch):
    import ray

    def refuse(**_options):
        raise RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.40.0")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(SteerlensError, match="another version of Ray or Python than this process"):
        _start(ray, "auto")


def test_a_worker_larger_than_any_machine_is_refused():
    machines = [{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}} for _ in range(4)]
    cluster = SimpleNamespace(nodes=lambda: [*machines, {"Alive": False}])
    _check_resources(cluster, WorkerSettings(workers=4, cpus=8, gpus=2))
    _check_resources(cluster, WorkerSettings(workers=8, cpus=8, gpus=0.5))
    with pytest.raises(SteerlensError, match="64 CPUs, 8 GPUs on 4 machines, room for 0 workers"):
        _check_resources(cluster, WorkerSettings(workers=2, cpus=1, gpus=4))


def test_a_worker_is_told_what_the_driver_was_told(tiny):
    def told(settings: WorkerSettings, judge: Judge | None = None) -> WorkerModels:
        return WorkerModels.of(tiny, judge, settings)

    eight = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.MonkeyPatch.context() as patch:
        placement = Placement("auto", {0: "70GiB"}, eight)
        patch.setattr("steerlens.workers.worker.model_placement", lambda _: placement)
        models = told(WorkerSettings(gpus=1))
        assert Path(models.model.reference).is_absolute()
        assert models.model_options == {
            "dtype": "float32",
            "device_map": "auto",
            "max_memory": {0: "70GiB"},
            "quantization_config": eight,
        }
        # Its own map and room come first.
        own = WorkerSettings(gpus=2, device_map="balanced", max_memory={1: "10GiB"})
        options = told(own).model_options
        assert (options["device_map"], options["max_memory"]) == ("balanced", {1: "10GiB"})
    # Without GPUs and without a map it computes on the CPU.
    assert told(TWO).model_options == {"dtype": "float32", "device": "cpu"}
    # A judge is small: one device, the worker's first.
    assert told(own, Judge(tiny)).judge_options == {"dtype": "float32"}
    assert told(TWO, Judge(tiny)).judge_options == {"dtype": "float32", "device": "cpu"}


def test_a_worker_places_its_model_as_the_driver(tiny_folder, threads):
    room = {"cpu": "1GiB"}
    model = load_model(tiny_folder, device_map="auto", max_memory=room)
    member = ModelWorker(WorkerModels.of(model, None, ONE)).prepare()
    assert (member["device_map"], member["max_memory"]) == ("auto", room)


def test_a_worker_of_other_versions_loads_nothing(tiny):
    models = WorkerModels.of(tiny, None, ONE)
    worker = ModelWorker(replace(models, versions={**models.versions, "torch": "0.1"}))
    with pytest.raises(SteerlensError, match=r"has torch .*, the driver 0\.1; install the same"):
        worker.prepare()
    assert worker._model is None


@pytest.mark.parametrize("which", ["model", "judge"])
def test_a_worker_with_other_models_is_refused_before_work_starts(tiny, which, threads):
    models = WorkerModels.of(tiny, Judge(tiny), ONE)
    other = replace(getattr(models, which), weights_hash="another")
    with pytest.raises(SteerlensError, match=r"holds another .* \(weights_hash .*driver's another"):
        ModelWorker(replace(models, **{which: other})).prepare()


@needs_ray
def test_workers_answer_as_this_process_does(tiny, pool):
    asked = pieces(3)
    local = Answerer(tiny)
    for piece, records in pool.answers(asked):
        assert records == local._generate(piece)


@needs_ray
def test_workers_judge_as_this_process_does(tiny, pool):
    texts, judge = ["The sea is wide.", "", "Yes.", "the the the the"], Judge(tiny)
    here, there = Answerer(tiny), Answerer(tiny, elsewhere=pool)
    assert there.perplexities(judge, texts, 64) == here.perplexities(judge, texts, 64)


@needs_ray
def test_with_workers_a_check_in_python_runs_in_this_process(tiny, pool):
    called_in, lock = set(), threading.Lock()  # neither of which another process could have

    def check(text: str) -> bool:
        with lock:
            called_in.add(os.getpid())
        return len(text) % 2 == 0

    queries = [f"What is {word}?" for word in ("tea", "rain", "snow", "bread", "light", "glass")]
    task = Task("even", ["Count.", "Be even.", "In twos."], queries, check)
    searched = search_task(VectorBook(Answerer(tiny, elsewhere=pool), SMALL.recipe), task, SMALL)
    assert called_in == {os.getpid()}
    assert any(row["passed"] for row in searched.record["table"])


@needs_ray
def test_a_poisonous_piece_is_set_aside_and_the_others_are_finished(pool):
    bad = Piece("poison", (Question("Hi", steering(width=7)),), 4, 4)
    found = []
    with pytest.raises(SteerlensError, match=r"1 of 3 pieces .*, the first is poison: .*d_model 7"):
        for piece, _ in pool.answers([bad, *pieces(2)]):
            found.append(piece.name)
    assert sorted(found) == ["piece-0", "piece-1"]


@needs_ray
def test_a_killed_worker_costs_its_piece_only(tiny, pool):
    asked = pieces(8, n_rows=16, n_tokens=80)
    found = {}
    before = pool.n_lost
    for piece, records in pool.answers(asked):
        if not found:
            os.kill(pool.members[0]["pid"], signal.SIGKILL)
        assert piece.name not in found
        found[piece.name] = records
    assert pool.n_lost == before + 1
    local = Answerer(tiny)
    for piece in asked:
        assert found[piece.name] == local._generate(piece)


@needs_ray
def test_fewer_resources_than_asked_leave_no_run_folder(pool, tiny_folder, tmp_path, capsys):
    # A cluster says what it has only when it is connected, after the run has been opened.
    command = evaluation(tiny_folder, tmp_path, tmp_path / "out")
    asked = ["--engine", "ray", "--workers", "1", "--worker-gpus", "512"]
    assert main([*command, *asked]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 workers of 1 CPUs and 512 GPUs do not fit on the cluster, which has" in said
    assert not (tmp_path / "out").exists()


@needs_ray
def test_a_model_workers_cannot_have_is_refused(tiny_folder, tmp_path):
    gone = tmp_path / "gone"
    gone.symlink_to(tiny_folder)
    model = load_model(gone, device="cpu")
    gone.unlink()
    with pytest.raises(SteerlensError, match="a worker cannot load"), worker_pool(model, ONE):
        pass


@needs_ray
def test_workers_cache_what_this_process_caches(tiny, pool, tmp_path, monkeypatch):
    pairs = ContrastSet.from_prompts(
        [f"Name {i}. No commas." for i in range(9)], [f"Name {i}." for i in range(9)]
    )
    sharded = partial(shard_residuals, tiny, pairs, pairs_per_shard=4, show_progress=False)
    here = sharded(tmp_path / "here")
    monkeypatch.setattr("steerlens.activations.shards.executor", lambda *_: nullcontext(pool))
    there = sharded(tmp_path / "there", workers=ONE)
    assert there.metadata == here.metadata and there.groups == here.groups
    for ours, theirs in zip(here, there, strict=True):
        # A worker's other number of threads sums in another order.
        torch.testing.assert_close(theirs.instructed, ours.instructed, rtol=1e-4, atol=5e-6)
        torch.testing.assert_close(theirs.uninstructed, ours.uninstructed, rtol=1e-4, atol=5e-6)


@needs_ray
def test_a_run_whose_worker_and_driver_are_killed_resumes_to_the_local_files(
    tiny_folder, tmp_path, monkeypatch
):
    # Given an evaluation by a worker, all of whose processes are killed. Its Ray is started on this
    # machine, whatever cluster RAY_ADDRESS names: there is none,
    local, out = tmp_path / "local", tmp_path / "ray"
    assert main(evaluation(tiny_folder, tmp_path, local)) == 0
    by_ray = [*evaluation(tiny_folder, tmp_path, out), "--engine", "ray"]
    by_ray += ["--workers", "1", "--worker-cpus", "0.5"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "steerlens.cli.main", *by_ray],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "RAY_ADDRESS": "127.0.0.1:1"},
    )
    try:
        wait_for_pieces(driver, out, 1)
        worker_of(driver).kill()
        others = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.kill()
        driver.wait()
    # Ray's own processes end with the driver that started them.
    wait_until_ended(others)
    before = stored_pieces(out)
    assert 1 <= len(before) < len(stored_pieces(local)) and not (out / "summary.json").exists()
    # when it is resumed by workers, then no finished piece is computed again,
    computed = []
    kept = Answerer._keep
    monkeypatch.setattr(
        Answerer,
        "_keep",
        lambda self, name, records: computed.append(name) or kept(self, name, records),
    )
    assert main([*by_ray, "--resume"]) == 0
    assert len(computed) == len(stored_pieces(local)) - len(before)
    assert stored_pieces(out) == stored_pieces(local)
    # and the files are those of the local engine.
    for name in (*FILES, "evaluation.html"):
        assert (out / name).read_bytes() == (local / name).read_bytes()
    manifest = json.loads((out / "manifest.json").read_text())
    assert [one["engine"] for one in manifest["computed_by"]] == ["ray", "ray"]
    assert manifest["computed_by"][1]["workers"][0]["versions"]["torch"] == torch.__version__


@needs_ray
def test_a_search_by_workers_writes_the_plan_of_a_local_one(roomy_model, tmp_path):
    names = [TITLE, "punctuation:no_comma"]
    search(roomy_model, names, tmp_path / "local", SMALL, show_progress=False)
    search(roomy_model, names, tmp_path / "ray", SMALL, show_progress=False, workers=TWO)
    local = [p for p in sorted((tmp_path / "local").rglob("*.*")) if p.is_file()]
    for path in local:
        if path.name not in ("manifest.json", "run.sqlite", ".lock"):
            there = tmp_path / "ray" / path.relative_to(tmp_path / "local")
            assert there.read_bytes() == path.read_bytes()
    assert any(path.suffix == ".safetensors" for path in local)
    assert Plan.load(tmp_path / "ray").data == Plan.load(tmp_path / "local").data
