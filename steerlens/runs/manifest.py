"""The manifest of a run: what it is, made with what, and how far it came.

``manifest.json`` is written when the run starts, each time it is resumed, and when it is concluded;
always whole. Whether an existing run may be continued is decided from it alone: the same kind, the
same settings, the same run schema, and the same minor version of steerlens. A setting that a run
does not name because its version of steerlens had none has the value it had then (`Run.open`'s
`added`). Other libraries may have been updated; each resumption notes its versions.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steerlens.errors import FileFormatError, SteerlensError
from steerlens.files import library_versions
from steerlens.runs.plain import canonical, plain

__all__ = ["MANIFEST", "Manifest", "read_manifest"]

MANIFEST = "manifest.json"
RUN_SCHEMA = "steerlens-run/1"
DIFFERENCES_SHOWN = 5
EXCERPT = 60


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        kind: ``"search"``, ``"evaluate"``, …
        settings: Everything the results depend on, as plain JSON; ``model`` and ``weights_hash``
            among them are repeated at the top of the file.
        settings_hash: ``"sha256:…"`` of the settings.
        versions: Library versions the run was started with.
        created: When it was started (UTC, ISO 8601).
        concluded: When it was concluded; None while something is left to do.
        resumed: One entry a resumption: ``time``, ``versions``, the number of ``pieces`` found
            finished, and of ``damaged_lines`` dropped.
        computed_by: One entry an engine other than this process: its name and version, and what
            each worker said of its machine and its libraries.
        noted: One entry each time something was found otherwise that changes by itself and stands
            in no run's way, such as the date a chat template writes: ``time`` and what it was.
    """

    kind: str
    settings: Mapping[str, Any]
    settings_hash: str
    versions: Mapping[str, str]
    created: str
    concluded: str | None = None
    resumed: tuple[Mapping[str, Any], ...] = field(default=())
    computed_by: tuple[Mapping[str, Any], ...] = field(default=())
    noted: tuple[Mapping[str, Any], ...] = field(default=())

    @classmethod
    def new(cls, kind: str, settings: Mapping[str, Any]) -> "Manifest":
        """The manifest of a run that starts now.

        Raises:
            SteerlensError: "settings.x is a PosixPath; expected plain JSON …".
        """
        text = canonical(settings, "settings")
        return cls(
            kind=kind,
            settings=plain(settings, "settings", finite=True),
            settings_hash=f"sha256:{hashlib.sha256(text.encode('utf-8')).hexdigest()}",
            versions=library_versions(),
            created=now(),
        )

    @property
    def complete(self) -> bool:
        """Whether the run has been concluded since it was last opened."""
        return self.concluded is not None

    def to_json(self) -> dict[str, Any]:
        """What is written to the file."""
        identity = {
            key: self.settings[key] for key in ("model", "weights_hash") if key in self.settings
        }
        return {
            **identity,
            "schema": RUN_SCHEMA,
            "kind": self.kind,
            "state": "complete" if self.complete else "unfinished",
            "created": self.created,
            "concluded": self.concluded,
            "settings": dict(self.settings),
            "settings_hash": self.settings_hash,
            "versions": dict(self.versions),
            "resumed": [dict(entry) for entry in self.resumed],
            "computed_by": [dict(entry) for entry in self.computed_by],
            "noted": [dict(entry) for entry in self.noted],
        }

    def check_continues(
        self, earlier: "Manifest", folder: Path, added: Mapping[str, Any] | None = None
    ) -> None:
        """Refuse to continue `earlier`, found in `folder`, as this run.

        Args:
            earlier: What the folder says.
            folder: For the sentence.
            added: Settings that `earlier` may lack, with the values they had; see `Run.open`.

        Raises:
            SteerlensError: "… holds a run of kind …", "… was made with steerlens …", "… was made
                with other settings (n: was 64, now 32) …".
        """
        if earlier.kind != self.kind:
            raise SteerlensError(
                f"{folder} holds a run of kind {earlier.kind!r}, not {self.kind!r}; choose another "
                "folder"
            )
        was, is_now = earlier.versions.get("steerlens", "unknown"), self.versions["steerlens"]
        if was.split(".")[:2] != is_now.split(".")[:2]:
            raise SteerlensError(
                f"{folder} was made with steerlens {was}, this is {is_now}: results could differ; "
                "choose another folder, or continue with that version"
            )
        named = _completed(earlier.settings, added or {})
        differences = list(_differences(named, self.settings))
        if differences:
            shown = differences[:DIFFERENCES_SHOWN]
            if len(differences) > len(shown):
                shown.append(f"and {len(differences) - len(shown)} more")
            raise SteerlensError(
                f"{folder} was made with other settings ({'; '.join(shown)}); resume with the same "
                "ones, or choose another folder"
            )


def now() -> str:
    """The time, as manifests state it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of the run in a folder, also while a process is at work there.

    Raises:
        FileFormatError: "no run in …", "… is not the manifest of a steerlens run …", "… has the run
            schema …".
    """
    path = Path(folder) / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"no run in {folder}: {MANIFEST} is missing") from None
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        record = None
    schema = record.get("schema") if isinstance(record, dict) else None
    if isinstance(schema, str) and schema != RUN_SCHEMA and schema.startswith("steerlens-run/"):
        raise FileFormatError(
            f"{path} has the run schema {schema!r}, this steerlens reads {RUN_SCHEMA!r}; choose "
            "another folder"
        )
    if schema != RUN_SCHEMA:
        raise FileFormatError(
            f"{path} is not the manifest of a steerlens run, or damaged; choose another folder"
        )
    return _from_json(record, path)


def _from_json(record: Mapping[str, Any], path: Path) -> Manifest:
    shapes = {
        "kind": str,
        "settings": dict,
        "settings_hash": str,
        "versions": dict,
        "created": str,
        "concluded": str | None,
        "resumed": list,
    }
    for key, shape in shapes.items():
        if key not in record or not isinstance(record[key], shape):
            raise FileFormatError(f"{path} is damaged: {key!r} is missing or of another type")
    fields = {key: record[key] for key in shapes}
    # Runs of earlier versions do not say who computed them (this process did), and note nothing.
    later = {key: record.get(key, []) for key in ("computed_by", "noted")}
    for key, entries in later.items():
        if not isinstance(entries, list):
            raise FileFormatError(f"{path} is damaged: {key!r} is of another type")
    lists = {key: tuple(entries) for key, entries in later.items()}
    return Manifest(**{**fields, "resumed": tuple(record["resumed"]), **lists})


def _completed(settings: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with those of `added` (nested alike) that they do not name.

    >>> _completed({"search": {"seed": 0}}, {"search": {"seed": 7, "piece_rows": 192}})
    {'search': {'seed': 0, 'piece_rows': 192}}
    """
    whole = dict(settings)
    for key, value in added.items():
        if isinstance(value, Mapping) and isinstance(whole.get(key), Mapping):
            whole[key] = _completed(whole[key], value)
        else:
            whole.setdefault(key, value)
    return whole


def _differences(earlier: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """Each setting that differs, by its dotted name: "n: was 64, now 32"."""
    before, after = _flat(earlier), _flat(given)
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
            flat[prefix + key] = canonical(value)
    return flat


def _excerpt(text: str, other: str) -> str:
    """The text itself, or of a long one the part where it begins to differ from the other."""
    if len(text) <= EXCERPT:
        return text
    pairs = enumerate(zip(text, other, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
    start = max(0, same - EXCERPT // 3)
    end = start + EXCERPT
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
