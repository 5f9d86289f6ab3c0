"""`write_report`, `write_comparison`, `write_toy_report`: what analyses measured, on one page."""

from headscope.report.comparison.writing import Comparison, write_comparison
from headscope.report.model.model_page import SECTIONS
from headscope.report.model.writing import ABLATION_TOKENS, MINUTES, Report, write_report
from headscope.report.parts import Stopped
from headscope.report.tokens import MAX_TOKENS, token_rows
from headscope.report.toy.writing import ToyReport, write_toy_report

__all__ = [
    "ABLATION_TOKENS",
    "MAX_TOKENS",
    "MINUTES",
    "SECTIONS",
    "Comparison",
    "Report",
    "Stopped",
    "ToyReport",
    "token_rows",
    "write_comparison",
    "write_report",
    "write_toy_report",
]
