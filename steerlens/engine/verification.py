"""The engine compared with the bridge's own forward pass, before its first use on a model.

The engine starts passes in the middle of a model, shares beginnings, packs rows and makes its own
masks. Whether that is right is a question of the architecture, and it is asked of an **excerpt** of
the model (a second or less on a small model): its first blocks, so many that every kind of block is
among them, with 64 tokens and with attention windows of 8 tokens, so that probes are longer.

1. In float32 a right engine agrees with the bridge to 1e-3 of the norms of logits and residuals;
   there a wrong one cannot hide behind rounding.
2. In the model's own dtype, if that is another one, the engine may be at most three times as far
   from the bridge's float32 numbers as the bridge is itself.
3. On the whole model, with its devices and all its blocks, two steps must agree: to 1e-3 in
   float32, to a quarter of the norms in half precision, which only finds what is broken outright.

A model that cannot be cut is judged by step 3 alone in float32; in half precision it takes the
plain path, because that step cannot tell a fault from rounding.

The bridge reads one row at a time here. Where its own padded batches differ from that by more than
rounding, the plain path does not pad.

Probes are rows of several lengths that share a beginning, unsteered and steered at the first, a
middle and the last block, in every scope, over several decoding steps. They are shorter than
`steerlens.engine.paths.length_switch`; longer rows never take the fast path.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

from steerlens.engine.decoding import decode_rows
from steerlens.engine.modules import device_of, dtype_of, fast_modules
from steerlens.engine.paths import free_memory, length_switch, mixes_dtypes
from steerlens.engine.plain import decode_rows_plainly
from steerlens.engine.residuals import residuals_shared, residuals_unshared
from steerlens.engine.rows import Row, out_of_memory
from steerlens.models.adapter.bridge import block_list
from steerlens.models.adapter.hugging_face import random_model
from steerlens.models.adapter.pytorch import parameters_of
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention

__all__ = ["UnverifiedError", "Verdict", "excerpt", "verdict"]

# Relative error of logits and residuals that counts as float32's rounding; it is 1e-6 to 1e-5 on
# 40 architectures, and above 0.02 where an engine was wrong.
_TOLERANCE = 1e-3
# How many times the bridge's own distance from float32 the engine's may be, as a root mean square.
# On the same architectures in half precision it is 0.6 to 1.6 times, and above 7 for a wrong one.
_TIMES_ROUNDING = 3.0
# Of the norm, on a whole model in half precision: mixtures of experts round into other experts.
_BROKEN = 0.25
_N_VOCAB = 64
_WINDOW = 8
_WINDOWS = ("sliding_window", "attention_chunk_size")
_MEMORY_SHARE = 0.25
# Tokens that probes are answered with, whatever their logits.
_ANSWER = (30, 17, 5, 41, 9, 23)
# What a pass of an architecture that the engine does not know may fail with.
_FAILURES = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        problem: Why the engine cannot be used with this model; ``None`` when it agrees.
        pads: Whether the bridge's own path may pad rows.
    """

    problem: str | None
    pads: bool = True


class UnverifiedError(Exception):
    """The comparison could not be made now; the message is the reason to take the plain path."""


def verdict(model: TransformerBridge) -> Verdict:
    """Whether the engine can be used with this model.

    Raises:
        UnverifiedError: There is no memory to compare them in.
    """
    try:
        first = _on_excerpt(model)
        return first if first.problem is not None else _on_the_whole(model, first.pads)
    except (MemoryError, *_FAILURES) as error:
        if out_of_memory(error):
            raise UnverifiedError(
                "there was no memory to compare the engine with the bridge, whose path is taken"
            ) from error
        return Verdict(f"the engine does not know this architecture ({type(error).__name__})")


