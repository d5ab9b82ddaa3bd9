"""Which path a call takes, and how many rows ride together.

The engine rearranges a model it does not know: it starts passes in the middle, shares beginnings,
packs rows. `choose_path` therefore checks it once for each model against the bridge's own forward
pass (a fraction of a second): a shared beginning, an unsteered row, a row steered in the middle of
the stack, and one decoding step. An architecture for which the two differ takes the bridge's path,
and the result says so.
"""

import psutil
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.decoding import Choose, Row, decode_rows
from steerlens.engine.modules import FastPath, device_of, fast_path
from steerlens.engine.plain import decode_rows_plainly
from steerlens.steering import Intervention, Steering

__all__ = ["choose_path", "slots_for"]

_VERDICT = "steerlens_engine_verdict"
# Mean KL between both paths that counts as rounding; in bfloat16 it is 1e-3 nats on SmolLM2.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_TOLERANCE_HALF = 0.03
# Rows beyond this gain little: weights are read from memory once a step for all of them.
_MOST_SLOTS = 128
_MEMORY_SHARE = 0.4


def choose_path(model: TransformerBridge) -> FastPath:
    """The path the next call takes, and why."""
    path = fast_path(model)
    if not path.is_fast:
        return path
    if not hasattr(model, _VERDICT):
        setattr(model, _VERDICT, _difference(model))
    problem: str | None = getattr(model, _VERDICT)
    return path if problem is None else FastPath("eager", problem)


def _difference(model: TransformerBridge) -> str | None:
    """Why the engine cannot be used with this model; ``None`` when both paths agree."""
    try:
        ours, theirs = (_probe(model, fast) for fast in (True, False))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        return f"the engine does not know this architecture ({type(error).__name__})"
    kl = (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
    limit = _TOLERANCE.get(next(model.parameters()).dtype, _TOLERANCE_HALF)
    if kl <= limit:
        return None
    return f"the engine's logits differ from the bridge's for this architecture (KL {kl:.2g})"


def _probe(model: TransformerBridge, fast: bool) -> Tensor:
    """Log-probabilities of three rows over two steps, with tokens fixed beforehand."""
    n_layers, width = model.cfg.n_layers, model.cfg.d_model
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(width, generator=generator, dtype=torch.float32)
    push = Intervention(
        layer=n_layers // 2,
        direction=direction / direction.norm(),
        gap=1.0,
        target=0.0,
        operation="add",
        strength=1.0,
        scope="all",
    )
    start = tuple(range(5, 15))
    rows = [
        Row(0, (*start, 20), None, 2),
        Row(1, (*start, 21, 22, 23), Steering((push,)), 2),
        Row(2, (*start, 21, 22, 23), None, 2),
    ]
    seen: dict[tuple[int, int], Tensor] = {}

    def choose(logits: Tensor, indices: list[int]) -> Tensor:
        for i, own in zip(indices, logits, strict=True):
            seen[i, len(rows[i].produced)] = own.double().log_softmax(-1).cpu()
        return torch.full((len(indices),), 30, device=logits.device)

    run = decode_rows if fast else decode_rows_plainly
    chosen: Choose = choose  # type: ignore[assignment]
    run(model, rows, len(rows), frozenset(), chosen, lambda row: None)
    return torch.stack([seen[i, step] for i in range(len(rows)) for step in range(2)])


def slots_for(
    model: TransformerBridge, longest: int, n_rows: int, batch_size: int | None = None
) -> int:
    """How many rows to decode together: the asked number, or what memory allows.

    Args:
        model: The model.
        longest: Longest prompt plus response, in tokens.
        n_rows: Rows in all.
        batch_size: Asked for by the caller; ``None`` chooses from the free memory.
    """
    if batch_size is not None:
        return min(batch_size, n_rows)
    cfg = model.cfg
    n_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    width = next(model.parameters()).element_size()
    a_row = 2 * cfg.n_layers * n_heads * cfg.d_head * width * longest + 4 * width * cfg.d_vocab
    budget = _MEMORY_SHARE * _free_memory(device_of(model))
    return max(1, min(n_rows, _MOST_SLOTS, int(budget // a_row)))


def _free_memory(device: torch.device) -> int:
    """Bytes that can be allocated now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)
