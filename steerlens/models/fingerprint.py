r"""A fingerprint of all the weights and buffers of a model, as they are at this moment.

Remembered results are named by the model that made them. The hash of the file that a model came
from does not show what became of it since: an edit in place, `load_state_dict`, TransformerLens's
compatibility mode (which folds and centres weights). `fingerprint` reads every parameter and
buffer, also buffers that no file holds (the frequencies of rotary positions).

A tensor's bytes are read as 64-bit integers in rows of :math:`L = 4096`. Each of the :math:`L`
columns is a polynomial in an odd multiplier, modulo :math:`2^{64}`,

.. math:: c_j = \sum_{i=1}^{n} k^{\,n-i}\, w_{ij}

and the SHA-256 of the columns, with names, dtypes and shapes, is the fingerprint. As :math:`k` is
odd, changing a single word always changes its column; where two words change places, :math:`k^{i}`
tells them apart. Sums are exact, so the fingerprint is the same on every device and with any number
of threads. SmolLM2 in float32 (538 MB) takes 0.12 to 0.16 s on one core, a third of SHA-256's time.

Names are those in the Hugging Face model, whether or not the bridge's components stand in it.
Tensors that only the bridge has (the parts of a joint query-key-value matrix) follow.

**Caveat.** This finds changes, not forgeries. Of weights that bitsandbytes quantised in 8 bits the
scales are left out, because they move with the first forward pass. Frequencies that a model sets
anew in each forward pass (dynamic and longrope positions) are read from the copy that it keeps.

>>> row = torch.arange(8192.0)
>>> digest_of(row) == digest_of(row.clone()), digest_of(row) == digest_of(row.flip(0))
(True, False)
"""

import hashlib
import weakref
from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from steerlens.models.adapter.bridge import is_component, unwrapped, weights_processed
from steerlens.models.adapter.hugging_face import offloaded_tensor
from steerlens.models.adapter.pytorch import (
    buffers_of,
    children_of,
    n_writes,
    parameters_of,
    tensors_inside,
)

__all__ = [
    "Stamp",
    "digest_of",
    "fingerprint",
    "is_rearranged",
    "named_tensors",
    "switches",
    "tensors_beside",
]

_LANES = 4096
_WORD = 8
# Rows read at once: 2 MB, which stay in the processor's cache between product and sum.
_ROWS = 64
# Knuth's multiplier (MMIX): odd, and its powers spread over all bits.
_MULTIPLIER = 6364136223846793005
_CHANGING = ("dynamic", "longrope")


def fingerprint(model: TransformerBridge) -> str:
    """The model's tensors as they are now, as 64 hexadecimal digits.

    Not while the model is rearranged (`is_rearranged`).
    """
    digest = hashlib.sha256()
    # Tied weights are read once.
    read: dict[int, bytes] = {}
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            if id(tensor) not in read:
                read[id(tensor)] = digest_of(tensor)
            digest.update(f"{name}\n".encode() + read[id(tensor)])
    return digest.hexdigest()


class Stamp:
    """Shows cheaply whether tensors may have changed since it was taken.

    Torch counts the operations that write to a tensor, but not edits of ``parameter.data``. Without
    a model, it fits none.
    """

    def __init__(self, model: TransformerBridge | None = None) -> None:
        own = [] if model is None else list(_tensors(model))
        all_tensors = own if model is None else [tensor for _, tensor in named_tensors(model)]
        self._switches = {} if model is None else switches(model)
        self._own = {id(tensor) for tensor in own}
        # Weak references, because a later tensor may get the id of one that is gone.
        self._seen = [(weakref.ref(tensor), _counted(tensor)) for tensor in all_tensors]

    def fits(self, model: TransformerBridge) -> bool:
        """Whether the model still has the same tensors, none of them written to."""
        # The bridge's own are not looked for again, which would take longer than all the rest.
        return (
            self._switches == switches(model)
            and self._own == {id(tensor) for tensor in _tensors(model)}
            and all(
                (tensor := ref()) is not None and counted == _counted(tensor)
                for ref, counted in self._seen
            )
        )

    def __reduce__(self) -> tuple[type["Stamp"], tuple[()]]:
        """A copied model has tensors of its own, so it gets a stamp that fits nothing."""
        return Stamp, ()


def _tensors(model: TransformerBridge) -> Iterator[Tensor]:
    """Tensors of the Hugging Face model, without names: a plain loop, as it runs at every call."""
    waiting: list[nn.Module] = [model.original_model]
    while waiting:
        module = waiting.pop()
        for group in (parameters_of(module), buffers_of(module)):
            yield from (tensor for tensor in group.values() if tensor is not None)
        inner = map(unwrapped, children_of(module).values())
        waiting += [child for child in inner if child is not None]


def _counted(tensor: Tensor) -> tuple[Any, ...]:
    return (n_writes(tensor), tensor.dtype, tensor.device)


