"""Hub datasets as sources: ``hub:owner/name`` with an optional ``#split``, loaded by ``datasets``."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats.files import ARROW_ROWS, plain_rows
from toolkit.data.json_stream import Record
from toolkit.errors import DataError

HUB = "hub:"

_NAME = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:#(?P<split>[\w.\[\]:%-]+))?")


def hub_files(source: str) -> tuple[Path, ...]:
    """Return the Arrow files of the dataset in the local cache, after a download if needed.

    Raises:
        DataError: The name is malformed, the dataset or split does not exist, or the Hub is not reachable.
    """
    return tuple(Path(file["filename"]) for file in _load_hub(source).cache_files)


def stream_hub(source: str, images: EmbeddedImageStore) -> Iterator[Record]:
    """Yield all rows, without an id."""
    for table in _load_hub(source).with_format("arrow").iter(batch_size=ARROW_ROWS):
        for row in plain_rows(table, images):
            yield None, row, None


def _load_hub(source: str) -> Any:
    found = _NAME.fullmatch(source)
    if found is None:
        rule = "the name of a Hub dataset must be hub:owner/name or hub:owner/name#split"
        raise DataError("data.hub_name_malformed", rule, value=source, remedy="Correct the name.")
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(found["name"], split=found["split"] or "train")
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            "data.hub_not_loaded",
            "the Hub dataset must be available",
            place=source,
            value=reason,
            remedy="Check name, split and network (HF_HUB_OFFLINE), or name a local file.",
        ) from error
