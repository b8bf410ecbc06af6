"""Files of synthetic data. An existing file is complete, so an interrupted call can be repeated."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from toolkit.errors import DataError


def write_file(path: Path, content: bytes) -> Path:
    """Write a file atomically, and return it.

    Unlike ``runfolder``, nothing is flushed to disk: thousands of small images would wait for it, and all of them can
    be drawn again.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)
    return path


def write_image(path: Path, pixels: NDArray[Any], options: Sequence[int]) -> None:
    """Write an image atomically, in the format of its suffix. Colours are in OpenCV's order: blue, green, red.

    Raises:
        DataError: OpenCV cannot write this format.
    """
    done, encoded = cv2.imencode(path.suffix, pixels, options)
    if not done:
        raise DataError("synthetic.image_not_encoded", f"OpenCV must be able to write {path.suffix}", place=path)
    write_file(path, encoded.tobytes())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows with equal columns atomically as CSV, with a header and one line feed per row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_file(path, text.getvalue().encode())


def write_json(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write rows by id atomically as JSON."""
    return write_file(path, json.dumps(rows, indent=1).encode())
