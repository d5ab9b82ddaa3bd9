r"""Plain safetensors files: steering vectors as other tools lay them out.

There is no common layout. These are read (layers count from 0; a row is what is added to the output
of a block, our shift g·u):

====================  ==============================================================================
one tensor per layer  ``layer_12``, ``layer12``, ``layers.12``, ``blocks.12``, ``model.layers.12``,
                      ``transformer.h.12``, ``direction.12`` or ``12``, each also followed by
                      ``.v``, ``.vector``, ``.direction``, ``.steering_vector``, ``.weight``,
                      ``.hook_out`` or ``.hook_resid_post``; shape [d_model] or [1 d_model].
                      saklas writes ``layer_12``.
all layers in one     one tensor named ``vector``, ``direction``, ``steering_vector``,
                      ``control_vector`` or the plural, shape [layer d_model]; the rows are layers
                      0, 1, … unless a whole-number tensor ``layers`` says otherwise
one layer             the same names, shape [d_model] or [1 d_model]; its layer is `layer`, or the
                      header's ``layer``
steering-lite         ``layer12.v`` with the header's ``cfg``: read for the methods that add, times
                      the calibrated ``coeff``
====================  ==============================================================================

Everything else is refused with the names in the file, because a wrong guess would steer at a wrong
place unnoticed: vectors for places inside a block, such as ``model.layers[13].mlp.down_proj``, and
psyctl's files, whose ``layer_0``, ``layer_1``, … count the tensors.

`write_plain` writes the first layout in float32, with the exact record in the header under
``steerlens`` (`steerlens.vectors.formats.record`).

>>> block_layer("model.layers.12"), block_layer("layer_3.vector"), block_layer("h.3.mlp.c_proj")
(12, 3, None)
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerlens.errors import FileFormatError
from steerlens.files import HEADER_KEY, write_atomically
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.record import (
    MAX_BYTES,
    exact_record,
    parse_json,
    shifts_of,
    vector_of_record,
    vector_of_shifts,
)

__all__ = ["PLAIN_KIND", "block_layer", "read_header_of_tensors", "read_plain", "write_plain"]

PLAIN_KIND = "plain-steering-vector"
_LAYER_NAME = re.compile(
    r"(?:model\.|transformer\.)?(?:layers?|blocks?|direction|h)?[._\[]?([0-9]{1,6})\]?"
    r"(?:\.(?:v|vector|direction|steering_vector|weight|hook_out|hook_resid_post))?"
)
_ALL_LAYERS_NAMES = ("vector", "direction", "steering_vector", "control_vector")
# Methods of steering-lite that add coeff · v.
_ADDING_METHODS = ("mean_diff", "pca")
_SHOWN_NAMES = 6


def write_plain(
    vector: SteeringVector, path: str | Path, *, layers: Sequence[int] | None = None
) -> Path:
    """Write a safetensors file, atomically, with one float32 tensor ``layer_N`` per layer: g·u.

    Args:
        vector: The vector.
        path: The file.
        layers: Layers to write; all of the vector's by default.

    Raises:
        SteeringError: "layer … is out of range for this vector …".
        SteerlensError: "cannot write …".
    """
    vector = vector if layers is None else vector.restricted_to(layers)
    record = {"kind": PLAIN_KIND, **exact_record(vector)}
    header = {HEADER_KEY: json.dumps(record, sort_keys=True)}
    tensors = {f"layer_{layer}": shift.contiguous() for layer, shift in shifts_of(vector).items()}
    return write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def read_plain(path: str | Path, layer: int | None = None) -> SteeringVector:
    """Read a vector from a safetensors file in one of the layouts above.

    Args:
        path: The file.
        layer: The layer of a file that holds one tensor and does not say for which layer it is.

    Raises:
        FileFormatError: The file is damaged or too large, its layout is none of the above ("…
            holds tensors named …"), or it gives no layer.
    """
    source = str(path)
    header, shapes = read_header_of_tensors(path)
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise FileFormatError(
            f"{source} has {size / 2**20:.0f} MiB and holds tensors named {_named(shapes)}; no "
            f"steering vector is larger than {MAX_BYTES // 2**20} MiB"
        )
    pairs = _rows(header, _read_tensors(path), layer, source)
    rows = dict(pairs)
    if len(rows) != len(pairs):
        raise FileFormatError(f"{source} holds two rows for one layer in {_named(shapes)}")
    if layer is not None and list(rows) != [layer]:
        raise FileFormatError(
            f"{source} says itself that it is for layers {list(rows)[:_SHOWN_NAMES]}; leave out "
            f"layer={layer}"
        )
    if HEADER_KEY in header:
        record = parse_json(header[HEADER_KEY], f"the steerlens record of {source}")
        if not isinstance(record, dict) or record.get("kind") != PLAIN_KIND:
            raise FileFormatError(f"{source} holds no plain steering vector but another record")
        return vector_of_record(record, rows, source)
    metadata: dict[str, Any] = {"source_format": "safetensors"}
    if isinstance(header.get("model"), str):
        metadata["model"] = header["model"]
    if "cfg" in header:
        coefficient = _steering_lite_coefficient(header["cfg"], source)
        rows = {number: coefficient * row for number, row in rows.items()}
    return vector_of_shifts(rows, source, metadata)


def read_header_of_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Header and tensor shapes of a safetensors file; no tensor is read.

    Raises:
        FileFormatError: "… is not a readable safetensors file …".
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), shapes
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(
            f"{path} is not a readable safetensors file (truncated or foreign): {error}"
        ) from error


def block_layer(name: str) -> int | None:
    """The layer that a tensor's name stands for; None unless it stands for a block's output."""
    match = _LAYER_NAME.fullmatch(name)
    return int(match[1]) if match else None


def _read_tensors(path: str | Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error


def _rows(
    header: Mapping[str, str], tensors: Mapping[str, Tensor], layer: int | None, source: str
) -> list[tuple[int, Tensor]]:
    """Pairs of layer and row."""
    if "layer_names" in header:
        raise FileFormatError(
            f"{source} is in psyctl's layout, whose layer_0, layer_1, … count the tensors; name "
            f"each after its layer instead: {header['layer_names'][:200]}"
        )
    names = [name for name in tensors if name.removesuffix("s") in _ALL_LAYERS_NAMES]
    if len(names) == 1 and set(tensors) <= {*names, "layers"}:
        return _rows_of_one(header, tensors, names[0], layer, source)
    pairs = [(block_layer(name), tensor) for name, tensor in tensors.items()]
    known = [(number, tensor) for number, tensor in pairs if number is not None]
    if not known or len(known) < len(pairs):
        raise FileFormatError(
            f"{source} holds tensors named {_named(tensors) or 'nothing'}, which is no known "
            "layout of a steering vector; expected layer_0, layer_1, …, or one tensor 'vector'"
        )
    return known


def _rows_of_one(
    header: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    name: str,
    layer: int | None,
    source: str,
) -> list[tuple[int, Tensor]]:
    """The rows of a single tensor, with their layers."""
    tensor = tensors[name]
    shape = tuple(tensor.shape)
    if tensor.ndim not in (1, 2):
        raise FileFormatError(
            f"{source} holds {name} of shape {shape}; expected [layer d_model] or [d_model]"
        )
    rows = tensor.reshape(-1, shape[-1]) if tensor.numel() else tensor[None]
    if "layers" in tensors:
        numbers = tensors["layers"].flatten().tolist()
        if len(numbers) != len(rows):
            raise FileFormatError(
                f"{source} holds {name} of shape {shape} and layers of shape "
                f"{tuple(tensors['layers'].shape)}; expected one row for each layer"
            )
        if not all(isinstance(number, int) for number in numbers):
            raise FileFormatError(f"{source} names layers that are not whole numbers")
    elif len(rows) > 1:
        numbers = list(range(len(rows)))
    else:
        number = str(header.get("layer", "")) if layer is None else str(layer)
        if not re.fullmatch("[0-9]{1,6}", number):
            raise FileFormatError(
                f"{source} holds one vector ({name}, shape {shape}) and does not say for which "
                "layer; give layer=…"
            )
        numbers = [int(number)]
    return list(zip(numbers, rows, strict=True))


def _steering_lite_coefficient(text: str, source: str) -> float:
    """What steering-lite multiplies its tensors with."""
    settings = parse_json(text, f"the cfg of {source}")
    method = settings.get("method") if isinstance(settings, dict) else None
    if method not in _ADDING_METHODS or settings.get("target", "residual") != "residual":
        raise FileFormatError(
            f"{source} is for steering-lite's method {method!r}; only those that add to the "
            f"residual stream can be read: {', '.join(_ADDING_METHODS)}"
        )
    coefficient = settings.get("coeff", 1.0)
    if settings.get("target_submodule") is not None or not isinstance(coefficient, int | float):
        raise FileFormatError(f"the cfg of {source} names a part of a block, or no strength")
    return float(coefficient)


def _named(names: Iterable[str]) -> str:
    """The first names, quoted, and how many there are."""
    short = [name[:60] for name in sorted(names)]
    more = f", … ({len(short)} in all)" if len(short) > _SHOWN_NAMES else ""
    return ", ".join(repr(name) for name in short[:_SHOWN_NAMES]) + more
