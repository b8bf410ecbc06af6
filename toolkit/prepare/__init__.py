"""Downloads to rows: boxes, outlines and locations from masks, splits without leakage, and a contact sheet."""

from toolkit.prepare.ham10000 import prepare_ham10000
from toolkit.prepare.isic import prepare_isic
from toolkit.prepare.request import PrepareRequest, PrepareResult
from toolkit.prepare.split import split_rows

__all__ = ["PrepareRequest", "PrepareResult", "prepare_ham10000", "prepare_isic", "split_rows"]
