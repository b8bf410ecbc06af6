"""Reports over runs."""

from toolkit.reporting.compute import as_json, as_markdown, write_report
from toolkit.reporting.ledger import Ledger, RunUse, read_ledger

__all__ = ["Ledger", "RunUse", "as_json", "as_markdown", "read_ledger", "write_report"]
