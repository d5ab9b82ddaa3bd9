"""Report pages: one self-contained HTML file from the numbers of a run.

`render_report` turns the JSON behind a report into a page that opens from the file system with no
network: styles, figures, plotly.js and the numbers of every token are inside it.
"""

from steerlens.reports.page import render_report
from steerlens.reports.schema import SCHEMA

__all__ = ["SCHEMA", "render_report"]
