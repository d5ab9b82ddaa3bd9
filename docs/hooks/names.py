"""Public names: each must be documented; they are listed, and linked where a page mentions them."""

import ast
import logging
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.plugins import event_priority

# Warnings of this log fail a strict build.
log = logging.getLogger("mkdocs.plugins.names")
ROOT = Path(__file__).parents[2]
# Rooms whose names users import; what other rooms export is for the package itself.
ROOMS = (
    "attribution", "behaviour.calibration", "behaviour.evaluation", "behaviour.plans",
    "behaviour.search", "effects", "errors", "explorer", "harness", "reports", "runs", "tasks",
    "training", "vectors", "vectors.formats", "vectors.transfer", "views", "workers",
)  # fmt: skip
_LIST = "<!-- public names -->"
# Inline code that is, or begins with, a name: `sl.steer(…)`, `steerlens.attribution.causal`.
_MENTIONED = re.compile(
    r"(?<!</span>)<code>((?:sl|steerlens)\.([A-Za-z_.]+\w))([^<]*)</code>(?!</a>)"
)


def names_of(module: str) -> list[str]:
    """The names in ``__all__`` of a package, as the full names a user imports them by."""
    folder = ROOT.joinpath("steerlens", *module.split(".")) if module else ROOT / "steerlens"
    stub = folder / "__init__.pyi"
    source = stub if stub.exists() else folder / "__init__.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            prefix = f"steerlens.{module}." if module else "steerlens."
            return [prefix + name for name in ast.literal_eval(node.value)]
    return []


PUBLIC = names_of("")


@event_priority(50)
def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """The list of public names, where a page asks for it."""
    return markdown.replace(_LIST, _listed()) if _LIST in markdown else markdown


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Names in inline code lead to their place in the reference, if they have one."""

    def link(found: re.Match[str]) -> str:
        name = f"steerlens.{found[2]}"
        if found[1].startswith("sl.") and ".".join(name.split(".")[:2]) not in PUBLIC:
            log.warning("%s: sl.%s is not a public name", page.file.src_uri, found[2])
        inner = f"<code>{found[1]}{found[3]}</code>"
        return f'<autoref identifier="{name}" optional>{inner}</autoref>'

    return _MENTIONED.sub(link, html)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """The theme's search is a dialog without a name."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


@event_priority(-100)
def on_env(env: Any, *, config: Any, files: Any) -> None:
    """A public name without an entry in the reference fails the build."""
    inventory = config.plugins["mkdocstrings"].handlers.inventory
    for name in [*PUBLIC, *(name for room in ROOMS for name in names_of(room))]:
        if name not in inventory:
            log.warning("%s is public and has no entry in the reference", name)


def _listed() -> str:
    package: Any = griffe.load("steerlens", search_paths=[str(ROOT)])
    rows = ["| name | |", "|---|---|"]
    for name in PUBLIC:
        short = name.removeprefix("steerlens.")
        target = package[short]
        target = target.final_target if target.is_alias else target
        line = target.docstring.value.splitlines()[0] if target.docstring else ""
        if not line:
            log.warning("%s is public and has no docstring", name)
        rows.append(f"| [`sl.{short}`][{name}] | {line.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)
