"""A library: vectors of one model in a folder, with an index, cards and a page.

::

    vectors/
      vectors.index.json                     the files, their hashes, what they carry
      README.md                              a table of the vectors
      detectable_format-title.safetensors    a vector
      detectable_format-title.md             its card: data, seed, rates, limits

`save_library` writes such a folder, `load_library` opens it. Vectors are read through
`steerlens.vectors.formats.load_vector`, which compares each hash with the index. The index is
written last: after a kill it refuses the files that it does not know.

>>> import tempfile, torch
>>> from steerlens.vectors.formats.record import vector_of_shifts
>>> vector = vector_of_shifts({3: torch.ones(4)}, "an example", {"instruction": "title"})
>>> with tempfile.TemporaryDirectory() as folder:
...     library = save_library(folder, [LibraryItem(vector, rates=(Rate("steered", 8, 10),))])
...     library.names, library.load("title").layers
(('title',), (3,))
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import FileFormatError, SteerlensError, unknown_name
from steerlens.files import library_versions, write_text
from steerlens.models.weights import sha256_of_files
from steerlens.stats.rates import wilson
from steerlens.steering.interventions import Steering
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.index import INDEX_NAME, INDEX_SCHEMA, read_index
from steerlens.vectors.formats.loading import load_vector
from steerlens.vectors.model_cards import (
    OPTIONAL,
    SETTINGS,
    LibraryItem,
    Rate,
    file_stem,
    library_page,
    settings_of,
    vector_card,
)
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Library", "LibraryItem", "Rate", "load_library", "save_library", "vector_card"]

PAGE_NAME = "README.md"
# The vectors of a library are for one model: these must agree.
_OF_THE_MODEL = ("model", "weights_hash", "configuration_hash", "n_layers")
# Vectors of earlier versions, and of other tools, do not name this one.
_MAY_LACK = "configuration_hash"


@dataclass(frozen=True, eq=False, repr=False)
class Library(Result):
    """An opened library.

    Attributes:
        folder: Its folder.
        entries: What the index says of each vector, by name.
    """

    folder: Path
    entries: Mapping[str, Mapping[str, Any]]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the vectors, in the index's order."""
        return tuple(self.entries)

    @property
    def table(self) -> pd.DataFrame:
        """One row per vector: name, file, instruction, estimator, best settings, rates."""
        rows = []
        for name, entry in self.entries.items():
            best = entry.get("steering") or {}
            about = ("file", "instruction", "estimator")
            row = {"name": name, **{key: entry.get(key) for key in about}}
            row |= {key: best.get(key) for key in SETTINGS}
            rows.append(row | {rate["condition"]: rate["rate"] for rate in entry.get("rates", ())})
        return pd.DataFrame(rows)

    def load(self, name: str, model: TransformerBridge | None = None) -> SteeringVector:
        """A vector by name; refused where its file is not the one listed, or it does not fit."""
        if name not in self.entries:
            raise unknown_name("vector", name, self.entries)
        return load_vector(self.folder / self.entries[name]["file"], model)

    def steering(self, name: str, model: TransformerBridge | None = None) -> Steering:
        """A vector as it is best applied; as `load`, or refused where there are no settings."""
        vector = self.load(name, model)
        best = self.entries[name].get("steering")
        if best is None:
            raise SteerlensError(
                f"the index of {self.folder} has no settings for {name!r}; take the vector and "
                "choose them: library.load(name).at(layer=…)"
            )
        return vector.at(**{key: best[key] for key in (*SETTINGS, *OPTIONAL) if key in best})

    def plot(self, layer: int | None = None) -> "go.Figure":
        """Cosines of the vectors' directions at a layer (by default the middle of the best)."""
        from steerlens.views import cosine_matrix

        vectors = [self.load(name) for name in self.names]
        if layer is None:
            best = [(entry.get("steering") or {}).get("layer") for entry in self.entries.values()]
            known = sorted(n for n in best if n is not None) or list(vectors[0].layers)
            layer = known[len(known) // 2]
        directions = torch.cat([vector.restricted_to([layer]).directions for vector in vectors])
        cosines = (directions @ directions.T).clamp(-1, 1)
        return cosine_matrix(self.names, cosines.tolist(), layer)

    def __repr__(self) -> str:
        return f"Library({self.folder}, {len(self.entries)} vectors)"


def save_library(folder: str | Path, items: Sequence[LibraryItem | SteeringVector]) -> Library:
    """Write vectors of one model, their cards, the page and the index.

    Files of earlier vectors that are not among `items` stay, unlisted.

    Args:
        folder: Made if it does not exist.
        items: Vectors, alone or with what is known of them; names must differ.

    Raises:
        SteerlensError: No vectors, two of one name, vectors of different models, settings that are
            not one intervention, or "cannot write …".
    """
    whole = [item if isinstance(item, LibraryItem) else LibraryItem(item) for item in items]
    _check_items(whole)
    folder = Path(folder)
    entries = []
    for item in whole:
        stem = file_stem(item.vector.name)
        path = item.vector.save(folder / f"{stem}.safetensors")
        write_text(folder / f"{stem}.md", vector_card(item, path.name))
        entries.append(_entry(item, path))
    index = {
        "schema": INDEX_SCHEMA,
        **{key: whole[0].vector.metadata.get(key) for key in _OF_THE_MODEL},
        "d_model": whole[0].vector.d_model,
        "versions": library_versions(),
        "vectors": entries,
    }
    write_text(folder / PAGE_NAME, library_page(whole, index))
    write_text(folder / INDEX_NAME, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    return load_library(folder)


def load_library(folder: str | Path) -> Library:
    """Open a library; vectors are read and verified when they are asked for.

    Raises:
        FileFormatError: There is no index, or it is damaged.
    """
    folder = Path(folder)
    entries: dict[str, Mapping[str, Any]] = {}
    for entry in read_index(folder)["vectors"]:
        name = entry.get("name")
        if not isinstance(name, str) or name in entries:
            raise FileFormatError(
                f"the index of {folder} names the vector in {entry['file']} {name!r}; expected a "
                "name of its own"
            )
        settings = {"layer": int, "operation": str, "strength": int | float, "scope": str}
        if entry.get("steering") is not None and not _has(entry["steering"], settings):
            raise FileFormatError(
                f"the index of {folder} garbles the settings of {name!r}: {entry['steering']!r}"
            )
        rates = entry.get("rates", [])
        rate = {"condition": str, "rate": int | float}
        if not isinstance(rates, list) or not all(_has(each, rate) for each in rates):
            raise FileFormatError(f"the index of {folder} garbles the rates of {name!r}")
        entries[name] = entry
    return Library(folder, entries)


def _check_items(items: Sequence[LibraryItem]) -> None:
    """Refuse, before anything is written, what cannot be a library."""
    if not items:
        raise SteerlensError("there is no vector to save; give at least one")
    stems = {file_stem(PAGE_NAME).lower().removesuffix(".md"): PAGE_NAME}
    first = items[0].vector
    for item in items:
        name, metadata = item.vector.name, item.vector.metadata
        stem = file_stem(name).lower()  # some file systems do not tell cases apart
        if stem in stems:
            raise SteerlensError(
                f"two files of the library would be called {stem!r} ({name!r} and "
                f"{stems[stem]!r}); give each vector an instruction of its own in its metadata"
            )
        stems[stem] = name
        for key in _OF_THE_MODEL:
            value, expected = metadata.get(key), first.metadata.get(key)
            if value != expected and not (key == _MAY_LACK and None in (value, expected)):
                raise SteerlensError(
                    f"{name!r} was made for {key} {value!r}, {first.name!r} for {expected!r}; a "
                    "library holds vectors of one model"
                )
        _ = item.intervention


def _has(record: Any, kinds: Mapping[str, Any]) -> bool:
    return isinstance(record, Mapping) and all(
        isinstance(record.get(key), kind) for key, kind in kinds.items()
    )


def _entry(item: LibraryItem, path: Path) -> dict[str, Any]:
    """What the index says of a vector."""
    metadata, best = item.vector.metadata, item.intervention
    rates = []
    for rate in item.rates:
        interval = wilson(rate.passed, rate.n)
        numbers = {"rate": interval.value, "low": interval.low, "high": interval.high}
        rates.append({**asdict(rate), **numbers})
    return {
        "name": item.vector.name,
        "file": path.name,
        "sha256": sha256_of_files([path]),
        "card": path.with_suffix(".md").name,
        **{key: metadata.get(key) for key in ("instruction", "estimator", "position", "data_hash")},
        "layers": list(item.vector.layers),
        "steering": None if best is None else settings_of(best),
        "rates": rates,
    }
