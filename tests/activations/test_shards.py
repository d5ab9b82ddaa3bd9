"""Residuals in shards: what was cached, ranked as in memory, in little of it."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from planted_activations import planted

import steerlens as sl
from steerlens import files
from steerlens.activations.cache import ResidualCache
from steerlens.activations.pieces import ResidualPiece
from steerlens.activations.shards import ShardedResiduals, shard_residuals, write_shards
from steerlens.attribution import separability
from steerlens.cli.main import main
from steerlens.errors import ActivationError, FileFormatError, SteerlensError
from steerlens.stats.queries import query_draws
from steerlens.tasks.pairs import ContrastPair, ContrastSet


def sharded(cache: ResidualCache, folder, size: int, dtype: str = "float32") -> ShardedResiduals:
    blocks = zip(cache.instructed.split(size), cache.uninstructed.split(size), strict=True)
    return write_shards(folder, blocks, cache.layers, cache.groups, cache.metadata, dtype)


@pytest.mark.parametrize(
    ("n_pairs", "d_model", "groups"),
    [
        (300, 12, None),
        (90, 40, [i // 3 for i in range(90)]),
        (97, 8, [7 * (i % 31) for i in range(97)]),
    ],
)
def test_shards_are_ranked_with_the_numbers_of_residuals_in_memory(
    tmp_path, n_pairs, d_model, groups
):
    cache = planted(d_prime=0.8, n_pairs=n_pairs, d_model=d_model, groups=groups)
    # Residual streams lie far from the origin.
    cache.instructed.add_(30.0), cache.uninstructed.add_(30.0)
    inside = sl.rank_layers(cache, seed=3, n_resamples=130)
    outside = sl.rank_layers(sharded(cache, tmp_path, 41), seed=3, n_resamples=130)
    pd.testing.assert_frame_equal(
        inside.table, outside.table, check_like=True, rtol=1e-5, atol=1e-5
    )
    assert outside.best_layer == inside.best_layer
    for kind, values in inside.samples.items():
        np.testing.assert_allclose(outside.samples[kind], values, rtol=1e-5, atol=1e-5)


def test_resamples_measured_in_parts_are_those_measured_at_once(monkeypatch):
    cache = planted(d_prime=0.5, n_pairs=64)
    at_once = sl.rank_layers(cache, n_resamples=20)
    monkeypatch.setattr(separability, "_MOST_SCORES", 100)
    in_parts = sl.rank_layers(cache, n_resamples=20)
    pd.testing.assert_frame_equal(at_once.table, in_parts.table)


def test_draws_are_those_of_one_multinomial():
    expected = np.random.default_rng(5).multinomial(50, np.full(50, 1 / 50), size=250)
    drawn = query_draws([i // 2 for i in range(100)], 250, seed=5)
    np.testing.assert_array_equal(drawn, np.repeat(expected, 2, axis=1))


def test_shards_of_a_model_hold_what_caching_in_memory_gives(tiny_model, tmp_path):
    pairs = ContrastSet.from_prompts(
        [f"Name {i}. No commas." for i in range(9)], [f"Name {i}." for i in range(9)]
    )
    shards = shard_residuals(
        tiny_model, pairs, tmp_path / "s", pairs_per_shard=4, show_progress=False
    )
    assert shards.sizes == (4, 5)  # one pair alone would be no shard
    cache = sl.cache_residuals(tiny_model, pairs, show_progress=False)
    together = torch.cat([one.instructed for one in shards])
    torch.testing.assert_close(together, cache.instructed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        shards.layer(2).uninstructed[:, 0], together.new_tensor(shards.runs(2)[1])
    )
    assert shards.groups == cache.groups
    assert shards.metadata["data_hash"] == cache.metadata["data_hash"]


def test_shards_of_choices_are_read_at_the_answer(tiny_model, tmp_path):
    questions = [f"Do you like {word}?" for word in ("tea", "rain", "snow", "moss")]
    pairs = ContrastSet(
        tuple(
            ContrastPair(q, q, instructed_response="Yes", uninstructed_response="No")
            for q in questions
        )
    )
    shards = shard_residuals(
        tiny_model, pairs, tmp_path / "s", position="answer", show_progress=False
    )
    cache = sl.cache_residuals(tiny_model, pairs, position="answer", show_progress=False)
    together = torch.cat([one.instructed for one in shards])
    torch.testing.assert_close(together, cache.instructed, rtol=1e-4, atol=1e-5)


def test_interrupted_caching_goes_on_and_keeps_whole_shards(tiny_model, tmp_path, monkeypatch):
    pairs = ContrastSet.from_prompts([f"{i}: yes" for i in range(6)], [f"{i}:" for i in range(6)])
    done = shard_residuals(tiny_model, pairs, tmp_path, pairs_per_shard=2, show_progress=False)
    (tmp_path / "index.json").unlink()
    with pytest.raises(FileFormatError, match="goes on where it was interrupted"):
        ShardedResiduals.open(tmp_path)
    broken = tmp_path / "shard-00001.safetensors"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-10])
    computed = []
    compute = ResidualPiece.compute
    monkeypatch.setattr(
        ResidualPiece, "compute", lambda *given: computed.append(1) or compute(*given)
    )
    again = shard_residuals(tiny_model, pairs, tmp_path, pairs_per_shard=2, show_progress=False)
    assert len(computed) == 1
    assert broken.read_bytes() == whole
    assert again.metadata == done.metadata


def test_half_precision_on_disk_is_near_and_overflow_is_named(tmp_path):
    cache = planted(n_pairs=40)
    near = sl.rank_layers(sharded(cache, tmp_path / "b", 20, "bfloat16"), n_resamples=10)
    exact = sl.rank_layers(cache, n_resamples=10)
    np.testing.assert_allclose(near.table.auroc, exact.table.auroc, atol=0.02)
    cache.instructed[3, 2, 0] = 1e6
    with pytest.raises(ActivationError, match=r"layer 2 are too large for float16"):
        sharded(cache, tmp_path / "h", 20, "float16")


def test_what_is_no_folder_of_shards_is_said_in_a_sentence(tmp_path):
    shards = sharded(planted(n_pairs=10), tmp_path, 5)
    with pytest.raises(SteerlensError, match="only separability"):
        sl.rank_layers(shards, evidence=("null",))
    with pytest.raises(ActivationError, match="layer 9 is not in"):
        shards.runs(9)
    (tmp_path / "shard-00001.safetensors").write_bytes(b"torn")
    with pytest.raises(FileFormatError, match="truncated"):
        ShardedResiduals.open(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"schema": "other"}))
    with pytest.raises(FileFormatError, match="no index"):
        ShardedResiduals.open(tmp_path)


def test_the_command_ranks_from_shards_as_from_memory(tiny_folder, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"instructed": f"Name {i}. No commas.", "uninstructed": f"Name {i}."} for i in range(12)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    # One shard, so that the same prompts run together.
    command = ["rank", "--model", str(tiny_folder), "--pairs", str(file), "--json"]
    assert main(command) == 0
    inside = json.loads(capsys.readouterr().out)
    assert main([*command, "--shards", str(tmp_path / "shards")]) == 0
    said = capsys.readouterr()
    outside = json.loads(said.out)
    assert outside["best_layer"] == inside["best_layer"]
    for ours, theirs in zip(outside["layers"], inside["layers"], strict=True):
        assert ours["auroc"] == pytest.approx(theirs["auroc"], abs=1e-5)
    assert len(ShardedResiduals.open(tmp_path / "shards")) == 1
    assert main([*command, "--engine", "ray"]) == 2
    assert "say with --shards DIR" in capsys.readouterr().err
    assert main([*command, "--shards", str(tmp_path / "s"), "--evidence", "separability,null"]) == 2
    assert "only separability is computed" in capsys.readouterr().err


class Stopped(BaseException):
    """In place of a kill."""


def stopping(monkeypatch, n: int, after: bool) -> None:
    """Let the n-th file from now on be the last, written or not."""
    whole = files.write_atomically
    written = []

    def write(path, content):
        written.append(path)
        if len(written) == n and not after:
            raise Stopped
        found = whole(path, content)
        if len(written) == n:
            raise Stopped
        return found

    monkeypatch.setattr(files, "write_atomically", write)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_shards_written_again_and_stopped_anywhere_are_not_opened_as_whole(
    tmp_path, monkeypatch, n, after
):
    first = planted(n_pairs=10, d_prime=0.0)
    second = planted(n_pairs=10, d_prime=4.0)
    before = sharded(first, tmp_path, 5)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stopping(patched, n, after)
        sharded(second, tmp_path, 5)
    if n < 3 or not after:
        with pytest.raises(FileFormatError, match="holds no whole set"):
            ShardedResiduals.open(tmp_path)
    if n > 1 or after:
        # Whoever had opened the first ones does not read the second's rows among them.
        with pytest.raises(FileFormatError, match="written again since the index"):
            before.runs(0)
    # The same call makes them whole.
    again = sharded(second, tmp_path, 5)
    np.testing.assert_array_equal(again.runs(1)[0], second.instructed[:, 1].numpy())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_caching_other_pairs_into_the_folder_and_stopped_goes_on(
    tiny_model, tmp_path, monkeypatch, n
):
    def pairs(word: str) -> ContrastSet:
        return ContrastSet.from_prompts(
            [f"{i}: {word} yes" for i in range(4)], [f"{i}: {word}" for i in range(4)]
        )

    def cached(word: str) -> ShardedResiduals:
        return shard_residuals(
            tiny_model, pairs(word), tmp_path, pairs_per_shard=2, show_progress=False
        )

    old = cached("old")
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stopping(patched, n, after=False)
        cached("new")
    with pytest.raises(FileFormatError, match="goes on where it was interrupted"):
        ShardedResiduals.open(tmp_path)
    computed = []
    compute = ResidualPiece.compute
    monkeypatch.setattr(
        ResidualPiece, "compute", lambda *given: computed.append(1) or compute(*given)
    )
    new = cached("new")
    assert len(computed) == 3 - n
    whole = sl.cache_residuals(tiny_model, pairs("new"), show_progress=False)
    np.testing.assert_allclose(new.runs(1)[0], whole.instructed[:, 1].numpy(), atol=1e-5)
    assert new.metadata["data_hash"] == whole.metadata["data_hash"] != old.metadata["data_hash"]


def test_a_shard_of_another_run_under_the_index_is_refused(tmp_path):
    # As a copy that was not finished would leave it: same shape, other numbers.
    sharded(planted(n_pairs=10, d_prime=0.0), tmp_path / "a", 5)
    sharded(planted(n_pairs=10, d_prime=4.0), tmp_path / "b", 5)
    name = "shard-00001.safetensors"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(FileFormatError, match="written again since the index"):
        ShardedResiduals.open(tmp_path / "a")
