"""Progress bars are drawn on standard error, and by default only in a terminal.

>>> shown(True), shown(False)
(True, False)
"""

import sys

__all__ = ["shown"]


def shown(show_progress: bool | None) -> bool:
    """Whether bars are drawn: as asked, else only where standard error is a terminal."""
    if show_progress is not None:
        return show_progress
    # A process without a console has no standard error.
    return sys.stderr is not None and sys.stderr.isatty()
