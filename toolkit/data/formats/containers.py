"""The container of a source: where its plain rows are stored, whatever their layout."""

from collections.abc import Iterator
from pathlib import Path

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats.base import Container
from toolkit.data.formats.files import READERS
from toolkit.data.formats.hub import hub_files, stream_hub
from toolkit.data.json_stream import Record

NAMES = {".json": "JSON", ".jsonl": "JSON lines", ".csv": "CSV", ".parquet": "Parquet"}


def hub_container(name: str) -> Container:
    """Return the container of a Hub dataset.

    Raises:
        DataError: The dataset is not available.
    """
    return Container("Hub dataset", hub_files(name), lambda images, _: iter([("", stream_hub(name, images))]))


def container_of(path: Path) -> Container | None:
    """Return the container of a file or folder, or None if it has no file of rows."""
    if not path.is_dir():
        return _file_container(path) if path.suffix.lower() in READERS else None
    files = tuple(file for file in sorted(path.iterdir()) if file.suffix.lower() in READERS and _is_shown(file))
    if len(files) == 1:
        return _file_container(files[0])
    kinds = dict.fromkeys(NAMES[file.suffix.lower()] for file in files)
    name = f"folder of {' and '.join(kinds)} files"
    return Container(name, files, lambda images, _: _parts(files, images)) if files else None


def _file_container(file: Path) -> Container:
    suffix = file.suffix.lower()
    return Container(NAMES[suffix], (file,), lambda images, _: iter([("", READERS[suffix](file, images))]))


def _parts(files: tuple[Path, ...], images: EmbeddedImageStore) -> Iterator[tuple[str, Iterator[Record]]]:
    for file in files:
        yield f"{file.stem}:", READERS[file.suffix.lower()](file, images)


def _is_shown(file: Path) -> bool:
    return file.is_file() and not file.name.startswith((".", "_"))
