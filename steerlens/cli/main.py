"""The command line: one thin command per capability.

Results go to standard output (as JSON with ``--json``), progress and messages to standard error.
The exit code is 0 on success and 2 for bad input, with one line that says what is wrong.
"""

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import steerlens
from steerlens.cli.catalogue import models, tasks
from steerlens.cli.harness import harness
from steerlens.cli.options import spread
from steerlens.cli.rank import rank
from steerlens.cli.runs import evaluate, report, search
from steerlens.cli.steer import calibrate, steer
from steerlens.cli.values import option
from steerlens.cli.vectors import convert, transfer, vector
from steerlens.errors import SteerlensError

__all__ = ["application", "main"]

_COMMANDS = (
    models, tasks, rank, vector, steer, calibrate, convert, transfer, search, evaluate, report,
    harness,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the console entry point.

    Returns:
        The exit code: 0 on success, 2 for bad input, 130 after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    command = typer.main.get_command(application(shlex.join(["steerlens", *words])))
    try:
        with command.make_context("steerlens", words[:]) as root:
            command.invoke(root)
    except typer.Exit as finished:
        return finished.exit_code
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        context = getattr(error, "ctx", None)
        path = "steerlens" if context is None else context.command_path
        stop = "" if message.endswith((".", "?")) else "."
        print(f"steerlens: {message}{stop} See `{path} --help`.", file=sys.stderr)
        return 2
    except SteerlensError as error:
        print(f"steerlens: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("steerlens: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; there is nobody left to tell.
        sys.stderr.close()
    return 0


def application(command_line: str = "") -> typer.Typer:
    """All commands; the line itself is kept for the provenance of results."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.callback()(_root)
    for command in _COMMANDS:
        app.command()(spread(command, command_line=command_line))
    app.command("instructions", hidden=True)(spread(tasks))  # the older spelling
    return app


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(steerlens.__version__)
        raise typer.Exit
    return wanted


def _root(
    version: Annotated[
        bool,
        option("show the version and exit", "--version", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Where to steer a language model, how hard, and what it did to every token."""


if __name__ == "__main__":
    sys.exit(main())