def _on_excerpt(model: TransformerBridge) -> Verdict:
    """What the excerpt says of the engine and of padding."""
    try:
        small = excerpt(model, torch.float32)
    except _FAILURES as error:
        if out_of_memory(error):
            raise
        reason = "the engine cannot be checked in float32 on this architecture"
        return Verdict(reason if _is_half(model) else None)
    rows = _probes(small)
    true = _run(small, rows, fast=False, batch_size=1)
    pads = _worst(_run(small, rows, fast=False), true) <= _TOLERANCE
    wrong = _worst(_run(small, rows, fast=True), true)
    if wrong > _TOLERANCE:
        return Verdict(_differs(wrong), pads)
    if _is_half(model):
        half = excerpt(model, dtype_of(model))
        bridge = _run_bridge(half, rows, batch_size=1)
        limit = _BROKEN if bridge is None else _TIMES_ROUNDING * _mean(bridge, true)
        wrong = _mean(_run(half, rows, fast=True), true)
        if wrong > limit:
            return Verdict(_differs(wrong), pads)
    return Verdict(None, pads)


def _on_the_whole(model: TransformerBridge, pads: bool) -> Verdict:
    rows = _probes(model)[1:4]
    for row in rows:
        row.max_new_tokens = 2
    bridge = _run_bridge(model, rows, batch_size=None if pads else 1)
    if bridge is None:
        return Verdict(None, pads)
    worst = _worst(_run(model, rows, fast=True), bridge)
    is_wrong = worst > (_BROKEN if _is_half(model) else _TOLERANCE)
    return Verdict(_differs(worst) if is_wrong else None, pads)


def _is_half(model: TransformerBridge) -> bool:
    return dtype_of(model) not in (torch.float32, torch.float64)


def _differs(error: float) -> str:
    return (
        "the engine's logits or residuals differ from the bridge's for this architecture "
        f"(by {error:.2g} of their norm)"
    )


def _errors(ours: Sequence[Tensor], true: Sequence[Tensor]) -> list[float]:
    """Relative differences of vectors; infinite where only one of two has NaN."""
    errors = []
    for mine, other in zip(ours, true, strict=True):
        alike = torch.equal(mine.isnan(), other.isnan())
        left = (mine.nan_to_num() - other.nan_to_num()).norm().item()
        errors.append(left / max(other.nan_to_num().norm().item(), 1e-12) if alike else math.inf)
    return errors


