"""Plain rows: every record is a row, with the columns that the recipe maps to the fields of the task."""

from toolkit.data.formats.base import Format, Look
from toolkit.data.formats.readers import lists_of_objects
from toolkit.data.formats.row_file import row_file

MAX_FILES = 20
"""Files of a folder that are checked. A later one with a layout of its own has records that are not objects."""


def _has_document(look: Look) -> bool:
    """Return whether a JSON file is one object with several lists of objects, which is a layout of its own."""
    if look.container is None or look.container.has_splits:
        return False
    files = [row_file(path) for path in look.container.files[:MAX_FILES]]
    return any(len(lists_of_objects(file)) > 1 for file in files if file is not None and file.suffix == ".json")


PLAIN = Format(
    name="rows",
    description="a .json, .jsonl, .csv, .tsv, .txt or .parquet file, or a folder of them, with one record for each row",
    matches=lambda look: look.container is not None and not _has_document(look),
    records=lambda reading: reading.rows(),
)
