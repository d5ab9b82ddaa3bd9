"""The weights cache: right numbers, whole or not at all, one sentence when it cannot be."""

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import write_tiny_gguf

from steerlens.errors import FileFormatError, ModelError
from steerlens.models import weights
from steerlens.models.weights import (
    entry_is_whole,
    sha256_of_files,
    weights_entry,
    weights_from_gguf,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("STEERLENS_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def convert(path: Path) -> Path:
    return weights_from_gguf([path], name=path.name)[0]


def leftovers(cache: Path) -> list[str]:
    """What stands in the cache beside whole entries and the lock."""
    names = sorted(path.name for path in (cache / "weights").iterdir())
    return [name for name in names if name != ".lock" and len(name) != 64]


def forbid_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(weights, "read_model", fail)


def test_the_cached_weights_are_those_of_the_gguf_file(cache: Path, tiny_gguf: Path) -> None:
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny_gguf).tensors}

    folder = convert(tiny_gguf)

    cached = load_file(folder / "model.safetensors")
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("blk.2.attn_v.weight", "model.layers.2.self_attn.v_proj.weight"),
        ("blk.2.ffn_norm.weight", "model.layers.2.post_attention_layernorm.weight"),
    ):
        np.testing.assert_array_equal(cached[ours], tensors[theirs])


def test_the_cached_config_neither_claims_quantisation_nor_a_title(
    cache: Path, tiny_gguf: Path
) -> None:
    config = json.loads((convert(tiny_gguf) / "config.json").read_text())

    assert "quantization_config" not in config
    assert "A Title Nobody" not in json.dumps(config)
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_the_folder_is_named_by_the_hash_of_the_file(cache: Path, tiny_gguf: Path) -> None:
    folder, sha256 = weights_from_gguf([tiny_gguf], name="tiny")

    assert sha256 == hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert folder == cache / "weights" / sha256 == weights_entry(sha256)
    assert leftovers(cache) == []


