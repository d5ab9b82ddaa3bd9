"""Where a model's weights go and in what form: the options of `load_model`, checked.

``device_map``
    spreads the layers over devices, as in `transformers`: "auto", "balanced", "sequential", or a
    mapping from module to device.
``max_memory``
    with ``device_map``: how much of each device may be used, such as ``{0: "70GiB", "cpu":
    "200GiB"}``. Parts that would have to stay on the disk are refused, because their weights cannot
    be read or hooked there.
``quantization_config``
    a `transformers` configuration (``BitsAndBytesConfig``, ``TorchAoConfig``, …) or the same as a
    dictionary with ``quant_method``. Each kind needs its own library.

Everything made of residuals works on quantised weights, because the forward pass de-quantises.
What reads weights as matrices (components, the vocabulary read-out) does not. A quantised model
answers differently, so results name the quantisation (`quantization_name`).

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
from dataclasses import dataclass
from typing import Any

import torch

from steerlens.errors import ModelError, first_line, unknown_name
from steerlens.models.adapter.hugging_face import quantization_methods
from steerlens.models.adapter.pytorch import cpu_has

__all__ = [
    "DTYPES",
    "Placement",
    "auto_dtype",
    "placement_options",
    "quantization_name",
    "refuse_disk",
    "resolve_device",
    "resolve_dtype",
]

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?\s*([KMGT]i?)?B", re.IGNORECASE)


@dataclass(frozen=True)
class Placement:
    """What `load_model` was told besides reference, dtype and device; workers are told the same."""

    device_map: str | Mapping[str, str | int] | None = None
    max_memory: Mapping[int | str, int | str] | None = None
    quantization_config: Any = None


def placement_options(
    device_map: str | Mapping[str, str | int] | None,
    max_memory: Mapping[int | str, int | str] | None,
    quantization_config: Any,
) -> dict[str, Any]:
    """Arguments for `from_pretrained`; empty where everything has its default.

    Raises:
        ModelError: ``max_memory`` without ``device_map``, for a device that is not here, or that is
            no size; a ``device_map`` that leaves parts on the disk; a quantisation that
            `transformers` cannot use.
        UnknownNameError: "unknown device_map …", "unknown quant_method …".
    """
    options: dict[str, Any] = {}
    if isinstance(device_map, str) and device_map not in _MAPS:
        try:
            torch.device(device_map)
        except RuntimeError as error:
            raise unknown_name("device_map", device_map, _MAPS) from error
    if isinstance(device_map, Mapping):
        refuse_disk(device_map, "the model")
    if device_map is not None:
        options["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    if max_memory is not None:
        if device_map is None:
            raise ModelError(
                "max_memory says how much of each device may be used and needs a device_map to "
                "act on; give device_map='auto' with it"
            )
        for device, size in max_memory.items():
            _check_max_memory(device, size)
        options["max_memory"] = dict(max_memory)
    if quantization_config is not None:
        options["quantization_config"] = _quantization(quantization_config)
    return options


def refuse_disk(device_map: Mapping[str, Any], reference: str) -> None:
    """Refuse a model of which some weights stay on the disk.

    Raises:
        ModelError: "the device_map leaves 2 parts of … on the disk (…) …".
    """
    parts = [str(part) or "all of it" for part, device in device_map.items() if device == "disk"]
    if parts:
        named = ", ".join(parts[:3]) + (", …" if len(parts) > 3 else "")
        count = "1 part" if len(parts) == 1 else f"{len(parts)} parts"
        raise ModelError(
            f"the device_map leaves {count} of {reference} on the disk ({named}), where weights "
            "cannot be hooked; allow more memory on the other devices (max_memory), or load the "
            "model in half precision or quantised"
        )


def quantization_name(quantization_config: Any) -> str | None:
    """A short name for a quantisation: its method, its bits, and a digest of unusual settings."""
    if quantization_config is None:
        return None
    config = _quantization(quantization_config)
    record = _settings(config)
    method = str(getattr(record.get("quant_method"), "value", record.get("quant_method")))
    bits = record.get("bits") or (
        4 if record.get("load_in_4bit") else 8 if record.get("load_in_8bit") else None
    )
    name = method if bits is None else f"{method}-{bits}bit"
    usual = {"quant_method": method, "load_in_4bit": bits == 4, "load_in_8bit": bits == 8}
    if method == "bitsandbytes" and record == _settings(_quantization(usual)):
        return name
    text = json.dumps(record, sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _settings(config: Any) -> dict[str, Any]:
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
    from transformers.quantizers.auto import AutoQuantizationConfig

    method, known = config["quant_method"], quantization_methods()
    if method not in known and f"{method}_8bit" not in known:
        raise unknown_name("quant_method", str(method), known)
    try:
        return AutoQuantizationConfig.from_dict(dict(config))
    except (ValueError, TypeError, ImportError) as error:
        raise ModelError(f"quantization_config cannot be used: {first_line(error)}") from error


def _check_max_memory(device: int | str, size: int | str) -> None:
    if isinstance(device, bool) or not isinstance(device, int):
        if device not in ("cpu", "disk", "mps"):
            raise ModelError(
                f"max_memory names the device {device!r}; give numbers for GPUs (0, 1, …), or "
                "'cpu', 'mps'"
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


def auto_dtype(device: str | torch.device) -> tuple[torch.dtype, str]:
    """The dtype that ``"auto"`` stands for on a device, and why.

    It is bfloat16 where the hardware multiplies it natively (a CPU with AVX512-BF16 or AMX-BF16,
    CUDA from compute capability 8.0), else float32.

    Raises:
        ModelError: "unknown device …" or "… is not available here".
    """
    target = resolve_device(device)
    if target.type == "cuda":
        major, minor = torch.cuda.get_device_capability(target)
        if major >= 8:
            return torch.bfloat16, f"CUDA capability {major}.{minor} computes bfloat16 natively"
        return torch.float32, f"CUDA capability {major}.{minor} has no native bfloat16"
    if target.type == "cpu":
        if flag := cpu_has("amx_bf16", "avx512_bf16"):
            return torch.bfloat16, f"this CPU has {flag}"
        return torch.float32, "this CPU has neither avx512_bf16 nor amx_bf16"
    return torch.float32, f"bfloat16 is not known to be fast on {target.type}"


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; by default CUDA, else Apple's MPS, else the CPU.

    Raises:
        ModelError: "unknown device …", "… is not available here".
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ModelError(
            f"unknown device {device!r}; give 'cpu', 'cuda', 'cuda:N' or 'mps'"
        ) from error
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if target.type == "meta" or (target.index or 0) >= count.get(target.type, 1):
        raise ModelError(f"device {str(target)!r} is not available here; 'cpu' always is")
    return target


def resolve_dtype(dtype: str | torch.dtype, device: torch.device | None) -> tuple[torch.dtype, str]:
    """The dtype asked for, and why.

    Raises:
        UnknownNameError: "unknown dtype …".
        ModelError: "dtype … is not one models run in …".
    """
    if dtype == "auto":
        return auto_dtype(device if device is not None else resolve_device(None))
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise unknown_name("dtype", dtype, [*DTYPES, "auto"])
        return DTYPES[dtype], "asked for"
    if dtype not in DTYPES.values():
        raise ModelError(f"dtype {dtype} is not one models run in; give one of {', '.join(DTYPES)}")
    return dtype, "asked for"
