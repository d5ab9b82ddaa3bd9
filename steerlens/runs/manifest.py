"""The manifest of a run: what it is, what it was made with, and how far it has come.

It is kept in the run's store and copied to ``manifest.json`` for people to read. It alone decides
whether a run may be continued: the kind, the settings and the minor version of steerlens must be
the same. Other libraries may have been updated; each resumption notes its versions.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.files import library_versions
from steerlens.runs.json_text import canonical_json, json_value

__all__ = ["RUN_SCHEMA", "Manifest", "utc_now"]

RUN_SCHEMA = "steerlens-run/2"
DIFFERENCES_SHOWN = 5
EXCERPT = 60


@dataclass(frozen=True)
class Manifest:
    """What a run says of itself.

    Attributes:
        kind: ``"search"``, ``"evaluate"``, …
        settings: Everything the results depend on.
        settings_hash: ``"sha256:…"`` of the settings.
        versions: Library versions when the run was started.
        created: When it was started (UTC, ISO 8601).
        concluded: When it was completed; None while something is left to do.
        resumed: One entry per resumption: ``time``, ``versions``, and the number of ``pieces`` that
            were finished.
        computed_by: One entry per pool of workers: its engine, and each worker's machine and
            libraries.
        noted: What may change without standing in the way of a resumption, such as the date that a
            chat template writes; one entry per change.
    """

    kind: str
    settings: Mapping[str, Any]
    settings_hash: str
    versions: Mapping[str, str]
    created: str
    concluded: str | None = None
    resumed: tuple[Mapping[str, Any], ...] = ()
    computed_by: tuple[Mapping[str, Any], ...] = ()
    noted: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def new(cls, kind: str, settings: Mapping[str, Any]) -> "Manifest":
        """The manifest of a run that starts now.

        Raises:
            SteerlensError: "settings.x is a PosixPath; expected plain JSON …".
        """
        digest = hashlib.sha256(canonical_json(settings, "settings").encode()).hexdigest()
        return cls(
            kind=kind,
            settings=json_value(settings, "settings", finite=True),
            settings_hash=f"sha256:{digest}",
            versions=library_versions(),
            created=utc_now(),
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Manifest":
        """What `to_json` was made from."""
        fields: dict[str, Any] = {name: record[name] for name in cls.__dataclass_fields__}
        lists = {k: tuple(fields[k]) for k in ("resumed", "computed_by", "noted")}
        return cls(**{**fields, **lists})

    @property
    def complete(self) -> bool:
        """Whether the run has been concluded since it was last opened."""
        return self.concluded is not None

    def to_json(self) -> dict[str, Any]:
        """The content of ``manifest.json``."""
        model = {
            key: self.settings[key] for key in ("model", "weights_hash") & self.settings.keys()
        }
        state = "complete" if self.complete else "unfinished"
        return {**model, "schema": RUN_SCHEMA, "state": state, **asdict(self)}

    def check_continues(self, earlier: "Manifest", folder: Path) -> None:
        """Refuse to continue `earlier`, which stands in `folder`, as this run.

        Raises:
            SteerlensError: "… holds a run of kind …", "… was made with steerlens …", "… was made
                with other settings (n: was 64, now 32) …".
        """
        if earlier.kind != self.kind:
            raise SteerlensError(
                f"{folder} holds a run of kind {earlier.kind!r}, not {self.kind!r}; choose another "
                "folder"
            )
        was, is_now = earlier.versions["steerlens"], self.versions["steerlens"]
        if was.split(".")[:2] != is_now.split(".")[:2]:
            raise SteerlensError(
                f"{folder} was made with steerlens {was}, this is {is_now}: results could differ; "
                "choose another folder, or continue with that version"
            )
        differences = list(_differences(earlier.settings, self.settings))
        if differences:
            shown = differences[:DIFFERENCES_SHOWN]
            if len(differences) > len(shown):
                shown.append(f"and {len(differences) - len(shown)} more")
            raise SteerlensError(
                f"{folder} was made with other settings ({'; '.join(shown)}); resume with the same "
                "ones, or choose another folder"
            )


def utc_now() -> str:
    """The time, as manifests state it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _differences(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Iterator[str]:
    """Each setting that differs, by its dotted name: "n: was 64, now 32"."""
    before, after = _flat(earlier), _flat(later)
    for key in sorted({**before, **after}):
        old, new = before.get(key, "not set"), after.get(key, "not set")
        if old != new:
            yield f"{key}: was {_excerpt(old, new)}, now {_excerpt(new, old)}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = canonical_json(value)
    return flat


def _excerpt(text: str, other: str) -> str:
    """The text itself, or the part of a long one where it begins to differ from the other."""
    if len(text) <= EXCERPT:
        return text
    same = os.path.commonprefix([text, other])  # noqa: RUF071 (texts, not paths)
    start = max(0, len(same) - EXCERPT // 3)
    end = start + EXCERPT
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
