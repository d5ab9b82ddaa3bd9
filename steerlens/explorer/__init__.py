"""Steering by hand in Jupyter: `explore` shows what a setting does while it is being changed.

Moving a slider cancels what is running and starts the new setting; both texts stream in side by
side, then their tokens appear, shaded, each with its numbers at a click. Settings worth keeping are
pinned and compared, and leave as a vector file, a figure, or the Python that gives them again.

Needs ipywidgets and anywidget: ``pip install 'steerlens[notebook]'``.
"""

from steerlens.explorer.widgets import Explorer, explore

__all__ = ["Explorer", "explore"]
