"""The weights cache: a GGUF file becomes, once, a folder that loads in under a second.

`transformers` reads a GGUF file by de-quantising every tensor, which takes about 20 s for 135M
parameters. So the result is kept in ``<cache>/weights/<sha256 of the GGUF>/``:

- ``config.json`` without the entry that says the model is quantised;
- ``model.safetensors``: the weights in float32, which holds every GGUF type exactly;
- the tokenizer's files and ``generation_config.json``;
- ``source.json``, written last: where the folder came from, and size and CRC-32 of each file.

``<cache>`` is the environment variable ``STEERLENS_CACHE``, else the user's cache folder. A folder
is built beside its final place and renamed, under a file lock, so it is there whole or not at all;
one whose files do not match its ``source.json`` is built again.

**Caveat.** CRC-32 finds accidents (a full disk, a flipped bit), not malice. The folder is as
trustworthy as whoever may write to it.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import save_model
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformers.utils import logging as transformers_logging

from steerlens.errors import FileFormatError, ModelError, SteerlensError, first_line
from steerlens.files.gguf import check_header
from steerlens.models.adapter.hugging_face import gguf_progress_in_terminal, without_source

__all__ = [
    "cache_folder",
    "entry_is_whole",
    "quiet_loading",
    "read_model",
    "sha256_of_files",
    "text_options",
    "weights_entry",
    "weights_from_gguf",
]

SOURCE_FILE = "source.json"
ENTRY_FORMAT = 1
CHUNK_BYTES = 1 << 22
# A conversion takes seconds to minutes; a temporary folder this old belongs to a killed process.
ABANDONED_SECONDS = 6 * 3600.0

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder for everything kept between runs: ``STEERLENS_CACHE``, else the user's cache."""
    chosen = os.environ.get("STEERLENS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("steerlens")


def weights_entry(sha256: str) -> Path:
    """Where the converted weights of the GGUF file with this hash are, if they are there."""
    return cache_folder() / "weights" / sha256


def sha256_of_files(parts: Sequence[Path]) -> str:
    """SHA-256 (hexadecimal) of the files' contents one after another.

    Raises:
        ModelError: "… cannot be read: …".
    """
    digest = hashlib.sha256()
    for part in parts:
        try:
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        except OSError as error:
            raise ModelError(f"{part} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _is_wanted(record: logging.LogRecord) -> bool:
    """Leaves out TransformerLens's advice to write another name than the user gave."""
    return "deprecated, model_name alias" not in record.getMessage()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Within the block, `transformers` draws no bars and TransformerLens gives no advice on names.

    The bar over the tensors of a GGUF file, which takes some 20 seconds, is drawn in a terminal.
    """
    bars: Any = transformers_logging
    was_on = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    # The advice goes to the root logger, which would get a handler for good if it had none.
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(_is_wanted)
    root.addHandler(handler)
    try:
        with gguf_progress_in_terminal():
            yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(_is_wanted)
        if was_on:
            bars.enable_progress_bar()


# Where checkpoints of models that also see or hear keep the tensors of their language model.
_TO_TEXT = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?": "model.",
}


def text_options(folder: Path) -> dict[str, Any]:
    """Options of `read_model` for the language model inside one that also sees or hears.

    Gemma 3 from 4B on, Mistral Small 3.1 or Llama 4 are published as models of text and images.
    Given text alone, their language model computes the same by itself, without the other towers in
    memory. Empty for models of text, for language models that TransformerLens has no hooks for, and
    for quantised checkpoints, whose settings name modules of the whole.
    """
    auto: Any = transformers.AutoConfig
    known: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    whole = auto.from_pretrained(str(folder), local_files_only=True)
    text = whole.get_text_config()
    is_quantised = getattr(whole, "quantization_config", None) is not None
    if text is whole or is_quantised or type(text) not in known:
        return {}
    kind = known[type(text)]
    if kind.__name__ not in SUPPORTED_ARCHITECTURES:
        return {}
    text.architectures = [kind.__name__]
    return {"config": text, "key_mapping": _TO_TEXT}


def read_model(folder: Path, name: str, **options: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained`, which would fill missing tensors with random numbers.

    Args:
        folder: The folder that holds the files.
        name: What the model is called in messages.
        options: Further arguments for `from_pretrained`.

    Raises:
        FileFormatError: "the files of … lack 3 of the model's tensors …".
    """
    auto: Any = transformers.AutoModelForCausalLM
    model, loading = auto.from_pretrained(str(folder), output_loading_info=True, **options)
    missing = sorted(loading["missing_keys"])
    if missing:
        raise FileFormatError(
            f"the files of {name} lack {len(missing)} of the model's tensors ({missing[0]}, …); "
            "they are incomplete, or of another architecture than their config says"
        )
    return model


def entry_is_whole(entry: Path) -> bool:
    """Whether the cached folder has every file that its ``source.json`` lists, byte for byte.

    The check reads the weights once (538 MB: 0.2 s), which brings them into memory for loading.
    """
    try:
        record = json.loads((entry / SOURCE_FILE).read_text(encoding="utf-8"))
        files = record["files"]
        return (
            record["format"] == ENTRY_FORMAT
            and "model.safetensors" in files
            and all(_size_and_crc32(entry / name) == files[name] for name in files)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def weights_from_gguf(parts: Sequence[Path], *, name: str) -> tuple[Path, str]:
    """The cached folder with the weights of a GGUF file, converted if it is not there yet.

    Args:
        parts: The GGUF file, or the pieces that make it when joined in this order.
        name: What the file is called in messages.

    Returns:
        The folder, and the SHA-256 of the GGUF file.

    Raises:
        FileFormatError: "… is not a GGUF file …", "… is truncated or damaged …", or "… holds no
            language model …".
        ModelError: "the weights cache … cannot be written …" (read-only, full, or not a folder).
    """
    sha256 = sha256_of_files(parts)
    entry = weights_entry(sha256)
    if entry_is_whole(entry):
        return entry, sha256
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        # One lock for all models: two conversions at once would only compete for memory.
        with FileLock(str(entry.parent / ".lock")):
            if not entry_is_whole(entry):
                _build_entry(entry, parts, sha256, name)
    except SteerlensError:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(
            f"the weights cache {entry.parent} cannot be written ({reason}); set STEERLENS_CACHE "
            "to a folder that can, with room for the model in float32"
        ) from error
    return entry, sha256


def _build_entry(entry: Path, parts: Sequence[Path], sha256: str, name: str) -> None:
    """Convert into a temporary sibling of `entry`, then rename it."""
    for path in entry.parent.glob(f".{entry.name[:16]}-*"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{entry.name[:16]}-", dir=entry.parent))
    try:
        print(f"preparing {name} (once; kept in {entry.parent})", file=sys.stderr)
        joined = staging / "joined.gguf"
        if len(parts) > 1:
            with joined.open("wb") as whole:
                for part in parts:
                    with part.open("rb") as piece:
                        shutil.copyfileobj(piece, whole, CHUNK_BYTES)
        model, tokenizer = _read_gguf(joined if len(parts) > 1 else parts[0], name)
        joined.unlink(missing_ok=True)
        _write_folder(model, tokenizer, staging)
        record = {
            "format": ENTRY_FORMAT,
            "source": name,
            "source_sha256": sha256,
            "transformers": transformers.__version__,
            "files": {path.name: _size_and_crc32(path) for path in sorted(staging.iterdir())},
        }
        (staging / SOURCE_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")
        _publish(staging, entry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _read_gguf(path: Path, name: str) -> tuple[Any, Any]:
    """The language model in the file, de-quantised to float32, and its tokenizer."""
    check_header(path, name)
    try:
        with quiet_loading():
            model = read_model(path.parent, name, gguf_file=path.name, dtype=torch.float32)
            auto: Any = transformers.AutoTokenizer
            return model, auto.from_pretrained(str(path.parent), gguf_file=path.name)
    except (FileFormatError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails anywhere in the parser
        reason = first_line(error)
        if "general.architecture" in reason or "is not supported" in reason:
            raise FileFormatError(
                f"{name} holds no language model that can be read: {reason}"
            ) from error
        raise FileFormatError(
            f"{name} is truncated or damaged, download it again (reading it failed with: {reason})"
        ) from error


def _write_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as an ordinary model folder."""
    # The title that a GGUF file carries is not a name the model could be loaded by, and
    # `save_pretrained` refuses a configuration that says "quantised".
    settings = without_source(model.config.to_dict())
    settings.pop("quantization_config", None)
    config = type(model.config).from_dict(settings)
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    # Tied tensors (embedding and unembedding) are written once and tied again on loading.
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def _publish(staging: Path, entry: Path) -> None:
    """Rename `staging` to `entry`, unless another process was first, where locks do not work."""
    if entry.exists() and not entry_is_whole(entry):
        logger.warning("the cached weights in %s are damaged; they are replaced", entry)
        shutil.rmtree(entry)
    try:
        os.replace(staging, entry)
    except OSError:
        if not entry_is_whole(entry):
            raise


def _size_and_crc32(path: Path) -> dict[str, int]:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            checksum = zlib.crc32(block, checksum)
        return {"bytes": file.tell(), "crc32": checksum}