def switches(model: TransformerBridge) -> dict[str, bool]:
    """Modes of bridge and model that change what is computed."""
    return {
        "compatibility_mode": bool(getattr(model, "compatibility_mode", False)),
        "weights_processed": weights_processed(model),
        "training": bool(model.original_model.training),
    }


def is_rearranged(model: TransformerBridge) -> bool:
    """Whether the engine is at work: the bridge's components are out of place."""
    wraps = any(is_component(module) for module in model.modules())
    return wraps and not any(is_component(module) for module in model.original_model.modules())


def named_tensors(model: TransformerBridge) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, each under every name it has."""
    yield from _of_the_model(model.original_model, set())
    yield from tensors_beside(model)


def tensors_beside(model: TransformerBridge) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that only the bridge has, such as the parts of a joint matrix."""
    modules: set[int] = set()
    tensors = {id(tensor) for _, tensor in _of_the_model(model.original_model, modules)}
    for name, module in _beside(model, "bridge", modules, set()):
        for key, tensor in _held(module):
            if id(tensor) not in tensors:
                yield f"{name}.{key}", tensor


def digest_of(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's dtype, shape and columns."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    if (inside := tensors_inside(tensor)) is not None:
        names, settings = inside
        digest.update(f"{type(tensor).__name__} {settings}\n".encode())
        for name in names:
            digest.update(f"{name}\n".encode() + digest_of(getattr(tensor, name)))
        return digest.digest()
    if tensor.device.type == "meta":
        return digest.digest()
    for content in _columns(_bytes_of(tensor.detach())):
        digest.update(content)
    return digest.digest()


def _bytes_of(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.as_subclass(Tensor).contiguous().reshape(-1)
    if flat.is_conj() or flat.is_neg():
        flat = flat.clone()
    raw = flat.view(torch.uint8)
    return raw if raw.storage_offset() % _WORD == 0 else raw.clone()


def _columns(raw: Tensor) -> Iterator[bytes]:
    """The columns' polynomials, then the bytes that fill no row."""
    whole = len(raw) // (_WORD * _LANES) * (_WORD * _LANES)
    if whole:
        words = raw[:whole].view(torch.int64).view(-1, _LANES)
        try:
            polynomials = _polynomials(words)
        except (NotImplementedError, RuntimeError, TypeError):
            # Some devices have no products of 64-bit integers.
            polynomials = _polynomials(words.cpu())
        yield polynomials.cpu().numpy().tobytes()
    yield raw[whole:].cpu().numpy().tobytes()


def _polynomials(words: Tensor) -> Tensor:
    n_rows = _ROWS if words.device.type == "cpu" else _ROWS * _ROWS
    # The multiplier's powers 0, 1, …; 64-bit products wrap, as they should.
    powers = words.new_full((n_rows + 1,), _MULTIPLIER)
    powers[0] = 1
    powers = powers.cumprod(0)
    sums = words.new_zeros(_LANES)
    for block in torch.split(words, n_rows):
        n = len(block)
        sums = sums * powers[n] + (block * powers[:n].flip(0)[:, None]).sum(0)
    return sums


def _of_the_model(
    module: nn.Module, modules: set[int], prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the Hugging Face model by name; the modules met are noted in `modules`."""
    modules.add(id(module))
    for key, tensor in _held(module):
        yield f"{prefix}{key}", tensor
    for key, child in children_of(module).items():
        if (inner := unwrapped(child)) is not None:
            yield from _of_the_model(inner, modules, f"{prefix}{key}.")


def _beside(
    module: nn.Module, name: str, of_the_model: Container[int], met: set[int]
) -> Iterator[tuple[str, nn.Module]]:
    """The bridge's modules that are not the model's, wherever they stand."""
    met.add(id(module))
    if id(module) not in of_the_model:
        yield name, module
    for key, child in children_of(module).items():
        if child is not None and id(child) not in met and not isinstance(child, HookPoint):
            yield from _beside(child, f"{name}.{key}", of_the_model, met)


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers, those that accelerate offloaded included."""
    changing = _changing(module)
    for group in (parameters_of(module), buffers_of(module)):
        for key, tensor in group.items():
            if tensor is None or key in changing:
                continue
            yield key, offloaded_tensor(module, key) if tensor.device.type == "meta" else tensor
            state = getattr(tensor, "quant_state", None)
            scales = getattr(state, "absmax", None)
            if isinstance(scales, Tensor):
                yield f"{key}.absmax", scales


def _changing(module: nn.Module) -> set[str]:
    """Buffers that forward passes overwrite, and of which the module keeps the original."""
    kind = getattr(module, "rope_type", None)
    if kind is None:
        return set()
    kinds = (
        {f"{layer}_": value for layer, value in kind.items()}
        if isinstance(kind, dict)
        else {"": kind}
    )
    return {
        f"{prefix}inv_freq"
        for prefix, value in kinds.items()
        if any(word in str(value) for word in _CHANGING)
        and hasattr(module, f"{prefix}original_inv_freq")
    }
