"""`write_report` and `write_comparison`: analyses and views, put together on one page."""

from headscope.report.comparison import Comparison, write_comparison
from headscope.report.sequences import MAX_TOKENS, token_rows
from headscope.report.toy_page import ToyReport, write_toy_report
from headscope.report.writing import ABLATION_TOKENS, Report, write_report

__all__ = [
    "ABLATION_TOKENS",
    "MAX_TOKENS",
    "Comparison",
    "Report",
    "ToyReport",
    "token_rows",
    "write_comparison",
    "write_report",
    "write_toy_report",
]
