"""The container of a source: where its plain rows are stored, whatever their layout."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats import hf_datasets
from toolkit.data.formats.base import Container
from toolkit.data.formats.readers import json_kind, lists_of_objects, read_list, read_rows, read_split, splits_of_object
from toolkit.data.formats.row_file import RowFile, row_file
from toolkit.data.formats.split_names import split_in
from toolkit.data.formats.tables import text_layout
from toolkit.data.formats.zip_images import with_zipped_images
from toolkit.data.json_stream import Record
from toolkit.errors import DataError

NAMES = {".csv": "CSV", ".tsv": "text separated by a tab", ".parquet": "Parquet"}

_JSON_NAMES = {"lines": "JSON lines", "list": "JSON", "object": "JSON", "splits": "JSON object of splits"}

_FOLDER_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Files of rows in a folder. A .txt can be anything else there, such as notes or the boxes of an image."""

_HUB_METADATA = "dataset_infos.json"
"""File of older Hub datasets that describes their columns and splits."""


def container_of(path: Path) -> Container | None:
    """Return the container of a file or folder, or None if it has no file of rows.

    Raises:
        DataError: A file of rows is invalid.
    """
    if hf_datasets.is_saved(path):
        return hf_datasets.saved_container(path)
    if not path.is_dir():
        file = row_file(path)
        return None if file is None else _file_container(file)
    files = tuple(file for one in sorted(path.iterdir()) if _is_shown(one) if (file := _in_folder(one)) is not None)
    folders = {} if files else _parquet_folders(path)
    if len(folders) > 1:
        found = tuple(file for inside in folders.values() for file in inside)
        return Container(
            "folder of Parquet files", _paths(found), partial(_parts, found), unclear=_several(path, folders)
        )
    files = files or next(iter(folders.values()), ())
    if len(files) == 1:
        return _file_container(files[0])
    return _files_container(files) if files else None


def _parquet_folders(path: Path) -> dict[str, tuple[RowFile, ...]]:
    """Return the folders in a folder that have Parquet files. A downloaded dataset of the Hub has one, such as data."""
    inside = {one.name: sorted(one.glob("*.parquet")) for one in sorted(path.iterdir()) if one.is_dir()}
    return {
        name: tuple(RowFile(file, ".parquet") for file in files if _is_shown(file))
        for name, files in inside.items()
        if files and not name.startswith((".", "_"))
    }


def _several(path: Path, folders: Mapping[str, object]) -> DataError:
    rule = "the Parquet files of a dataset must be in one folder, because each can be a configuration of its own"
    remedy = "Name one of these folders."
    return DataError("data.folders_of_parquet_unclear", rule, place=path, value=list(folders), remedy=remedy)


def _file_container(file: RowFile) -> Container | None:
    if file.suffix == ".txt":
        layout = text_layout(file)
        return None if layout is None else _container(layout.name, file)
    if file.suffix not in NAMES:
        kind = json_kind(file)
        if kind == "splits":
            splits = partial(splits_of_object, file)
            return Container(_JSON_NAMES[kind], (file.path,), partial(_split_part, file), splits)
        lists = lists_of_objects(file) if kind == "object" else []
        if len(lists) == 1:
            return _container(f'JSON, list "{lists[0]}"', file, partial(read_list, file, lists[0]))
        return _container(_JSON_NAMES[kind], file)
    return _container(NAMES[file.suffix], file)


def _container(name: str, file: RowFile, read: Callable[[], Iterator[Record]] | None = None) -> Container:
    return Container(name, (file.path,), lambda images, _: iter([("", _rows(file, images, read))]))


def _rows(file: RowFile, images: EmbeddedImageStore, read: Callable[[], Iterator[Record]] | None) -> Iterator[Record]:
    rows = read_rows(file, images) if read is None else read()
    return with_zipped_images(rows, file, images) if file.member else rows


def _split_part(file: RowFile, images: EmbeddedImageStore, split: str | None) -> Iterator[tuple[str, Iterator[Record]]]:
    rows = read_split(file, split)
    yield "", with_zipped_images(rows, file, images) if file.member else rows


def _files_container(files: tuple[RowFile, ...]) -> Container:
    kinds = Counter(NAMES.get(file.suffix, "JSON") for file in files)
    name = f"folder of {' and '.join(kinds)} files"
    splits = {file.path.name: split_in(file.stem) for file in files}
    names = tuple(dict.fromkeys(split for split in splits.values() if split))
    if names and None in splits.values():
        return Container(name, _paths(files), partial(_parts, files), unclear=_unclear(files[0].path.parent, splits))
    if len(names) < 2:
        return Container(name, _paths(files), partial(_parts, files))
    return Container(f"{name}, one for each split", _paths(files), partial(_parts, files), lambda: names)


def _unclear(folder: Path, splits: Mapping[str, str | None]) -> DataError:
    """Return the error of a folder in which only some files have a split in their name. One list would mix splits."""
    rule = "all files of a folder must have a split in their name (train, validation or test), or none of them"
    value = {name: split or "no split" for name, split in splits.items()}
    remedy = "Rename or move the files, or name one file in each of data.train, data.validation and data.test."
    return DataError("data.folder_splits_unclear", rule, place=folder, value=value, remedy=remedy)


def _paths(files: tuple[RowFile, ...]) -> tuple[Path, ...]:
    return tuple(file.path for file in files)


def _parts(
    files: tuple[RowFile, ...], images: EmbeddedImageStore, split: str | None
) -> Iterator[tuple[str, Iterator[Record]]]:
    for file in files:
        if split is None or split_in(file.stem) == split:
            yield f"{file.stem}:", read_rows(file, images)


def _in_folder(path: Path) -> RowFile | None:
    inner = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    return row_file(path) if inner.lower() in _FOLDER_SUFFIXES else None


def _is_shown(file: Path) -> bool:
    return file.is_file() and not file.name.startswith((".", "_")) and file.name != _HUB_METADATA
