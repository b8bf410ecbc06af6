"""Reports on runs: HTML, Markdown and JSON."""

from toolkit.reporting.ledger import Ledger, RunUse, read_ledger
from toolkit.reporting.report import ReportOptions, report_runs, write_run_report

__all__ = ["Ledger", "ReportOptions", "RunUse", "read_ledger", "report_runs", "write_run_report"]
