"""Rows on disk: any source is parsed once into a memory-mapped index, then opened lazily."""

from toolkit.data.index import RowIndex, open_index, row_cache, source_folder
from toolkit.data.row_counts import RowCount, Tally

__all__ = ["RowCount", "RowIndex", "Tally", "open_index", "row_cache", "source_folder"]
