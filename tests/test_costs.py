"""Costs: counts that are exact where they can be, and a record of how right an estimate was."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from steerlens.cli import main
from steerlens.costs import rates as rates_module
from steerlens.costs.forecast import answer_costs, estimate_costs
from steerlens.costs.ledger import Ledger
from steerlens.costs.rates import Rates, calibrate_rates
from steerlens.costs.stream import fitted, stream
from steerlens.costs.work import Asking, Work, cache_work, evaluation_work
from steerlens.evaluation import EvaluationPrompt, Judge
from steerlens.evaluation.run import EvaluationSettings, evaluate

COMMA = "punctuation:no_comma"


def rates(**changes) -> Rates:
    made = {
        "read": 0.5,
        "read_steered": 0.25,
        "step": 1.0,
        "step_row": 0.1,
        "step_position": 0.01,
        "lengths": (8, 8),
        "longest": 8,
        "prompt_tokens": 10.0,
        "characters": 4.0,
        "cache": 2.0,
        "recover": 2.0,
        "judge": 0.0,
        "check": 0.0,
        "memory": 1000,
        "token_memory": 10,
        "positions": 0,
        "seconds": 0.0,
    }
    return Rates(**{**made, **changes})


def rows(n: int) -> list[EvaluationPrompt]:
    return [
        EvaluationPrompt(i, f"Name {i}. No commas.", f"Name {i % 2}.", (COMMA,), ({},))
        for i in range(n)
    ]


def test_time_is_reading_and_steps_of_the_active_rows():
    # Given responses that never end before 8 tokens, 4 rows in 2 slots:
    seconds, tokens = answer_costs(Asking(4, 8, steered=1), rates(), batch_size=2)
    # then two waves of 7 steps (the first token comes with reading), 28 active rows in all.
    assert tokens == 32
    # In each wave two rows look at 11, 12, …, 17 positions: the prompt's 10, and those so far.
    positions = 2 * 2 * sum(range(11, 18))
    assert seconds == pytest.approx(3 * 0.5 + 0.25 + 14 * 1.0 + 28 * 0.1 + positions * 0.01)


def test_positions_looked_at_are_those_of_the_oldest_row_counted_step_by_step():
    lengths, slots, prompt = [5, 2, 9, 1, 4, 4], 3, 20.0
    # Given rows in slots, moved on one step at a time,
    waiting, active = list(lengths), []
    steps = rows = positions = 0
    while waiting or active:
        while waiting and len(active) < slots:
            active.append([waiting.pop(0), 0])
        steps += 1
        rows += len(active)
        positions += len(active) * (prompt + 1 + max(age for _, age in active))
        active = [[left - 1, age + 1] for left, age in active if left > 1]
    # then the closed form counts the same.
    assert stream(lengths, slots, prompt) == (steps, rows, positions)


def test_what_a_step_takes_is_recovered_from_timings_and_never_negative():
    a, b, c = 0.02, 0.001, 1e-5
    lists = [stream([n] * rows, 96, 60.0) for n, rows in ((47, 96), (47, 24), (200, 24))]
    timed = [(n, a * n[0] + b * n[1] + c * n[2]) for n in lists]
    assert fitted(timed) == pytest.approx((a, b, c), rel=1e-6)
    # Long lists that were faster than short ones (another process ended) cost nothing a position.
    assert min(fitted([*timed[:2], (lists[2], 0.1)])) >= 0


def test_equal_unsteered_questions_are_counted_once():
    work = evaluation_work(rows(6), None, EvaluationSettings())
    assert work.askings[-1].rows == 6 + 2
    assert work.checked == 12


def test_longer_answers_take_more_memory_and_workers_less_time():
    work = Work("evaluate", ("a",), (Asking(4, 8, piece_rows=2),))
    here, one, two = (estimate_costs(work, rates(), 2, n) for n in (0, 1, 2))
    assert here.seconds == one.seconds
    assert two.seconds == pytest.approx(one.seconds / 2, abs=0.01)
    # Keys and values are held by whoever answers.
    longest = 1000 + 10 * 2 * (10 + 8)
    assert (here.memory, here.worker_memory) == (longest, 0)
    assert (two.memory, two.worker_memory) == (1000, longest)


def test_residuals_held_while_they_are_cached_are_memory():
    one, other = (estimate_costs(Work("cache", ("a",), held=n), rates(), 2) for n in (0, 50))
    assert (one.memory, other.memory) == (1000, 1000 + 4 * 50)


def test_residuals_are_divided_among_workers():
    shards, fitting = (Work(stage, ("a",), cached=12, held=50) for stage in ("cache", "search"))
    # What one vector is fitted on is one piece; of four instructions three are fitted at once.
    work = (shards, fitting, replace(fitting, instructions=4))
    found = [estimate_costs(one, rates(), 2, 3) for one in work]
    assert [one.seconds for one in found] == [12 * 2.0 / 3, 12 * 2.0, 12 * 2.0 / 3]
    assert [one.worker_memory for one in found] == [1000 + 4 * 50] * 3


def test_a_list_is_divided_among_no_more_workers_than_it_has_pieces():
    whole = estimate_costs(Work("evaluate", ("a",), (Asking(4, 8),)), rates(), 2).seconds
    for rows, pieces in ((4, 1), (2, 2), (1, 4)):
        work = Work("evaluate", ("a",), (Asking(4, 8, piece_rows=rows),))
        alone, three = (estimate_costs(work, rates(), 2, n).seconds for n in (1, 3))
        assert three == pytest.approx(alone / min(pieces, 3), abs=0.02)
    assert whole == estimate_costs(Work("evaluate", ("a",), (Asking(4, 8),)), rates(), 2, 3).seconds
    judging = rates(judge=0.5)
    few, many = (Work("evaluate", ("a",), judged=n) for n in (256, 512))
    assert estimate_costs(few, judging, 2, 2).seconds == 128
    assert estimate_costs(many, judging, 2, 2).seconds == 128


def test_workers_and_driver_work_side_by_side_when_several_instructions_are_searched():
    """Caching, 10 × 2 s, and judging, 8 × 0.5 s, are theirs, recovery, 10 × 0.5 s, the driver's."""
    one = Work("search", ("a",), cached=10, judged=8, recovered=10)
    several = replace(one, instructions=4)
    recovering = rates(judge=0.5, recover=0.5)
    assert estimate_costs(one, recovering, 2, 3).seconds == pytest.approx(24 + 5, abs=0.02)
    assert estimate_costs(several, recovering, 2, 3).seconds == pytest.approx(8 + 5 / 4, abs=0.02)
    # In turns without workers; on three cores that all share, no faster than all there is to do.
    assert estimate_costs(several, recovering, 2).seconds == 24 + 5
    shared = replace(recovering, threads=1)
    assert estimate_costs(several, shared, 2, 3, cores=3).seconds == pytest.approx(
        (24 + 5) / 3, abs=0.02
    )
    assert estimate_costs(several, shared, 2, 3, cores=8).seconds == pytest.approx(
        8 + 5 / 4, abs=0.02
    )