def test_a_second_time_nothing_is_converted(
    cache: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = convert(tiny_gguf)
    forbid_conversion(monkeypatch)

    assert convert(tiny_gguf) == first


def test_pieces_of_a_file_give_the_same_entry_as_the_file(
    cache: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    content = tiny_gguf.read_bytes()
    pieces = [tmp_path / "a", tmp_path / "b"]
    pieces[0].write_bytes(content[:1000])
    pieces[1].write_bytes(content[1000:])

    folder, sha256 = weights_from_gguf(pieces, name="pieces")

    assert sha256 == sha256_of_files([tiny_gguf])
    assert "joined.gguf" not in os.listdir(folder)
    assert convert(tiny_gguf) == folder


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def lose_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_the_record(folder: Path) -> None:
    (folder / "source.json").unlink()


def garble_the_record(folder: Path) -> None:
    (folder / "source.json").write_text('{"format": 1, "files": [')


def empty_the_record(folder: Path) -> None:
    (folder / "source.json").write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        cut_short,
        lose_the_tokenizer,
        lose_the_record,
        garble_the_record,
        empty_the_record,
    ],
)
def test_a_damaged_entry_is_noticed_and_rebuilt(damage, cache: Path, tiny_gguf: Path) -> None:
    folder = convert(tiny_gguf)
    before = (folder / "model.safetensors").read_bytes()
    damage(folder)
    assert not entry_is_whole(folder)

    assert convert(tiny_gguf) == folder

    assert entry_is_whole(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert leftovers(cache) == []


def convert_at_the_barrier(
    barrier: Any, outcomes: Any, path: Path, cache: Path, broken_lock: bool
) -> None:
    """In a process of its own: convert at the same moment as the other one."""
    os.environ["STEERLENS_CACHE"] = str(cache)
    conversions = 0
    read_model = weights.read_model

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal conversions
        conversions += 1
        return read_model(*args, **options)

    weights.read_model = counting
    if broken_lock:
        weights.FileLock = lambda path: contextlib.nullcontext()
    barrier.wait(timeout=120)
    folder = convert(path)
    outcomes.put((entry_is_whole(folder), conversions))


@pytest.mark.parametrize("broken_lock", [False, True])
def test_two_processes_at_once_leave_one_whole_entry(
    broken_lock: bool, cache: Path, tiny_gguf: Path
) -> None:
    # Two real processes, forked from a server that has imported everything once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["steerlens.models.weights"])
    barrier, outcomes = context.Barrier(2), context.Queue()
    arguments = (barrier, outcomes, tiny_gguf, cache, broken_lock)
    processes = [
        context.Process(target=convert_at_the_barrier, args=arguments, daemon=True)
        for _ in range(2)
    ]

    for process in processes:
        process.start()
    ended = [outcomes.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=30)

    assert [whole for whole, _ in ended] == [True, True]
    assert leftovers(cache) == []
    # With a lock that does not work both convert; with one that does, the second waits.
    assert sum(conversions for _, conversions in ended) == (2 if broken_lock else 1)


def test_a_cache_that_cannot_be_a_folder_is_one_sentence(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "file" / "cache"))

    with pytest.raises(ModelError, match=r"cannot be written \(.+\); set STEERLENS_CACHE"):
        convert(tiny_gguf)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_one_sentence(cache: Path, tiny_gguf: Path) -> None:
    cache.mkdir(mode=0o500)

    with pytest.raises(ModelError, match="set STEERLENS_CACHE"):
        convert(tiny_gguf)

    assert list(cache.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(
    cache: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "save_model", no_space)

    with pytest.raises(ModelError, match=r"No space left on device.*STEERLENS_CACHE"):
        convert(tiny_gguf)

    assert [path.name for path in (cache / "weights").iterdir()] == [".lock"]


def test_an_entry_in_a_read_only_cache_is_used_as_it_is(
    cache: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert(tiny_gguf)

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(weights, "FileLock", refuse)

    assert convert(tiny_gguf) == folder


def test_the_folder_of_a_killed_process_is_cleared_away_and_a_live_one_is_not(
    cache: Path, tiny_gguf: Path
) -> None:
    sha256 = sha256_of_files([tiny_gguf])
    dead, alive = (cache / "weights" / f".{sha256[:16]}-{name}" for name in ("dead", "alive"))
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    os.utime(dead, (0, 0))

    convert(tiny_gguf)

    assert not dead.exists()
    assert alive.exists()


def test_a_file_of_another_kind_is_refused_by_its_first_bytes(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.gguf"
    path.write_bytes(b"\x89PNG and so on")

    with pytest.raises(FileFormatError, match=r"picture\.gguf is not a GGUF file .*PNG"):
        convert(path)

    assert leftovers(cache) == []


@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_one_sentence_and_nothing_is_kept(
    share: float, cache: Path, tiny_gguf: Path
) -> None:
    os.truncate(tiny_gguf, max(6, int(tiny_gguf.stat().st_size * share)))

    with pytest.raises(
        FileFormatError, match=r"tiny\.gguf (is truncated|holds no|lacks)"
    ) as caught:
        convert(tiny_gguf)

    assert "\n" not in str(caught.value)
    assert [path.name for path in (cache / "weights").iterdir()] == [".lock"]


def test_a_file_that_lacks_a_tensor_is_refused_rather_than_filled_with_random_numbers(
    cache: Path, tmp_path: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "gap.gguf", leave_out="blk.1.ffn_up.weight")

    with pytest.raises(FileFormatError, match=r"gap\.gguf lack 1 .*layers\.1\.mlp\.up_proj"):
        convert(path)


def test_a_gguf_file_without_a_language_model_is_refused(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "a-picture-model")
    writer.add_tensor("x", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(FileFormatError, match=r"other\.gguf holds no language model"):
        convert(path)


def test_a_missing_file_is_one_sentence(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        convert(tmp_path / "nowhere.gguf")
