"""The engine's memory of keys and values, and how many rows it has room for."""

import pytest
import torch

from steerlens.engine import memory, paths
from steerlens.engine.memory import SlotCache


def _filled(n_slots: int, n_positions: int, n_tokens: int) -> tuple[SlotCache, torch.Tensor]:
    keys = torch.randn(2, n_tokens, 4, generator=torch.Generator().manual_seed(0))
    cache = SlotCache(n_slots, n_positions)
    for slot in range(n_slots):
        cache.write(slot, 0, keys + slot, -keys - slot)
    return cache, keys


def test_a_step_writes_each_rows_token_behind_its_own_last_one() -> None:
    cache, keys = _filled(2, 40, 6)
    new = torch.randn(2, 2, 1, 4)
    cache.begin_step([6, 3], "cpu")
    seen, values = cache.update(new, -new, 0)
    assert torch.equal(seen[0, :, 6], new[0, :, 0])
    assert torch.equal(seen[1, :, 3], new[1, :, 0])
    assert torch.equal(seen[0, :, :6], keys)
    assert torch.equal(values, -seen)


def test_positions_not_yet_written_are_zeros_and_looked_at_in_few_different_numbers() -> None:
    cache, _ = _filled(1, 100, 6)
    widths = set()
    for length in range(6, 99):
        cache.begin_step([length], "cpu")
        seen, _ = cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)
        assert length < seen.shape[2] <= 100
        assert not seen[:, :, length + 1 :].any()
        widths.add(seen.shape[2])
    assert len(widths) <= 4


def test_zeros_are_zeros_in_every_dtype_models_run_in() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        zeros = memory._lazy_zeros((3, 5), dtype, torch.device("cpu"))
        assert zeros.dtype == dtype
        assert zeros.shape == (3, 5)
        assert not zeros.any()


def test_a_moved_row_keeps_its_tokens() -> None:
    cache, keys = _filled(3, 40, 6)
    cache.begin_step([6, 6, 6], "cpu")
    cache.update(torch.ones(3, 2, 1, 4), torch.ones(3, 2, 1, 4), 0)
    cache.move(2, 0)
    cache.begin_step([7, 7], "cpu")
    seen, _ = cache.update(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4), 0)
    assert torch.equal(seen[0, :, :6], keys + 2)
    assert torch.equal(seen[0, :, 6], torch.ones(2, 4))


def test_rows_are_as_many_as_memory_allows_unless_a_number_is_asked(
    tiny_model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "free_memory", lambda device: 0)
    assert paths.slots_for(tiny_model, 100, 50) == 1
    assert paths.slots_for(tiny_model, 100, 50, batch_size=7) == 7
    monkeypatch.setattr(paths, "free_memory", lambda device: 2**40)
    assert paths.slots_for(tiny_model, 100, 50) == 50
    assert paths.slots_for(tiny_model, 100, 10_000) == paths._MOST_SLOTS
    some = [2**20, 2**22]
    monkeypatch.setattr(paths, "free_memory", lambda device: some[0])
    few = paths.slots_for(tiny_model, 1000, 10_000)
    monkeypatch.setattr(paths, "free_memory", lambda device: some[1])
    many = paths.slots_for(tiny_model, 1000, 10_000)
    assert 1 <= few < many


def test_away_from_the_cpu_keys_lie_in_rows_as_fused_kernels_read_them():
    cache = SlotCache(2, 8)
    new = torch.empty(3, 4, 5, device="meta")
    cache.write(0, 0, new, new)
    cache.begin_step([4], "meta")

    keys, values = cache.update(new[None, :, :1], new[None, :, :1], 0)

    assert keys.shape == values.shape == (1, 3, 8, 5)
    assert keys.stride(-1) == values.stride(-1) == 1
