"""The layer-selection report, and HTML pages that work offline.

`report` measures where tasks can be steered and writes a folder; `render_report` and
`render_evaluation` draw pages from the plain data of a report or an evaluation. A page is one file:
styles, figures, plotly.js and the numbers of every token are inside it.
"""

import lazy_loader

# What is public, and where it lives, is listed once, in `__init__.pyi`.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