def _worst(ours: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    return max(_errors(ours, true))


def _mean(ours: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """Root mean square of the relative differences."""
    errors = _errors(ours, true)
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _probes(model: TransformerBridge) -> list[Row]:
    """Rows with their steering; what they are answered with is fixed (`_ANSWER`)."""
    n_layers, width, n_vocab = model.cfg.n_layers, model.cfg.d_model, model.cfg.d_vocab
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(3, min(n_vocab, _N_VOCAB), (64,), generator=generator).tolist()

    def push(layer: int, scope: str) -> Steering:
        direction = torch.randn(width, generator=generator, dtype=torch.float32)
        unit = direction / direction.norm()
        return Steering((Intervention(layer, unit, gap=width**0.5, operation="add", scope=scope),))

    middle, last = n_layers // 2, n_layers - 1
    n_long = min(27, model.cfg.n_ctx - len(_ANSWER), (length_switch(model) or 99) - len(_ANSWER))
    n_shared = min(12, n_long - 6)
    shared = tuple(draw[:n_shared])
    short, long = (*shared, *draw[30:33]), tuple(draw[:n_long])
    probes = [
        (short, None),
        (long, None),
        (long, push(0, "all")),
        (long, push(middle, "prompt")),
        (short, push(middle, "response")),
        (short, push(last, "all")),
    ]
    return [Row(i, prompt, steering, len(_ANSWER)) for i, (prompt, steering) in enumerate(probes)]


def _run(
    model: TransformerBridge, rows: Sequence[Row], fast: bool, batch_size: int | None = None
) -> list[Tensor]:
    """Logits of every row and step, and residuals of every unsteered row and layer, in float64."""
    seen: dict[tuple[int, int], Tensor] = {}
    rows = [Row(i, row.tokens, row.steering, row.max_new_tokens) for i, row in enumerate(rows)]

    def choose(logits: Tensor, active: Sequence[Row]) -> Tensor:
        steps = [len(row.produced) for row in active]
        for row, step, own in zip(active, steps, logits, strict=True):
            # A copy: the engine may hand out memory that it writes to again.
            seen[row.index, step] = own.detach().cpu().double().clone()
        return torch.tensor([_ANSWER[step] for step in steps], device=logits.device)

    decode, residuals = (
        (decode_rows, residuals_shared) if fast else (decode_rows_plainly, residuals_unshared)
    )
    batch_size = batch_size or len(rows)
    decode(model, rows, batch_size, frozenset(), choose, lambda row: None)
    texts = [row.tokens for row in rows if row.steering is None]
    spans = [(len(tokens) - 1, len(tokens)) for tokens in texts]
    resid = residuals(model, texts, spans, range(model.cfg.n_layers), batch_size)
    logits = [seen[key] for key in sorted(seen)]
    return logits + [vector.double() for row in resid for vector in row]


def _run_bridge(
    model: TransformerBridge, rows: Sequence[Row], batch_size: int | None = None
) -> list[Tensor] | None:
    """The same on the bridge's path; ``None`` where its attention mixes dtypes and fails (OLMo)."""
    try:
        return _run(model, rows, fast=False, batch_size=batch_size)
    except RuntimeError as error:
        if mixes_dtypes(error):
            return None
        raise


def excerpt(model: TransformerBridge, dtype: torch.dtype) -> TransformerBridge:
    """The first blocks of a model, with short windows and few tokens, as a bridge of its own.

    Quantised weights are replaced by random ones: the question is whether the engine runs such
    blocks as the bridge does.

    Args:
        model: A hooked model with a plain stack of blocks.
        dtype: Of the excerpt.

    Raises:
        MemoryError: It would take more than a quarter of the free memory.
        AttributeError: Or another error: a model that cannot be cut.
    """
    root: Any = model.original_model
    config = copy.deepcopy(root.config)
    quantised = getattr(config, "quantization_config", None) is not None
    with fast_modules(model):
        weights: dict[str, Tensor] = {} if quantised else root.state_dict()
        blocks: Any = block_list(model)
        n_layers, layer_types = len(blocks), getattr(config, "layer_types", None)
        n_blocks = _kinds_end([*blocks], layer_types)
        n_numbers = sum(p.numel() for block in blocks[:n_blocks] for p in block.parameters())
    device, n_vocab = device_of(model), config.vocab_size
    if n_numbers * dtype.itemsize > _MEMORY_SHARE * free_memory(device):
        raise MemoryError("no room for an excerpt")
    if quantised:
        del config.quantization_config
    _shorten(config, n_layers, n_blocks)
    # Building draws random weights and sets torch's default dtype for the whole process: so the
    # random state is put back afterwards, and it is done in float32.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        small = random_model(type(root), config, torch.float32)
        for parameter in small.parameters():
            parameter.data = parameter.data.to(dtype)
        for name, target in small.state_dict().items():
            if not quantised:
                source = weights[name]
                cut = len(target) if target.ndim and len(source) == n_vocab else None
                target.copy_(source[:cut] if target.ndim else source)
    small, name = small.to(device).eval(), type(root).__name__
    bridge: TransformerBridge = build_bridge_from_module(
        small, name, hf_config=config, dtype=dtype, device=str(device)
    )
    bridge.eval()
    return bridge


def _kinds_end(blocks: Sequence[nn.Module], layer_types: Sequence[str] | None) -> int:
    """How many of the first blocks hold every kind of block; at least two."""
    kinds = [
        (
            layer_types[i] if layer_types else None,
            tuple(
                (type(part), *(p.shape for p in parameters_of(part).values() if p is not None))
                for part in block.modules()
            ),
        )
        for i, block in enumerate(blocks)
    ]
    first = {kind: i for i, kind in reversed(list(enumerate(kinds)))}
    return min(len(blocks), max(2, 1 + max(first.values())))


def _shorten(config: Any, n_layers: int, n_blocks: int) -> None:
    """Change a configuration to fewer blocks, short windows and a small vocabulary."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == n_layers:
            setattr(config, name, value[:n_blocks])
    config.num_hidden_layers = n_blocks
    for name in _WINDOWS:
        if getattr(config, name, None):
            setattr(config, name, min(getattr(config, name), _WINDOW))
    config.vocab_size = min(config.vocab_size, _N_VOCAB)
    config.pad_token_id = None
