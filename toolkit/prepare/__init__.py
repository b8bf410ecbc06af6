"""From a download to rows: masks to boxes, outlines and places, splits that do not leak, and a sheet to look at."""

from toolkit.prepare.ham10000 import prepare_ham10000
from toolkit.prepare.isic import prepare_isic
from toolkit.prepare.request import Prepared, Request
from toolkit.prepare.stratify import split_rows

__all__ = ["Prepared", "Request", "prepare_ham10000", "prepare_isic", "split_rows"]
