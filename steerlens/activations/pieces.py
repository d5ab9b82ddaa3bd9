"""Caching residuals in pieces that are named by what they are, and computed anywhere.

`shard_residuals` makes one piece per shard; workers compute pieces for a driver. A piece's name is
made of the model's identity (`steerlens.models.identity`) and the token ids that are run. Another
chat template, a changed weight or a template that writes the date makes another piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache, residuals_of
from steerlens.activations.positions import Position, rows_to_read
from steerlens.engine.remembered import naming_key
from steerlens.errors import ActivationError
from steerlens.models.identity import digest_of_rows
from steerlens.runs.json_text import piece_name
from steerlens.tasks.pairs import ContrastSet

__all__ = ["ResidualPiece", "residual_pieces"]


@dataclass(frozen=True, eq=False)
class ResidualPiece:
    """Contrast pairs run together; attributes not listed are as for `cache_residuals`.

    Attributes:
        name: Made of everything the residuals depend on; see `steerlens.runs.piece_name`.
        layers: The layers kept, none of them negative.
        tokens: Hash of the token ids that `name` stands for.
    """

    name: str
    pairs: ContrastSet
    position: Position
    layers: tuple[int, ...]
    batch_size: int | None
    chat_format: str
    tokens: str

    def compute(self, model: TransformerBridge) -> ResidualCache:
        """Run the model over the pairs; both engines call this.

        Raises:
            ActivationError: "the prompts of this piece are now read as other tokens …".
        """
        if _tokens_read(model, self.pairs, self.position, self.chat_format) != self.tokens:
            raise ActivationError(
                "the prompts of this piece are now read as other tokens than when it was named; a "
                "chat template that writes the date or the time does so: begin again, and all "
                "pieces are computed with what it writes then"
            )
        return residuals_of(
            model,
            self.pairs,
            self.position,
            self.layers,
            self.batch_size,
            self.chat_format,
            show_progress=False,
        )


def residual_pieces(
    model: TransformerBridge,
    parts: Sequence[ContrastSet],
    position: Position,
    layers: tuple[int, ...],
    batch_size: int | None = None,
    chat_format: str = "auto",
    **more: Any,
) -> list[ResidualPiece]:
    """A piece for each set of pairs; the model's weights are read once.

    Arguments are those of `cache_residuals`, with `layers` as `check_layers` gives them; `more` is
    what else is done with the residuals, for the name.

    Raises:
        SteerlensError: As `cache_residuals`, of prompts and positions.
    """
    key = naming_key(model)
    pieces = []
    for pairs in parts:
        tokens = _tokens_read(model, pairs, position, chat_format)
        content = {
            **key,
            "tokens": tokens,
            "data": pairs.data_hash,
            "position": position,
            "layers": list(layers),
            "chat_format": chat_format,
            **more,
        }
        name = piece_name(content)
        pieces.append(ResidualPiece(name, pairs, position, layers, batch_size, chat_format, tokens))
    return pieces


def _tokens_read(
    model: TransformerBridge, pairs: ContrastSet, position: Position, chat_format: str
) -> str:
    """Hash of the token ids that are run for some pairs, and of where each row is read."""
    rows = rows_to_read(model, pairs, position, chat_format)
    return digest_of_rows([*rows.tokens, *rows.spans])
