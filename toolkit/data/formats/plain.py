"""Plain rows: every record is a row, with the columns that the recipe maps to the fields of the task."""

from toolkit.data.formats.base import Format, Look


def _is_document(look: Look) -> bool:
    """Return whether a JSON file is one object with a list of objects, which is a layout of its own."""
    if look.container is None or look.container.splits():
        return False
    return any(isinstance(one, list) and one and isinstance(one[0], dict) for one in look.members.values())


PLAIN = Format(
    name="rows",
    description="a .json, .jsonl, .csv, .tsv, .txt or .parquet file, or a folder of them, with one record for each row",
    matches=lambda look: look.container is not None and not _is_document(look),
    records=lambda reading: reading.rows(),
)
