from .evaluation import render_evaluation as render_evaluation
from .layer_selection import Report as Report
from .layer_selection import report as report
from .page import render_report as render_report
from .schema import SCHEMA as SCHEMA
from .settings import ReportSettings as ReportSettings

__all__ = [
    "SCHEMA",
    "Report",
    "ReportSettings",
    "render_evaluation",
    "render_report",
    "report",
]