def test_the_disk_is_that_of_its_parts():
    work = Work("evaluate", ("abcd",), (Asking(4, 8),), cached=1, checked=4, numbers=100)
    found = estimate_costs(work, rates(), 2)
    by_part = {name: part.get("disk_bytes", 0) for name, part in found.parts.items()}
    assert by_part["cache"] == 4 * 100
    assert by_part["answers"] > 32 * 4.0 and by_part["check"] > 32 * 4.0
    assert found.disk == sum(by_part.values())
    half = estimate_costs(replace(work, number_bytes=2), rates(), 2)
    assert found.disk - half.disk == 2 * 100


def test_what_workers_do_is_timed_with_their_threads_and_the_rest_with_ours(
    tiny_model, monkeypatch
):
    own = torch.get_num_threads()
    parts = {"generate": "answers", "residuals_at": "cache", "_judge_rate": "judge"}
    seen: dict[str, set[int]] = {part: set() for part in parts.values()}
    for name, part in parts.items():
        called = getattr(rates_module, name)

        def noted(*given: Any, part: str = part, called: Any = called, **more: Any) -> Any:
            seen[part].add(torch.get_num_threads())
            return called(*given, **more)

        monkeypatch.setattr(rates_module, name, noted)
    torch.set_num_threads(2)
    try:
        search = Work("search", ("Name a city.",), (Asking(2, 4),), cached=2)
        found = calibrate_rates(tiny_model, search, 2, Judge(tiny_model), worker_threads=3)
        assert seen == {part: {3} for part in parts.values()} and found.threads == 3
        assert torch.get_num_threads() == 2
        # Causal recovery, timed by the same forward pass, is the driver's.
        seen["cache"].clear()
        calibrate_rates(tiny_model, replace(search, recovered=2), 2, None, 3)
        assert seen["cache"] == {2, 3}
    finally:
        torch.set_num_threads(own)


