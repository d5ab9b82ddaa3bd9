"""Claims about specificity, against scikit-learn, numpy and planted directions."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import steerlens as sl
from analyses.specific_calibration import World, drawn, truths
from steerlens.activations.grids import ResidualGrid
from steerlens.attribution import grid_specificity
from steerlens.errors import ActivationError, PairsError, SteerlensError, SteerlensWarning
from steerlens.tasks.grids import task_grid

SMALL = World(own=8.0, n_tasks=6, d_model=64, n_queries=12)
PIRATE = ("Answer like a pirate.", "Talk as a pirate would.", "Use pirate speech.")


@pytest.fixture
def cache_at(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_specific_auroc_and_d_prime_equal_those_of_directions_fitted_on_the_other_half():
    grid, _ = drawn(SMALL, seed=3)
    runs, halves = grid.instructed.double().numpy(), np.array(grid.halves)
    own, others = [], []
    for half in (0, 1):
        fit, test = runs[:, halves != half, 1], runs[:, halves == half, 1]
        ends = fit[0].mean(0), fit[1:].mean((0, 1))
        direction = ends[0] - ends[1]
        score = (test - (ends[0] + ends[1]) / 2) @ direction / (direction @ direction)
        own.append(score[0])
        others.append(score[1:].ravel())
    own, others = np.concatenate(own), np.concatenate(others)
    labels = np.repeat([1, 0], [len(own), len(others)])
    row = grid_specificity(grid, n_permutations=19).table.set_index("layer").loc[1]
    assert row.specific_auroc == pytest.approx(roc_auc_score(labels, np.concatenate([own, others])))
    # Each run of the task stands beside one of every other task, so its variance has more terms.
    spread = np.sqrt((np.tile(own, 5).var(ddof=1) + others.var(ddof=1)) / 2)
    assert row.specific_d_prime == pytest.approx((own.mean() - others.mean()) / spread)


def test_shares_of_noiseless_differences_equal_numpys_projection():
    rng = np.random.default_rng(0)
    deltas = rng.standard_normal((4, 1, 32))
    runs = np.repeat(deltas[:, None], 8, axis=1)
    bare = np.zeros((8, 1, 32))
    grid = ResidualGrid.from_tensors(
        "abcd", torch.from_numpy(runs), torch.from_numpy(bare), [0] * 4 + [1] * 4
    )
    row = grid_specificity(grid, n_permutations=19).table.iloc[0]
    own, others = deltas[0, 0], deltas[1:, 0]
    rest = own - others.T @ np.linalg.lstsq(others.T, own, rcond=None)[0]
    cosine = own @ others.mean(0) / np.linalg.norm(own) / np.linalg.norm(others.mean(0))
    # The grid is kept in float32.
    assert row.own_share == pytest.approx(rest @ rest / (own @ own), abs=1e-5)
    assert row.off_mean_share == pytest.approx(1 - cosine**2, abs=1e-5)


def test_the_planted_layer_is_found_and_its_true_values_lie_in_their_intervals():
    n_seeds, found, covered = 40, 0, dict.fromkeys(("own_share", "specific_auroc"), 0)
    for seed in range(n_seeds):
        grid, means = drawn(SMALL, seed)
        result = grid_specificity(grid, seed, n_permutations=19)
        found += result.best_layer == 1
        row, truth = result.table.set_index("layer").loc[1], truths(SMALL, grid, means)
        for name in covered:
            covered[name] += row[f"{name}_low"] <= truth[name] <= row[f"{name}_high"]
    assert found >= 38
    # 34 of 40 or fewer happen once in 70 times where the coverage is 95 %.
    assert min(covered.values()) >= 34, covered


def test_what_all_tasks_share_is_rarely_called_specific():
    world = World(own=0.0, others_own=0.0, n_tasks=5, d_model=32, n_queries=8)
    rejected = sum(
        grid_specificity(drawn(world, seed)[0], seed, n_permutations=39).p_value <= 0.05
        for seed in range(60)
    )
    # 9 of 60 or more happen twice in 1,000 times at a true rate of 5 %.
    assert rejected <= 8


def test_a_phrasing_that_is_not_the_tasks_own_is_not_called_specific():
    # Given runs that differ by phrasing, the phrasings of the halves being independent,
    rng = np.random.default_rng(1)
    blocks = np.array([*(np.arange(8) % 4), *(4 + np.arange(8) % 2)])
    n_rejected = 0
    for seed in range(40):
        phrasing = rng.standard_normal((5, 6, 12)) * 3
        runs = phrasing[:, blocks][:, :, None] + 0.1 * rng.standard_normal((5, 16, 1, 12))
        grid = ResidualGrid.from_tensors(
            "abcde",
            torch.from_numpy(runs),
            torch.zeros(16, 1, 12),
            [0] * 8 + [1] * 8,
            blocks.tolist(),
        )
        n_rejected += grid_specificity(grid, seed, n_permutations=39).p_value <= 0.05
    # then the null is rejected at its rate, not whenever two phrasings lie along one another.
    assert n_rejected <= 6


def test_two_tasks_that_are_one_in_other_words_are_named():
    grid, _ = drawn(SMALL, seed=0)
    again = grid.instructed[:1] + 0.01 * torch.randn(grid.instructed[:1].shape)
    doubled = ResidualGrid.from_tensors(
        [*grid.ids, "the same"],
        torch.cat([grid.instructed, again]),
        grid.uninstructed,
        grid.halves,
        grid.blocks,
    )
    result = grid_specificity(doubled, n_permutations=19)
    assert result.neighbours.other[0] == "the same"
    assert "'task 0' and 'the same' have nearly the same difference" in result.notices[0]
    assert result.table.own_share.abs().max() < 0.05


def test_residuals_of_other_tasks_are_read_once_and_a_damaged_file_again(roomy_model, cache_at):
    others = ["startend:quotation", "detectable_format:title"]
    task = sl.Task("pirate", PIRATE)
    first = sl.specificity(roomy_model, task, others, n_queries=4, n_permutations=19)
    assert first.metadata["n_prompts_run"] == 4 * 8
    german = "language:response_language_de"
    second = sl.specificity(roomy_model, german, others, n_queries=4, n_permutations=19)
    assert second.metadata["n_prompts_run"] == 8
    files = sorted(cache_at.rglob("*.safetensors"))
    assert len(files) == 5
    for file in files:
        file.write_bytes(b"damaged")
    again = sl.specificity(roomy_model, task, others, n_queries=4, n_permutations=19)
    assert again.metadata["n_prompts_run"] == 4 * 8
    # Batches of other rows round differently.
    for name in ("specific_auroc", "off_mean_share"):
        np.testing.assert_allclose(first.table[name], again.table[name], atol=1e-3)
    assert "most specific" in repr(first) or "highest at layer" in repr(first)
    assert first.plot() is not None


def test_a_cache_that_cannot_be_written_costs_a_warning_only(roomy_model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(SteerlensWarning, match="residuals are not kept"):
        sl.specificity(
            roomy_model,
            "detectable_format:title",
            ["startend:quotation"],
            n_queries=4,
            n_permutations=19,
        )


def test_a_grid_asks_every_task_on_the_same_queries_and_holds_out_both_texts():
    grid = task_grid("detectable_format:title", n_queries=8)
    assert "detectable_format:constrained_response" not in grid.ids and len(grid.ids) == 30
    for prompts in grid.prompts:
        for prompt, query in zip(prompts, grid.uninstructed, strict=True):
            assert prompt.startswith(query)
    title = grid.prompts[0]
    words = [
        {
            p.removeprefix(q)
            for p, q, half in zip(title, grid.uninstructed, grid.halves, strict=True)
            if half == h
        }
        for h in (0, 1)
    ]
    assert not words[0] & words[1] and (len(words[0]), len(words[1])) == (4, 2)


def test_a_task_with_queries_of_its_own_is_compared_with_tasks_that_can_be_asked_on_them():
    queries = [f"Describe town {name}." for name in range(16)]
    grid = task_grid(sl.Task("pirate", PIRATE, queries=queries), n_queries=4)
    assert len(grid.ids) == 28 and "keywords:frequency" not in grid.ids
    assert not grid.notices


def test_what_cannot_be_compared_is_refused_or_said():
    title = sl.catalogue["detectable_format:title"]
    with pytest.raises(SteerlensError, match="only task 'detectable_format:title' was given"):
        task_grid(title, [title])
    with pytest.raises(PairsError, match="'pirate' has 2 base queries in its 'fit' split"):
        task_grid(sl.Task("pirate", PIRATE, queries=["Why?", "How so?", "What for?", "Who is it?"]))
    pairs = sl.Task.from_pairs(sl.contrast_pairs(title, n=32))
    with pytest.raises(PairsError, match="none of the 1 other tasks can be asked on the queries"):
        task_grid(
            sl.Task("pirate", PIRATE, queries=[f"Name city {i}." for i in range(40)]),
            [pairs],
        )
    single = sl.Task("pirate", PIRATE[:1])
    assert "too few to hold one out" in task_grid(single).notices[0]
    choices = sl.Task.from_choices(
        [
            {
                "question": f"Is {i} large?",
                "answer_matching_behavior": "Yes",
                "answer_not_matching_behavior": "No",
            }
            for i in range(20)
        ],
        id="large",
    )
    with pytest.raises(PairsError, match="specificity is for tasks of phrasings or pairs"):
        task_grid(choices)
    grid, _ = drawn(SMALL, seed=0)
    with pytest.raises(SteerlensError, match="at least 19 permutations"):
        grid_specificity(grid, n_permutations=5)
    with pytest.raises(ActivationError, match="a block lies in both halves"):
        ResidualGrid.from_tensors(
            grid.ids, grid.instructed, grid.uninstructed, grid.halves, [0] * len(grid.halves)
        )
