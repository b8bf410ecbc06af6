"""Datasets that the library ``datasets`` reads: of the Hub, and folders written by ``save_to_disk``.

A Hub dataset is ``hub:owner/name`` with an optional ``:configuration`` and ``#split``. Both are read from Arrow files
without running any code of the dataset.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats.base import Container
from toolkit.data.formats.class_labels import names_of_features
from toolkit.data.formats.readers import ARROW_ROWS, plain_rows
from toolkit.data.json_stream import Record
from toolkit.errors import DataError
from toolkit.identifiers import without_names

HUB = "hub:"

_NAME = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:#(?P<split>[\w.\[\]:%-]+))?")


def hub_container(source: str) -> Container:
    """Return the container of a Hub dataset, after a download if needed.

    Raises:
        DataError: The name is malformed, the dataset or split does not exist, or the Hub is not reachable.
    """
    files = tuple(Path(file["filename"]) for file in _load_hub(source).cache_files)
    return Container("Hub dataset", files, lambda images, _: iter([("", _stream(partial(_load_hub, source), images))]))


def hub_splits(source: str) -> tuple[str, ...]:
    """Return the splits of the configuration of a Hub dataset that a name without a split means.

    Raises:
        DataError: as in ``hub_container``.
    """
    return tuple(_load_hub(source).info.splits or ())


def is_saved(path: Path) -> bool:
    """Return whether a folder was written by ``save_to_disk``, as a dataset or as a dictionary of splits."""
    return (path / "dataset_dict.json").is_file() or all(
        (path / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def saved_container(path: Path) -> Container:
    """Return the container of a folder written by ``save_to_disk``.

    Raises:
        DataError: Its list of splits is damaged.
    """
    names = _splits(path)
    folders = tuple(path / name for name in names) or (path,)
    files = tuple(sorted(file for folder in folders for file in folder.iterdir() if file.is_file()))

    def parts(images: EmbeddedImageStore, split: str | None) -> Iterator[tuple[str, Iterator[Record]]]:
        for folder in folders:
            if not names or split in (None, folder.name):
                prefix = f"{folder.name}:" if names and split is None else ""
                yield prefix, _stream(partial(_load_saved, folder), images)

    return Container("datasets folder (save_to_disk)", files, parts, lambda: names)


def _splits(path: Path) -> tuple[str, ...]:
    """Return the splits of a dictionary of datasets, or nothing for a single dataset."""
    file = path / "dataset_dict.json"
    if not file.is_file():
        return ()
    try:
        names = tuple(json.loads(file.read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule, remedy = "the file must list the splits of the dataset", "Copy the folder again."
        raise DataError(
            "data.saved_dataset_damaged", rule, place=file, value=without_names(str(error)), remedy=remedy
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (path / name).is_dir():
            rule, remedy = "each split must be a folder in the dataset", "Copy the folder again."
            raise DataError("data.saved_dataset_damaged", rule, place=file, value=name, remedy=remedy)
    return names


def _stream(load: Callable[[], Any], images: EmbeddedImageStore) -> Iterator[Record]:
    """Yield all rows of a dataset, without an id."""
    dataset = load()
    names = names_of_features(dataset.features.to_dict())
    with _damage(load):
        for table in dataset.with_format("arrow").iter(batch_size=ARROW_ROWS):
            for row in plain_rows(table, images, names):
                yield None, row, None


@contextmanager
def _damage(load: Callable[[], Any]) -> Iterator[None]:
    """Report an error of reading as an error of the dataset."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        place = getattr(load, "args", ("",))[0]
        rule, remedy = "the Arrow files of the dataset must be valid", "Save or download the dataset again."
        raise DataError(
            "data.saved_dataset_damaged", rule, place=place, value=without_names(str(error)), remedy=remedy
        ) from None


def _load_saved(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        rule, remedy = "the folder must be a complete dataset of save_to_disk", "Save the dataset again."
        raise DataError(
            "data.saved_dataset_damaged", rule, place=folder, value=without_names(str(error)), remedy=remedy
        ) from error


def _load_hub(source: str) -> Any:
    found = _NAME.fullmatch(source)
    if found is None:
        rule = "the name of a Hub dataset must be hub:owner/name, with an optional :configuration and #split"
        raise DataError("data.hub_name_malformed", rule, value=source, remedy="Correct the name.")
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(found["name"], found["config"], split=found["split"] or "train")
    except (OSError, ValueError, DatasetsError, pa.ArrowException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(
            "data.hub_not_loaded",
            "the Hub dataset must be available",
            place=source,
            value=" ".join(lines[:3]) or type(error).__name__,
            remedy="Check name, configuration, split and network (HF_HUB_OFFLINE), or name a local file.",
        ) from error