def test_the_residuals_written_are_counted(tiny_model):
    work = cache_work(tiny_model, ["a", "b", "a", "c"])
    assert work.cached == 3
    assert work.numbers == 4 * 3 * 16
    # Of the three prompts that differ, and of all four by side.
    assert work.held == 7 * 3 * 16


def test_parts_do_not_overlap(monkeypatch):
    # given a clock of our own: a busy machine sleeps longer than it is told to
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    ledger = Ledger()
    with ledger.part("outer"):
        now[0] += 2
        with ledger.part("inner"):
            now[0] += 5
        now[0] += 1
    parts = ledger.to_json()
    assert (parts["outer"]["seconds"], parts["inner"]["seconds"]) == (3, 5)
    assert ledger.seconds == 8


def test_a_run_keeps_its_estimate_beside_what_it_took(tiny_model, tmp_path, capsys):
    settings = EvaluationSettings(max_new_tokens=12, batch_size=8)
    evaluate(tiny_model, rows(6), tmp_path, None, settings, progress=False, estimate=True)
    said = capsys.readouterr().err
    assert "estimate of the evaluate: about" in said
    assert "of the estimate" in said
    costs = json.loads((tmp_path / "costs.json").read_text())
    lines = (tmp_path / "pieces.jsonl").read_text().splitlines()
    written = sum(r["n_tokens"] for line in lines for r in json.loads(line)["records"])
    assert costs["actual"]["tokens"] == written
    assert costs["actual_over_estimate"]["seconds"] > 0
    assert costs["estimate"]["parts"]["answers"]["rows"] == 8
    size = (tmp_path / "responses.jsonl").stat().st_size
    assert costs["actual"]["parts"]["check"]["disk_bytes"] == size


def test_the_command_gives_json_and_refuses_what_it_cannot_estimate(capsys, tiny_folder, tmp_path):
    data = tmp_path / "data.jsonl"
    row = {"key": 1, "prompt": "Name a city.", "instruction_id_list": [COMMA], "kwargs": [{}]}
    data.write_text(json.dumps(row) + "\n")
    common = ["--model", str(tiny_folder), "--judge", "none", "--json"]
    code = main(["estimate", "evaluate", "--data", str(data), "--max-new-tokens", "8", *common])
    assert code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["stage"] == "evaluate" and told["parts"]["answers"]["rows"] == 1
    by_two = ["--workers", "2", "--worker-cpus", "1", "--max-new-tokens", "8"]
    assert main(["estimate", "evaluate", "--data", str(data), *by_two, *common]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["workers"] == 2 and told["worker_memory_bytes"] > 0
    assert told["rates"]["threads"] == 1
    none = ["estimate", "evaluate", "--data", str(data), "--workers", "0", *common]
    assert main(none) == 2
    assert "at least one worker" in capsys.readouterr().err
    assert main(["estimate", "evaluate", *common]) == 2
    assert "--data FILE or --instruction" in capsys.readouterr().err
