"""Steering by hand in Jupyter: `explore` shows what steering does while it is being changed.

Moving a slider cancels what is running and starts anew; both texts stream in side by side, then
their tokens appear, shaded, each with its numbers at a click. Trials worth keeping are pinned and
compared, and can be saved as a vector file, a figure, or the Python that gives them again.

Needs ipywidgets and anywidget: ``pip install 'steerlens[notebook]'``.
"""

from steerlens.explorer.widgets import Explorer, explore

__all__ = ["Explorer", "explore"]
