"""Executed notebooks as Markdown pages: text, code, and what the cells showed."""

import json
import re
from pathlib import Path
from typing import Any

_STYLE = re.compile(r"<style.*?</style>", re.DOTALL)


def as_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    heading = path.stem
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = next(iter(re.findall(r"^#+ (.*)", source, re.MULTILINE)), heading)
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                name = f"{path.stem}-{len(pictures) + 1}.svg"
                parts.append(_shown(output, heading, name, pictures))
    return "\n\n".join(filter(None, parts)) + "\n", pictures


def _shown(output: dict[str, Any], heading: str, name: str, pictures: dict[str, bytes]) -> str:
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if "image/svg+xml" in data:
        pictures[name] = data["image/svg+xml"].encode()
        return f"![{heading}]({name})"
    if "text/html" in data:
        table = _STYLE.sub("", data["text/html"]).replace(' border="1"', "").strip()
        return f'<div class="output" tabindex="0">\n{table}\n</div>'
    text = "".join(output.get("text", "")) or data.get("text/plain", "")
    return f"~~~~~~{{.text .output}}\n{text.rstrip()}\n~~~~~~" if text else ""
