"""One thread at a time on a model: results of threads side by side are those of one after another.

``STEERLENS_ROUNDS`` sets how many rounds of threads are run (12 by default, a few seconds).
"""

import copy
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import steerlens as sl
from steerlens.errors import ModelError
from steerlens.models.exclusion import exclusively, lock_of
from steerlens.models.loading import load_model
from steerlens.tasks.pairs import ContrastPair, ContrastSet

ROUNDS = int(os.environ.get("STEERLENS_ROUNDS", "12"))
PAIRS = ContrastSet(
    tuple(
        ContrastPair(f"{query} In capitals.", query, query)
        for query in ("Where is Rome?", "Who was Ada?", "Name a fruit.", "Why is it so?")
    )
)


def _jobs(model: Any, n_new: int) -> dict[str, Callable[[], Any]]:
    """Calls that rearrange or hook a model, each giving plain values."""
    vector = sl.difference_of_means(sl.cache_residuals(model, PAIRS, show_progress=False))
    layer = model.cfg.n_layers // 2
    steerings = [None, vector.at(layer=layer), vector.at(layer=0, operation="add")]
    prompts = ["Where is Rome?", "Name a fruit.", "Who was Ada?"]

    def generate() -> Any:
        return sl.generate(
            model, prompts, steerings, max_new_tokens=n_new, show_progress=False
        ).tokens

    def cache() -> Any:
        return sl.cache_residuals(model, PAIRS, show_progress=False).instructed.tolist()

    def recovery() -> Any:
        curve = sl.first_token_recovery(model, PAIRS, vector, show_progress=False)
        return curve.table["recovery"].tolist()

    def effects() -> Any:
        run = sl.steer(model, prompts[0], steerings[1], max_new_tokens=8)
        return run.effects.kl.tolist()

    def hooked() -> Any:
        ids = torch.tensor([[1, 5, 9, 20]])
        with torch.no_grad(), steerings[1].applied(model):
            return model(ids)[0, -1].tolist()

    return {
        "generate": generate,
        "cache_residuals": cache,
        "recovery": recovery,
        "effects": effects,
        "applied": hooked,
    }


def _check_rounds(model: Any, n_new: int, rounds: int) -> None:
    jobs = _jobs(model, n_new)
    expected = {name: job() for name, job in jobs.items()}
    weights = {name: one.clone() for name, one in model.original_model.state_dict().items()}
    draw = random.Random(0)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(rounds):
            names = draw.choices(sorted(jobs), k=draw.randint(2, 4))
            results = pool.map(lambda name: jobs[name](), names)
            for name, result in zip(names, results, strict=True):
                assert result == expected[name], name
    after = model.original_model.state_dict()
    assert all(torch.equal(after[name], one) for name, one in weights.items())
    assert lock_of(model.original_model).owner is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_on_one_model_give_what_one_after_another_gives_and_leave_the_weights(
    tiny_folder, dtype
):
    # 48 tokens: long enough that bfloat16 weights are packed.
    _check_rounds(load_model(tiny_folder, dtype=dtype, device="cpu"), n_new=48, rounds=ROUNDS)


def test_two_models_in_two_threads_run_side_by_side(tiny_folder):
    first, second = (load_model(tiny_folder, device="cpu") for _ in range(2))
    both = threading.Barrier(2, timeout=20)

    def hold(model: Any) -> None:
        with exclusively(model):
            both.wait()  # breaks after its timeout unless both are held at once

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(hold, (first, second)))


def test_steering_applied_in_one_thread_does_not_steer_another(tiny_model):
    vector = sl.difference_of_means(sl.cache_residuals(tiny_model, PAIRS, show_progress=False))
    prompt = "Where is Rome?"
    expected = sl.generate(tiny_model, prompt, max_new_tokens=6).tokens
    found: list[Any] = []
    other = threading.Thread(
        target=lambda: found.append(sl.generate(tiny_model, prompt, max_new_tokens=6).tokens)
    )
    with vector.at(layer=1, strength=8.0).applied(tiny_model):
        other.start()
        time.sleep(0.3)
        assert not found
    other.join()
    assert found == [expected]


def test_a_plain_forward_pass_waits_while_another_thread_has_rearranged_the_model(tiny_model):
    from steerlens.engine.modules import fast_modules, only_blocks

    ids = torch.tensor([[1, 5, 9, 20]])
    with torch.no_grad():
        expected = tiny_model(ids)
    found: list[torch.Tensor] = []

    def call() -> None:
        with torch.no_grad():
            found.append(tiny_model(ids))

    other = threading.Thread(target=call)
    with fast_modules(tiny_model), only_blocks(tiny_model, 1, 2):
        other.start()
        time.sleep(0.3)
        assert not found
    other.join()
    assert torch.equal(found[0], expected)


def test_waiting_for_a_thread_that_has_ended_is_refused(tiny_folder):
    model = load_model(tiny_folder, device="cpu")
    thread = threading.Thread(target=lock_of(model.original_model).acquire, name="gone")
    thread.start()
    thread.join()
    with pytest.raises(ModelError, match=r"held by a thread that has ended \(gone\)"):
        sl.generate(model, "Where is Rome?", max_new_tokens=2)


def test_threads_that_would_wait_for_each_other_for_ever_are_told(tiny_folder):
    models = [load_model(tiny_folder, device="cpu") for _ in range(2)]
    both = threading.Barrier(2, timeout=20)
    said: list[str] = []

    def cross(mine: Any, theirs: Any) -> None:
        with exclusively(mine):
            both.wait()
            try:
                with exclusively(theirs):
                    pass
            except ModelError as error:
                said.append(str(error))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(cross, models, reversed(models)))
    assert 1 <= len(said) <= 2 and all("wait for each other's models" in one for one in said)


def test_an_interrupt_ends_the_wait_within_a_second(tiny_model):
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusively(tiny_model):
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sl.generate(tiny_model, "Where is Rome?", max_new_tokens=2)
    # 0.3 s until the interrupt, one look at the lock after it; the rest is for a busy machine.
    assert time.monotonic() - start < 5
    done.set()
    thread.join()
    assert lock_of(tiny_model.original_model).owner is None


def test_a_copied_model_has_a_lock_of_its_own(tiny_model):
    root = tiny_model.original_model
    with exclusively(tiny_model):
        copied = copy.deepcopy(lock_of(root))
        assert copied is not lock_of(root) and copied.owner is None
