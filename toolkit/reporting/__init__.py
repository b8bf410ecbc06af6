"""Compute reports over runs."""

from toolkit.reporting.ledger import Ledger, RunUse, read_ledger
from toolkit.reporting.report import as_json, as_markdown, write_report

__all__ = ["Ledger", "RunUse", "as_json", "as_markdown", "read_ledger", "write_report"]
