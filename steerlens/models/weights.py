"""The weights cache: a GGUF file becomes, once, a folder that loads in under a second.

`transformers` can read a GGUF file by de-quantising every tensor and rebuilding the tokenizer from
the file's word list. For a 135M-parameter model that takes about 20 s, and it would be paid at
every start. So the result is kept: a folder ``<cache>/weights/<sha256 of the GGUF>/`` with

- ``config.json``: the model's configuration, without the entry that says it is quantised
  (`transformers` refuses to save or to re-load plain weights under such a configuration);
- ``model.safetensors``: the de-quantised weights in float32, which every GGUF type fits exactly;
- the tokenizer's files and ``generation_config.json``;
- ``source.json``, written last: where the folder came from, and size and CRC-32 of each file.

``<cache>`` is the environment variable ``STEERLENS_CACHE``, else the user's cache folder.

**Whole or not at all.** A folder is built under a temporary name beside its final place and
renamed. A file lock makes a second process wait instead of converting as well; should the lock not
work (some network file systems), both convert, the first rename wins and the other process uses the
winner's folder. A folder whose files do not match its ``source.json`` is rebuilt.

**Caveat.** CRC-32 finds accidents (a full disk, a killed copy, a flipped bit), not malice. The
folder is as trustworthy as whoever may write to it.

>>> sha256_of_files([]) == hashlib.sha256(b"").hexdigest()
True
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
from transformers.utils import logging as transformers_logging

from steerlens.errors import FileFormatError, ModelError, SteerlensError
from steerlens.files.gguf import check_header
from steerlens.models.adapter.hugging_face import gguf_progress_in_terminal, without_source

__all__ = [
    "cache_folder",
    "entry_is_whole",
    "quiet_progress",
    "read_model",
    "sha256_of_files",
    "weights_entry",
    "weights_from_gguf",
    "without_advice",
]

GGUF_MAGIC = b"GGUF"
SOURCE_FILE = "source.json"
ENTRY_FORMAT = 1
CHUNK_BYTES = 1 << 22
# A conversion takes seconds to minutes; a temporary folder this old belongs to a killed process.
ABANDONED_SECONDS = 6 * 3600.0

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder for everything kept between runs: ``STEERLENS_CACHE``, else the user's cache."""
    given = os.environ.get("STEERLENS_CACHE")
    return Path(given).expanduser() if given else user_cache_path("steerlens")


def weights_entry(sha256: str) -> Path:
    """Where the converted weights of the GGUF file with this hash stand, whether there or not."""
    return cache_folder() / "weights" / sha256


