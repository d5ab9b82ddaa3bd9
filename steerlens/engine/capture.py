"""Residuals of token rows at chosen layers, on whichever path the model takes."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.choosing import running
from steerlens.engine.residuals import Span, residuals_shared, residuals_unshared
from steerlens.errors import ActivationError

__all__ = ["residuals_at"]


def residuals_at(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Span],
    layers: Sequence[int],
    batch_size: int = 16,
    show_progress: bool | None = None,
) -> Float[Tensor, "row layer d_model"]:
    """Residuals of token rows, averaged over one span of each row: float32, on the CPU.

    Args:
        model: A hooked model.
        rows: Token ids of each row, without padding.
        spans: Half-open token range ``(start, stop)`` of each row to average over.
        layers: Layers to read (output of these blocks).
        batch_size: Rows per forward pass.
        show_progress: Show a progress bar on standard error; by default only in a terminal.
    """
    if batch_size < 1:
        raise ActivationError(f"batch_size must be at least 1; got {batch_size}")
    with running(model, max(map(len, rows), default=0)) as path:
        if path.is_fast:
            return residuals_shared(model, rows, spans, layers, batch_size, show_progress)
        return residuals_unshared(model, rows, spans, layers, batch_size, show_progress, path)
