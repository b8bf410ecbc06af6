"""Rows on disk: any source is parsed once into a memory-mapped index, then opened lazily."""

from toolkit.data.index import RowIndex, open_index, row_cache, source_folder
from toolkit.data.unusable_rows import Dropped, Tally

__all__ = ["Dropped", "RowIndex", "Tally", "open_index", "row_cache", "source_folder"]
