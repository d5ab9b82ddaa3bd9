"""The engine compared with the bridge's own forward pass, before its first use on a model.

The engine rearranges a model it does not know: it starts passes in the middle, shares beginnings,
packs rows, makes its own masks. Whether that is right is a question of the architecture, and it is
asked twice (a second or less on a small model):

1. On an **excerpt** of the model: its first few blocks, so many that every kind of block is among
   them, in float32, with a vocabulary of 64 tokens and with every attention window cut to 8 tokens.
   There a right engine agrees with the bridge to 1e-3 of the logits' and residuals' norms, and a
   wrong one does not hide behind the rounding of a half-precision model or behind probes shorter
   than a window.
2. On the **model itself**, in its dtype, where only rounding may be between the two: at most four
   times what the bridge differs by from itself when it reads the same rows one at a time.

Probes are rows of several lengths that share a beginning, unsteered and steered at the first, a
middle and the last block, with scopes prompt, response and all, over several decoding steps.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from steerlens.engine.decoding import Row, decode_rows, out_of_memory
from steerlens.engine.modules import device_of, dtype_of, fast_modules, has_plain_stack
from steerlens.engine.paths import free_memory
from steerlens.engine.plain import decode_rows_plainly
from steerlens.engine.residuals import residuals_shared, residuals_unshared
from steerlens.steering import Intervention, Steering

__all__ = ["Unverified", "difference", "excerpt"]

# Relative error of logits and residuals that counts as float32's rounding; it is 1e-6 to 1e-5 on
# 25 architectures, and above 0.02 where an engine was wrong.
_TOLERANCE = 1e-3
# How many times the bridge's own rounding counts as rounding, and the least that does: a model's
# rows may happen to round alike on the bridge.
_TIMES_ROUNDING = 4.0
_LEAST_HALF = 0.02
_N_VOCAB = 64
_WINDOW = 8
_WINDOWS = ("sliding_window", "attention_chunk_size")
_MEMORY_SHARE = 0.25
# A pass of a new architecture that fails in one of these ways is one the engine does not know.
_FAILURES = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError)


class Unverified(Exception):
    """The comparison could not be made now; the message is the reason to take the plain path."""


def difference(model: TransformerBridge) -> str | None:
    """Why the engine cannot be used with this model; ``None`` when it agrees with the bridge.

    Raises:
        Unverified: There is no memory to compare them in.
    """
    try:
        try:
            small = excerpt(model)
        except _FAILURES as error:
            if out_of_memory(error):
                raise
            # Not every architecture can be cut; the model itself must do then.
            small = None
        if small is not None:
            problem = _compared(small)
            if problem is not None:
                return problem
        return _compared(model)
    except _FAILURES as error:
        if out_of_memory(error):
            raise Unverified(
                "there was no memory to compare the engine with the bridge, whose path is taken"
            ) from error
        return f"the engine does not know this architecture ({type(error).__name__})"
    except MemoryError as error:
        raise Unverified(
            "there was no memory to compare the engine with the bridge, whose path is taken"
        ) from error


def _compared(model: TransformerBridge) -> str | None:
    rows = _probes(model)
    ours = _run(model, rows, fast=True)
    theirs = _run(model, rows, fast=False)
    rounding = _TOLERANCE
    if dtype_of(model) not in (torch.float32, torch.float64):
        alone = _run(model, rows, fast=False, batch_size=1)
        rounding = max(_LEAST_HALF, _TIMES_ROUNDING * _worst(alone, theirs))
    worst = _worst(ours, theirs)
    if worst <= rounding:
        return None
    return (
        "the engine's logits or residuals differ from the bridge's for this architecture "
        f"(by {worst:.2g} of their norm)"
    )


def _worst(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest relative difference of two vectors; NaN on one side only counts as infinite."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if not torch.equal(mine.isnan(), other.isnan()):
            return math.inf
        mine, other = mine.nan_to_num(), other.nan_to_num()
        norm = other.norm().item()
        worst = max(worst, (mine - other).norm().item() / max(norm, 1e-12))
    return worst


def _probes(model: TransformerBridge) -> list[Row]:
    """Rows with their steering; the tokens they are answered with are fixed, see `_run`."""
    n_layers, width, n_vocab = model.cfg.n_layers, model.cfg.d_model, model.cfg.d_vocab
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(3, min(n_vocab, _N_VOCAB), (64,), generator=generator).tolist()

    def push(layer: int, scope: str) -> Steering:
        direction = torch.randn(width, generator=generator, dtype=torch.float32)
        one = Intervention(
            layer=layer,
            direction=direction / direction.norm(),
            gap=math.sqrt(width),
            target=0.0,
            operation="add",
            strength=1.0,
            scope=scope,
        )
        return Steering((one,))

    shared, middle, last = tuple(draw[:12]), n_layers // 2, n_layers - 1
    short, long = (*shared, *draw[12:15]), (*shared, *draw[15:27])
    prompts_and_pushes = [
        (short, None),
        (long, None),
        (long, push(0, "all")),
        (long, push(middle, "prompt")),
        (short, push(middle, "response")),
        (short, push(last, "all")),
    ]
    return [
        Row(i, prompt, steering, len(_ANSWER))
        for i, (prompt, steering) in enumerate(prompts_and_pushes)
    ]


_ANSWER = (30, 17, 5, 41, 9, 23)


def _run(
    model: TransformerBridge, rows: Sequence[Row], fast: bool, batch_size: int | None = None
) -> list[Tensor]:
    """Logits of every row and step, and residuals of every unsteered row and layer, in float64."""
    seen: dict[tuple[int, int], Tensor] = {}
    rows = [Row(row.index, row.tokens, row.steering, row.max_new_tokens) for row in rows]

    def choose(logits: Tensor, indices: Sequence[int]) -> Tensor:
        steps = [len(rows[i].produced) for i in indices]
        for i, step, own in zip(indices, steps, logits, strict=True):
            # A copy: the engine may hand out memory that it writes to again.
            seen[i, step] = own.detach().double().cpu().clone()
        return torch.tensor([_ANSWER[step] for step in steps], device=logits.device)

    together = batch_size or len(rows)
    if fast:
        decode_rows(model, rows, together, frozenset(), choose, lambda row: None)
        residuals = residuals_shared
    else:
        decode_rows_plainly(model, rows, together, frozenset(), choose, lambda row: None)
        residuals = residuals_unshared
    texts = [row.tokens for row in rows if row.steering is None]
    spans = [(len(tokens) - 1, len(tokens)) for tokens in texts]
    layers = range(model.cfg.n_layers)
    read = residuals(model, texts, spans, layers, together)
    logits = [seen[i, step] for i in range(len(rows)) for step in range(len(_ANSWER))]
    return logits + [one.double() for row in read for one in row]


def excerpt(model: TransformerBridge) -> TransformerBridge | None:
    """The first blocks of a model in float32, with short windows and few tokens.

    Returns:
        A bridge of its own; ``None`` where weights are quantised or spread over devices, or would
        take more than a quarter of the free memory.
    """
    root: Any = model.original_model
    config = copy.deepcopy(root.config)
    devices = {parameter.device for parameter in root.parameters()}
    quantised = getattr(config, "quantization_config", None) is not None
    if quantised or len(devices) > 1 or not has_plain_stack(model):
        return None
    with fast_modules(model):
        weights: dict[str, Tensor] = root.state_dict()
        blocks = root.get_submodule(str(model.adapter.component_mapping["blocks"].name))
        n_blocks = _kinds_end(blocks, getattr(config, "layer_types", None))
        n_bytes = 4 * sum(
            parameter.numel() for block in blocks[:n_blocks] for parameter in block.parameters()
        )
    device = device_of(model)
    if n_bytes > _MEMORY_SHARE * free_memory(device):
        return None
    n_layers, n_vocab = len(blocks), config.vocab_size
    _shorten(config, n_layers, n_blocks)
    small = type(root)._from_config(config, dtype=torch.float32, attn_implementation="eager")
    own: dict[str, Tensor] = small.state_dict()
    for name, target in own.items():
        source = weights[name]
        if source.shape != target.shape and len(source) == n_vocab:
            source = source[: len(target)]
        target.copy_(source)
    small = small.to(device).eval()
    bridge: TransformerBridge = build_bridge_from_module(
        small, type(root).__name__, hf_config=config, dtype=torch.float32, device=str(device)
    )
    bridge.eval()
    return bridge


def _kinds_end(blocks: Sequence[nn.Module], layer_types: Sequence[str] | None) -> int:
    """How many of the first blocks hold every kind of block; at least two."""
    kinds = [
        (
            layer_types[i] if layer_types else None,
            tuple((type(part), *(p.shape for p in part._parameters.values() if p is not None))
                  for part in block.modules()),
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
