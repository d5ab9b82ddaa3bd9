"""The command line as a page: every command, with the options that its ``--help`` lists."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_ESCAPED = str.maketrans({"|": "\\|", "<": "&lt;", "*": "\\*", "_": "\\_", "[": "\\["})


def as_markdown() -> str:
    """One section per command."""
    sys.path.insert(0, str(ROOT))
    try:
        import typer

        from steerlens.cli.main import application

        group = typer.main.get_command(application())
    finally:
        sys.path.remove(str(ROOT))
    commands = [each for each in group.commands.values() if not each.hidden]
    text = (
        "# Command line\n\nEvery command takes `--json` and `--help`, shows progress on standard "
        "error, and answers bad input with one\nsentence and exit code 2.\n\n"
        "| command | |\n|---|---|\n"
    )
    for command in commands:
        text += f"| [`{command.name}`](#steerlens-{command.name}) | {_first_line(command)} |\n"
    return text + "".join(map(_section, commands))


def _first_line(command: Any) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split())


def _section(command: Any) -> str:
    text = f"\n## `steerlens {command.name}` {{ #steerlens-{command.name} }}\n\n{command.help}\n"
    options = [
        each
        for each in command.params
        if each.name not in ("as_json", "help") and not getattr(each, "hidden", False)
    ]
    if options:
        text += "\n| option | | default |\n|---|---|---|\n"
    for option in options:
        names = ", ".join(f"`{name}`" for name in option.opts)
        meaning = (getattr(option, "help", "") or "").translate(_ESCAPED)
        text += f"| {names} | {meaning} | {_default(option)} |\n"
    return text


def _default(option: Any) -> str:
    if option.required:
        return "required"
    plain = isinstance(option.default, str | int | float) and option.default is not False
    return str(option.default).translate(_ESCAPED) if plain else ""