def sha256_of_files(parts: Sequence[Path]) -> str:
    """SHA-256 (hexadecimal) of the files' contents one after another: the hash of the joined file.

    Raises:
        ModelError: "… cannot be read: …" when a file is missing or not readable.
    """
    digest = hashlib.sha256()
    for part in parts:
        try:
            with part.open("rb") as file:
                while block := file.read(CHUNK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise ModelError(f"{part} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Within the block, `transformers` draws no progress bars; afterwards as before.

    The one over the tensors of a GGUF file, which takes some 20 seconds, is drawn in a terminal.
    """
    was_on = transformers_logging.is_progress_bar_enabled()
    bars: Any = transformers_logging
    bars.disable_progress_bar()
    try:
        # That bar is tqdm's own, which the setting does not reach.
        with gguf_progress_in_terminal():
            yield
    finally:
        if was_on:
            bars.enable_progress_bar()


class _Unwanted(logging.Filter):
    """Leaves out TransformerLens's advice to write another name, which is not the user's here."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "deprecated, model_name alias" not in record.getMessage()


@contextmanager
def without_advice() -> Iterator[None]:
    """Within the block, TransformerLens does not advise on the name a model was asked for by.

    It says so on the root logger, which by itself would also give that logger a handler for good.
    """
    root, unwanted, nothing = logging.getLogger(), _Unwanted(), logging.NullHandler()
    root.addFilter(unwanted)
    root.addHandler(nothing)
    try:
        yield
    finally:
        root.removeHandler(nothing)
        root.removeFilter(unwanted)


def read_model(folder: Path, name: str, **options: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained`, refusing files that lack some of the tensors.

    `transformers` gives a tensor that is not in the files random values and goes on.

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
    """Whether the cached folder has every file its ``source.json`` lists, byte for byte (CRC-32).

    A missing, unreadable or malformed record counts as not whole. The check reads the weights
    once (538 MB: 0.2 s), which also brings them into memory for the load that follows.
    """
    try:
        record = json.loads((entry / SOURCE_FILE).read_text(encoding="utf-8"))
        if record["format"] != ENTRY_FORMAT or "model.safetensors" not in record["files"]:
            return False
        return all(
            (entry / name).stat().st_size == expected["bytes"]
            and _crc32(entry / name) == expected["crc32"]
            for name, expected in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def weights_from_gguf(parts: Sequence[Path], *, name: str) -> tuple[Path, str]:
    """The cached folder with the weights of a GGUF file, converting it if it is not there yet.

    Args:
        parts: The GGUF file, or the pieces that joined in this order make it.
        name: What the file is called in messages and on the progress line.

    Returns:
        The folder, and the SHA-256 of the GGUF file.

    Raises:
        FileFormatError: "… is not a GGUF file …", "… is truncated or damaged …", or "… holds no
            language model …".
        ModelError: "the weights cache … cannot be written …" (read-only, full, or not a folder).
    """
    _check_magic(parts, name)
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
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ModelError(
            f"the weights cache {entry.parent} cannot be written ({reason}); set STEERLENS_CACHE "
            "to a folder that can, with room for the model in float32"
        ) from error
    return entry, sha256


def _check_magic(parts: Sequence[Path], name: str) -> None:
    try:
        with parts[0].open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise ModelError(f"{name} cannot be read: {error.strerror}") from error
    if magic != GGUF_MAGIC:
        raise FileFormatError(
            f"{name} is not a GGUF file (it begins with {magic!r}, a GGUF file with "
            f"{GGUF_MAGIC!r}); give a .gguf file, a model folder, or a hub id"
        )


def _build_entry(entry: Path, parts: Sequence[Path], sha256: str, name: str) -> None:
    """Convert into a temporary sibling of `entry`, then rename it there."""
    _remove_abandoned(entry)
    staging = Path(tempfile.mkdtemp(prefix=f".{entry.name[:16]}-", dir=entry.parent))
    try:
        # Said aloud, because the first load is the only slow one; `transformers` draws the bar.
        print(f"preparing {name} (once; kept in {entry.parent})", file=sys.stderr)
        gguf = parts[0] if len(parts) == 1 else _join(parts, staging / "joined.gguf")
        try:
            check_header(gguf, name)
        except FileFormatError as error:
            raise FileFormatError(f"{error}; download it again") from error
        with quiet_progress():
            model = _read_gguf_model(gguf, name)
            tokenizer = _read_tokenizer(gguf, name)
        if len(parts) > 1:
            gguf.unlink()
        _write_plain(model, tokenizer, staging)
        _write_source(staging, name, sha256)
        _publish(staging, entry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _join(parts: Sequence[Path], target: Path) -> Path:
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, joined, CHUNK_BYTES)
    return target


def _read_gguf_model(gguf: Path, name: str) -> Any:
    """The language model in the file, de-quantised to float32."""
    try:
        return read_model(gguf.parent, name, gguf_file=gguf.name, dtype=torch.float32)
    except (FileFormatError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails anywhere in the parser, struct.error included
        raise _unreadable(name, error) from error


def _read_tokenizer(gguf: Path, name: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except Exception as error:  # the tokenizers library raises Exception itself, no subclass
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> FileFormatError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "general.architecture" in first_line or "is not supported" in first_line:
        return FileFormatError(f"{name} holds no language model that can be read: {first_line}")
    return FileFormatError(
        f"{name} is truncated or damaged, download it again (reading it failed with: {first_line})"
    )


def _write_plain(model: Any, tokenizer: Any, folder: Path) -> None:
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


def _write_source(folder: Path, name: str, sha256: str) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        for path in sorted(folder.iterdir())
    }
    record = {
        "format": ENTRY_FORMAT,
        "source": name,
        "source_sha256": sha256,
        "transformers": transformers.__version__,
        "files": files,
    }
    with (folder / SOURCE_FILE).open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _publish(staging: Path, entry: Path) -> None:
    """Rename `staging` to `entry`; give way to a whole folder, replace a damaged one."""
    for _ in range(3):
        try:
            os.replace(staging, entry)
            return
        except OSError:
            if not entry.exists():
                raise
        if entry_is_whole(entry):
            return  # another process was first; its folder is as good as this one
        logger.warning("the cached weights in %s are damaged; they are replaced", entry)
        discarded = staging.with_name(staging.name + "-damaged")
        try:
            os.replace(entry, discarded)
        except FileNotFoundError:
            continue  # another process has just moved it away
        shutil.rmtree(discarded, ignore_errors=True)
    raise OSError(f"{entry.name} is replaced by another process again and again")


def _remove_abandoned(entry: Path) -> None:
    """Delete temporary folders that a killed process left for this entry."""
    for path in entry.parent.glob(f".{entry.name[:16]}-*"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
