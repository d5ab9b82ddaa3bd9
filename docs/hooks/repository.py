"""Files of the repository as pages of the site, and the links between them.

README, notebooks and other texts stay where a reader of the repository looks for them. Each has a
place on the site, and a relative link that works in the repository is written anew so that it works
there too. An SVG gets a twin for dark pages.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import commands
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from notebooks import as_markdown

from figures import dark

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
FILES = ("LICENSE", "CITATION.cff", "examples/*", "figures/*.svg", "figures/*.png")
LANGUAGES = {".yaml": "yaml", ".jsonl": "json"}
# A link or a picture, not within code: its text, its address, its anchor.
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
_CODE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)


@event_priority(100)
def on_files(files: Files, *, config: Any) -> Files:
    """Add pages and files that are not in the documentation's folder."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for path in sorted(each for pattern in FILES for each in ROOT.glob(pattern)):
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, content=path.read_bytes()))
    files.append(File.generated(config, "examples.md", content=_examples()))
    files.append(File.generated(config, "reference/commands.md", content=commands.as_markdown()))
    for path in sorted(ROOT.glob("analyses/*.ipynb")):
        text, pictures = as_markdown(path)
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=picture))
    for file in [each for each in files if each.src_uri.endswith(".svg")]:
        place = file.src_uri.removesuffix(".svg") + ".dark.svg"
        files.append(File.generated(config, place, content=dark(file.content_string)))
    return files


@event_priority(100)
def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Links as they are on the site; a picture that has a dark twin twice."""
    own = page.file.src_uri
    source = next((path for path, place in PAGES.items() if place == own), f"docs/{own}")

    def replace(link: re.Match[str]) -> str:
        mark, text, address, anchor = link.groups(default="")
        if ":" not in address and not own.startswith("tutorials/"):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(source), address))
            place = _place(target)
            address = posixpath.relpath(place, posixpath.dirname(own) or ".")
        if mark and address.endswith(".svg"):
            night = address.removesuffix(".svg") + ".dark.svg"
            return f"![{text}]({address}#only-light)![{text}]({night}#only-dark)"
        return f"{mark}[{text}]({address}{anchor})"

    return _outside_code(markdown, lambda part: _LINK.sub(replace, part))


def _place(target: str) -> str:
    """The place on the site of a path in the repository."""
    if target in PAGES:
        return PAGES[target]
    if target == "examples":
        return "examples.md"
    if target.startswith("analyses/") and target.endswith(".ipynb"):
        return f"tutorials/{Path(target).stem}.md"
    return target.removeprefix("docs/")


def _outside_code(markdown: str, change: Any) -> str:
    parts, end = [], 0
    for block in _CODE.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block.group()]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])


def _examples() -> str:
    """A page with the example files."""
    text = "# Examples\n\nTask files, and what they name. [Bring your own behaviour]"
    text += "(bring-your-own-behaviour.md) uses them.\n"
    for path in sorted(ROOT.glob("examples/*")):
        lines = path.read_text(encoding="utf-8").splitlines()
        shown = "\n".join(lines[:40]) + ("\n…" if len(lines) > 40 else "")
        text += f"\n## {path.name}\n\n[Download](examples/{path.name}){{ download }}\n"
        text += f"\n```{LANGUAGES.get(path.suffix, 'text')}\n{shown}\n```\n"
    return text
