"""The work every contender does: the same prompts, settings and pairs, in the same order."""

from dataclasses import dataclass
from typing import Any

import torch

import steerlens as sl
from benchmarks.models import InstalledModel
from steerlens.models.loading import tokenize_prompts
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import SteeringVector

INSTRUCTION = "detectable_format:title"
# Of 30 blocks; of other models the same shares of the depth.
LAYERS = (4, 8, 12, 16, 20, 24, 27, 29)
STRENGTHS = (0.5, 1.0)


def layer_of(n_layers: int, of_30: int) -> int:
    """The layer of a model that is as deep as one of the default model's 30.

    >>> [layer_of(30, 24), layer_of(32, 24), layer_of(3, 29)]
    [24, 25, 2]
    """
    return of_30 * n_layers // 30


@dataclass(frozen=True)
class Sizes:
    """How much work: the full sizes are those of the published table."""

    n_prompts: int = 96
    n_new_tokens: int = 96
    n_sweep_prompts: int = 12
    n_pairs: int = 256
    batch_limit: int = 96
    # Slow peers run this many settings of the sweep; tokens per second is what is compared.
    n_peer_settings: int = 2
    n_recipe_rows: int = 1
    # Rows of a pass that caches residuals: ours, and plain forward passes; what suits two cores.
    caching_batches: tuple[int, int] = (32, 16)


# Float32 is three to five times slower: less of the same work.
FLOAT32 = Sizes(n_prompts=32, n_new_tokens=24, n_sweep_prompts=6, n_pairs=64, batch_limit=32)
QUICK = Sizes(n_prompts=12, n_new_tokens=12, n_sweep_prompts=4, n_pairs=16, batch_limit=12)


@dataclass(frozen=True)
class Work:
    """Models and inputs, loaded once; every model has the same weights.

    `peer_batch_size` is that of `steering-vectors` when it caches; see `best_batch_size`.
    """

    sizes: Sizes
    model: Any
    hf: Any
    vector: SteeringVector
    prompts: list[str]
    rows: list[list[int]]
    pairs: ContrastSet
    peer_batch_size: int = 16

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return next(self.hf.parameters()).device

    @property
    def steered_layer(self) -> int:
        """Where a single steering acts."""
        return layer_of(self.model.cfg.n_layers, 24)

    @property
    def settings(self) -> list[tuple[int, float]]:
        """Layers × strengths of the sweep."""
        layers = dict.fromkeys(layer_of(self.model.cfg.n_layers, layer) for layer in LAYERS)
        return [(layer, strength) for layer in layers for strength in STRENGTHS]

    @property
    def sweep_rows(self) -> list[list[int]]:
        """Token rows of the sweep's prompts."""
        return self.rows[: self.sizes.n_sweep_prompts]


def prepare(dtype: str, sizes: Sizes) -> Work:
    """Load the hooked model, a plain Hugging Face copy with sdpa, and the inputs."""
    source = InstalledModel()
    numbers = getattr(torch, dtype)
    return inputs(source.bridge(numbers), source.plain(numbers, "sdpa"), sizes)


def inputs(model: Any, hf: Any, sizes: Sizes) -> Work:
    """The work for a hooked model and a plain one."""
    queries = [query.text for split in ("report", "select") for query in sl.base_queries(split)]
    prompts = queries[: sizes.n_prompts]
    fitted = sl.cache_residuals(model, sl.contrast_pairs(INSTRUCTION, n=32), show_progress=False)
    return Work(
        sizes=sizes,
        model=model,
        hf=hf,
        vector=sl.difference_of_means(fitted),
        prompts=prompts,
        rows=tokenize_prompts(model, prompts),
        pairs=sl.contrast_pairs(INSTRUCTION, n=sizes.n_pairs),
    )
