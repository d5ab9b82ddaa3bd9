"""Where a model's weights go, and in what form: the options `load_model` passes on, checked.

``device_map``
    spreads the layers over devices, as in `transformers`: "auto", "balanced", "sequential", or a
    mapping from module to device.
``max_memory``
    beside ``device_map``: how much of each device may be used, such as ``{0: "70GiB", "cpu":
    "200GiB"}``. What fits nowhere else goes to the CPU, and from there to the disk.
``quantization_config``
    a `transformers` configuration (``BitsAndBytesConfig``, ``TorchAoConfig``, …) or the same as a
    dictionary with ``quant_method``; weights are quantised while they are read. Each kind needs
    its own library (bitsandbytes, torchao, …).

**What works on quantised weights.** Residuals, steering, generation and everything made of them:
the forward pass de-quantises inside. What reads weights as matrices (the components that write a
direction, the vocabulary read-out of a quantised unembedding) does not.

A quantised model answers differently, so results name it: `quantization_name` becomes part of the
model's dtype in runs and pieces.

>>> placement_options(None, None, {"quant_method": "bitsandbytes", "load_in_4bit": True})[
...     "quantization_config"].load_in_4bit
True
>>> quantization_name({"quant_method": "bitsandbytes", "load_in_4bit": True})
'bitsandbytes-4bit'
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from steerlens.errors import ModelError, unknown_name

__all__ = ["placement_options", "quantization_name"]

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?\s*([KMGT]i?)?B", re.IGNORECASE)


def placement_options(
    device_map: str | Mapping[str, str | int] | None,
    max_memory: Mapping[int | str, int | str] | None,
    quantization_config: Any,
) -> dict[str, Any]:
    """Arguments for `from_pretrained`; empty where everything has its default.

    Raises:
        ModelError: ``max_memory`` without ``device_map``, of a device that is not here, or that is
            no size; a quantisation that `transformers` does not know.
        UnknownNameError: "unknown device_map …".
    """
    options: dict[str, Any] = {}
    if isinstance(device_map, str) and device_map not in _MAPS and not _is_device(device_map):
        raise unknown_name("device_map", device_map, _MAPS)
    if device_map is not None:
        options["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    if max_memory is not None:
        if device_map is None:
            raise ModelError(
                "max_memory says how much of each device may be used and needs a device_map to "
                "act on; give device_map='auto' with it"
            )
        for device, size in max_memory.items():
            _check_room(device, size)
        options["max_memory"] = dict(max_memory)
    if quantization_config is not None:
        options["quantization_config"] = _quantization(quantization_config)
    return options


def quantization_name(quantization_config: Any) -> str | None:
    """A short name for a quantisation: its method, its bits, and a digest of unusual settings.

    Args:
        quantization_config: As given to `placement_options`, or what a loaded model's config has.
    """
    if quantization_config is None:
        return None
    config = _quantization(quantization_config)
    record = _plain(config)
    method = str(getattr(record.get("quant_method"), "value", record.get("quant_method")))
    bits = record.get("bits") or (
        4 if record.get("load_in_4bit") else 8 if record.get("load_in_8bit") else None
    )
    name = method if bits is None else f"{method}-{bits}bit"
    usual = {"quant_method": method, "load_in_4bit": bits == 4, "load_in_8bit": bits == 8}
    if method == "bitsandbytes" and record == _plain(_quantization(usual)):
        return name
    text = json.dumps(record, sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _plain(config: Any) -> dict[str, Any]:
    record = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    return {key: str(value) if key.endswith("dtype") else value for key, value in record.items()}


def _quantization(config: Any) -> Any:
    """The configuration as `transformers` wants it."""
    if hasattr(config, "quant_method") and hasattr(config, "to_dict"):
        return config
    if not isinstance(config, Mapping) or "quant_method" not in config:
        raise ModelError(
            f"quantization_config is a {type(config).__name__}; give a transformers configuration "
            "such as BitsAndBytesConfig(load_in_8bit=True), or a dictionary with 'quant_method'"
        )
    from transformers.quantizers.auto import (
        AUTO_QUANTIZATION_CONFIG_MAPPING,
        AutoQuantizationConfig,
    )

    method = config["quant_method"]
    known: Any = AUTO_QUANTIZATION_CONFIG_MAPPING
    if method not in known and f"{method}_8bit" not in known:
        raise unknown_name("quant_method", str(method), sorted(map(str, known)))
    try:
        return AutoQuantizationConfig.from_dict(dict(config))
    except (ValueError, TypeError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"quantization_config cannot be used: {first}") from error


def _check_room(device: int | str, size: int | str) -> None:
    if isinstance(device, bool) or not isinstance(device, int):
        if device not in ("cpu", "disk", "mps"):
            raise ModelError(
                f"max_memory names the device {device!r}; give numbers for GPUs (0, 1, …), or "
                "'cpu', 'disk', 'mps'"
            )
    elif not 0 <= device < torch.cuda.device_count():
        raise ModelError(
            f"max_memory names GPU {device}; this machine has {torch.cuda.device_count()}"
        )
    sized = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    if not sized and not (isinstance(size, str) and _SIZE.fullmatch(size.strip())):
        raise ModelError(
            f"max_memory of {device!r} is {size!r}; give bytes, or a size such as '20GiB'"
        )


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True
