"""Plain rows: every record is a row, with the columns that the recipe maps to the fields of the task."""

from toolkit.data.formats.base import Format

PLAIN = Format(
    name="rows",
    description="a .json, .jsonl, .csv or .parquet file, or a folder of them, with one record for each row",
    matches=lambda look: look.container is not None,
    records=lambda reading: reading.rows(),
)
