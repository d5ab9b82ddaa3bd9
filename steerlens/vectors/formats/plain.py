r"""Plain safetensors files: steering vectors as other tools lay them out.

There is no common layout. These are read (layers count from 0; *shift* is what is added to the
output of a block, our g·u):

====================  ==============================================================================
a tensor a layer      ``layer_12``, ``layer12``, ``layers.12``, ``blocks.12``, ``model.layers.12``,
                      ``transformer.h.12``, ``direction.12`` or ``12``, each also followed by
                      ``.v``, ``.vector``, ``.direction``, ``.steering_vector``, ``.weight``,
                      ``.hook_out`` or ``.hook_resid_post``; shape [d_model] or [1 d_model].
                      saklas writes ``layer_12``.
all layers in one     one tensor named ``vector``, ``direction``, ``steering_vector``,
                      ``control_vector`` or the plural, shape [layer d_model]; the rows are layers
                      0, 1, … unless a whole-number tensor ``layers`` beside it says otherwise
one layer             the same names, shape [d_model] or [1 d_model]; its layer is `layer`, or the
                      header's ``layer``
psyctl                ``layer_0``, ``layer_1``, … count the tensors there, and the header's
                      ``layer_names`` says which modules they are for; read when these are blocks
steering-lite         ``layer12.v`` with the header's ``cfg``: read for the methods that add,
                      times the calibrated ``coeff``
====================  ==============================================================================

Everything else is refused with the names that were seen, because a wrong guess would steer at a
wrong place and not be noticed. So are vectors for places inside a block, such as
``model.layers[13].mlp.down_proj``.

`write_plain` writes the first layout, ``layer_12`` in float32, and the exact record in the header
under ``steerlens``, where readers of tensors do not look: round trips are exact
(`steerlens.vectors.formats.record`). From files without it, targets are not known.

>>> block_layer("model.layers.12"), block_layer("layer_3.vector"), block_layer("h.3.mlp.c_proj")
(12, 3, None)
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerlens.errors import FileFormatError
from steerlens.files import HEADER_KEY, write_atomically
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.record import (
    exact_record,
    parse_json,
    restricted,
    shifts_of,
    vector_of_record,
    vector_of_shifts,
)

__all__ = ["PLAIN_KIND", "block_layer", "read_header_of_tensors", "read_plain", "write_plain"]

PLAIN_KIND = "plain-steering-vector"
# No vector is larger; a model's weights are.
MAX_BYTES = 256 * 2**20
LAYER_KEY = re.compile(
    r"(?:model\.|transformer\.)?(?:layers?|blocks?|direction|h)?[._\[]?([0-9]{1,6})\]?"
    r"(?:\.(?:v|vector|direction|steering_vector|weight|hook_out|hook_resid_post))?"
)
NAME_LIST = re.compile(r"\[\s*'[^']*'(?:,\s*'[^']*')*\s*\]")
WHOLE_KEYS = ("vector", "direction", "steering_vector", "control_vector")
# Methods of steering-lite that add coeff · v; its others do something else with their tensors.
ADDING_METHODS = ("mean_diff", "pca")
SHOWN_NAMES = 6


def write_plain(
    vector: SteeringVector, path: str | Path, *, layers: Sequence[int] | None = None
) -> Path:
    """Write a safetensors file with one float32 tensor ``layer_N`` a layer, holding g·u.

    Args:
        vector: What to write.
        path: The file; written whole or not at all.
        layers: Layers to write; all of the vector's by default.

    Raises:
        SteeringError: "layer … is out of range for this vector …".
        SteerlensError: "cannot write …".
    """
    chosen = restricted(vector, layers)
    record = {"kind": PLAIN_KIND, **exact_record(chosen)}
    header = {HEADER_KEY: json.dumps(record, sort_keys=True)}
    tensors = {f"layer_{layer}": shift.contiguous() for layer, shift in shifts_of(chosen).items()}
    return write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def read_plain(path: str | Path, layer: int | None = None) -> SteeringVector:
    """Read a vector from a safetensors file in one of the layouts above.

    Args:
        path: The file.
        layer: The layer of a file that holds one tensor and does not say for which layer it is.

    Raises:
        FileFormatError: the file is damaged or too large, its layout is none of the above ("…
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
    places = _places(header, shapes, layer, source)
    tensors = _read_tensors(path, shapes)
    rows = _rows(tensors, places, source)
    if layer is not None and list(rows) != [layer]:
        raise FileFormatError(
            f"{source} says itself that it is for layers {list(rows)[:SHOWN_NAMES]}; leave out "
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
    coefficient = _coefficient(header, source)
    if coefficient != 1.0:
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
    match = LAYER_KEY.fullmatch(name)
    return int(match[1]) if match else None


def _places(
    header: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], layer: int | None, source: str
) -> dict[str, list[int]]:
    """Which layers the rows of each tensor are for."""
    if "layer_names" in header:
        return _places_of_names(header["layer_names"], shapes, source)
    whole = [name for name in shapes if name.removesuffix("s") in WHOLE_KEYS]
    if len(whole) == 1 and set(shapes) <= {*whole, "layers"}:
        return {whole[0]: _places_of_rows(header, shapes, whole[0], layer, source)}
    found = {name: block_layer(name) for name in shapes}
    if not found or None in found.values():
        raise FileFormatError(
            f"{source} holds tensors named {_named(shapes) or 'nothing'}, which is no known layout "
            "of a steering vector; expected layer_0, layer_1, …, or one tensor 'vector'"
        )
    return _distinct(found, shapes, source)


def _distinct(
    numbers: Mapping[str, int | None], shapes: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, list[int]]:
    """Each tensor's one layer; no layer twice."""
    if len(set(numbers.values())) != len(numbers):
        raise FileFormatError(f"{source} holds two tensors for one layer: {_named(shapes)}")
    return {name: [number] for name, number in numbers.items() if number is not None}


def _places_of_names(
    text: str, shapes: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, list[int]]:
    """psyctl's layout: tensor ``layer_k`` is for the k-th of the module names in the header."""
    # Written with str() of a Python list; taken apart here rather than evaluated.
    names = re.findall("'([^']*)'", text) if NAME_LIST.fullmatch(text) else []
    if len(names) != len(shapes):
        raise FileFormatError(
            f"the layer_names of {source} are not a list with one name for each of its "
            f"{len(shapes)} tensors"
        )
    numbers = [block_layer(name) for name in names]
    for k, name in enumerate(names):
        if numbers[k] is None or f"layer_{k}" not in shapes:
            raise FileFormatError(
                f"{source} is for {name[:60]!r}; only the outputs of blocks, such as "
                "'model.layers[13]', are places where steerlens steers"
            )
    return _distinct({f"layer_{k}": number for k, number in enumerate(numbers)}, shapes, source)


def _places_of_rows(
    header: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    layer: int | None,
    source: str,
) -> list[int]:
    """The layers of the rows of a single tensor; [-1] asks for the tensor ``layers``."""
    shape = shapes[name]
    if len(shape) not in (1, 2):
        raise FileFormatError(
            f"{source} holds {name} of shape {shape}; expected [layer d_model] or [d_model]"
        )
    if "layers" in shapes:
        if math.prod(shapes["layers"]) != (shape[0] if len(shape) == 2 else 1):
            raise FileFormatError(
                f"{source} holds {name} of shape {shape} and layers of shape {shapes['layers']}; "
                "expected one row for each layer"
            )
        return [-1]
    if len(shape) == 2 and shape[0] > 1:
        return list(range(shape[0]))
    given = str(header.get("layer", "")) if layer is None else str(layer)
    if not re.fullmatch("[0-9]{1,6}", given):
        raise FileFormatError(
            f"{source} holds one vector ({name}, shape {shape}) and does not say for which layer; "
            "give layer=…"
        )
    return [int(given)]


def _read_tensors(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error


def _rows(
    tensors: Mapping[str, Tensor], places: Mapping[str, list[int]], source: str
) -> dict[int, Tensor]:
    """The shifts by layer; `as_shift` checks them."""
    rows: dict[int, Tensor] = {}
    for name, layers in places.items():
        tensor = tensors[name]
        numbers = tensors["layers"].flatten().tolist() if layers == [-1] else layers
        if not all(isinstance(number, int) for number in numbers):
            raise FileFormatError(f"{source} names layers that are not whole numbers")
        if len(set(numbers)) != len(numbers):
            raise FileFormatError(f"{source} gives two rows of {name} to one layer")
        rows.update(zip(numbers, tensor if len(numbers) > 1 else [tensor], strict=True))
    return rows


def _coefficient(header: Mapping[str, str], source: str) -> float:
    """What steering-lite multiplies its tensors with; 1 for files of other tools."""
    if "cfg" not in header:
        return 1.0
    settings = parse_json(header["cfg"], f"the cfg of {source}")
    method = settings.get("method") if isinstance(settings, dict) else None
    if method not in ADDING_METHODS or settings.get("target", "residual") != "residual":
        raise FileFormatError(
            f"{source} is for steering-lite's method {method!r}; only those that add to the "
            f"residual stream can be read: {', '.join(ADDING_METHODS)}"
        )
    coefficient = settings.get("coeff", 1.0)
    if settings.get("target_submodule") is not None or not isinstance(coefficient, int | float):
        raise FileFormatError(f"the cfg of {source} names a part of a block, or no strength")
    return float(coefficient)


def _named(shapes: Mapping[str, Any]) -> str:
    names = [name[:60] for name in sorted(shapes)]
    more = f", … ({len(names)} in all)" if len(names) > SHOWN_NAMES else ""
    return ", ".join(repr(name) for name in names[:SHOWN_NAMES]) + more
