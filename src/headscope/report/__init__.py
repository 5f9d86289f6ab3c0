"""`write_report`: analyses and views, put together on one page."""

from headscope.report.sequences import MAX_TOKENS, token_rows
from headscope.report.toy_page import ToyReport, write_toy_report
from headscope.report.writing import ABLATION_TOKENS, Report, write_report

__all__ = ["ABLATION_TOKENS", "MAX_TOKENS", "Report", "ToyReport", "token_rows", "write_report", "write_toy_report"]
