"""Sources of rows: the file, folder or Hub dataset that a name in the recipe refers to, and its records as a stream."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats import FORMATS, Format, Look, Reading, recognize
from toolkit.data.formats.base import ID_COLUMNS
from toolkit.data.formats.containers import container_of
from toolkit.data.formats.hf_datasets import HUB, hub_container
from toolkit.data.formats.image_folder import CLASS_FOLDERS
from toolkit.data.formats.plain import PLAIN
from toolkit.data.formats.unrecognized import unrecognized
from toolkit.errors import DataError


@dataclass(frozen=True, slots=True)
class Source:
    """An existing source: its name in messages, its format and its files."""

    name: str
    look: Look
    format: Format
    id_column: str | None = None
    """The column with the row id. None means the usual names."""
    split: str | None = None
    """The split to read, as the source writes it. None means all rows."""

    @property
    def is_hub(self) -> bool:
        """Whether the rows come from a Hub dataset."""
        return self.name.startswith(HUB)

    @property
    def location(self) -> str:
        """Name or absolute path, independent of the content."""
        return self.name if self.is_hub else f"{self.look.path}#{self.split or ''}"

    @property
    def files(self) -> tuple[Path, ...]:
        """Files whose change makes the index invalid."""
        return self.format.files(self.look)

    @property
    def title(self) -> str:
        """Return the name of the format in messages: that of the container for plain rows."""
        container = self.look.container
        name = container.name if self.format is PLAIN and container is not None else self.format.name
        return name if self.split is None else f"{name}, split {self.split}"


def find_source(name: str, id_column: str | None = None, key: str = "[data]") -> Source:
    """Return the source that a name in the recipe refers to, with its format.

    Args:
        name: A file, a folder, or a Hub dataset.
        id_column: The column with the row id.
        key: Section or key of the recipe, for error messages.

    Raises:
        DataError: The source does not exist or has no supported format.
    """
    if name.startswith(HUB):
        return _with_format(name, Look(Path(name), hub_container(name)), id_column)
    text, split = parse_source(name)
    path = Path(text).expanduser().absolute()
    if not path.exists():
        rule = "the file of rows must exist"
        raise DataError("data.file_missing", rule, place=path, remedy=f"Correct the path in {key}.")
    if not path.is_file() and not path.is_dir():  # reading a pipe or a device would wait forever
        rule = "the source of rows must be a file or a folder"
        raise DataError("data.source_not_a_file", rule, place=path, remedy=f"Correct the path in {key}.")
    if not os.access(path, os.R_OK):
        rule = "the file of rows must be readable"
        raise DataError("data.file_not_readable", rule, place=path, remedy="Change its permissions.")
    source = _with_format(name, Look(path, container_of(path)), id_column)
    return source if split is None else _with_split(source, split)


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder has no rows in a known format besides images, which may be in a folder for each class.

    Raises:
        DataError: A file of rows is invalid.
    """
    path = folder.expanduser().absolute()
    return recognize(Look(path, container_of(path))) in (None, CLASS_FOLDERS)


def source_exists(name: str) -> bool:
    """Return whether the file or folder of a source exists. A Hub dataset is not looked up."""
    return name.startswith(HUB) or Path(parse_source(name)[0]).expanduser().exists()


def parse_source(name: str) -> tuple[str, str | None]:
    """Return path and split of a local source. A ``#`` in the name of an existing file is a part of the name."""
    path, mark, split = name.rpartition("#")
    return (path, split) if mark and not Path(name).expanduser().exists() else (name, None)


def source_splits(name: str) -> tuple[str, ...]:
    """Return the splits of a local source, as it writes them. Empty if it has none, or if the name has a split.

    Raises:
        DataError: as ``find_source``.
    """
    if name.startswith(HUB) or parse_source(name)[1] is not None:
        return ()
    source = find_source(name)
    return source.format.splits(source.look)


def _with_split(source: Source, split: str) -> Source:
    splits = source.format.splits(source.look)
    if split not in splits:
        rule, remedy = "the split must be in the source", f"Choose one of: {', '.join(splits)}."
        remedy = remedy if splits else "Remove # and the split from the name: this source has no splits."
        raise DataError("data.split_unknown", rule, place=source.look.path, value=split, remedy=remedy)
    return replace(source, split=split)


def stream_source(source: Source, images: EmbeddedImageStore) -> Iterator[tuple[str, Any, str | None]]:
    """Yield all records of a source. Embedded images are written to ``images``.

    A record without an id gets its number, from 0. In a folder with several files, it gets ``file:number``.
    """
    yield from stream_records(source, start_reading(source, images))


def start_reading(source: Source, images: EmbeddedImageStore) -> Reading:
    """Return a new pass over a source. Its tallies count records while the source is streamed."""
    columns = ID_COLUMNS if source.id_column is None else (source.id_column,)
    return Reading(source.look, images, source.split, columns)


def stream_records(source: Source, reading: Reading) -> Iterator[tuple[str, Any, str | None]]:
    """Yield id, record and JSON text of all records of a pass."""
    for number, (name, row, text) in enumerate(source.format.records(reading)):
        yield name if name is not None else str(number), row, text


def _with_format(name: str, look: Look, id_column: str | None) -> Source:
    found = recognize(look)
    if found is not None:
        return Source(name, look, found, id_column)
    raise unrecognized(look, FORMATS)
