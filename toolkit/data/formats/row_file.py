"""One file of rows, opened as bytes whether it is plain, compressed by gzip, or the only file of rows in a .zip."""

import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from toolkit.errors import DataError
from toolkit.identifiers import without_names

TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")

MAX_RATIO = 250
"""Largest ratio of decompressed to compressed bytes. Text of rows has about 10, and a decompression bomb 1,000."""
FREE_BYTES = 1 << 26
"""Decompressed bytes that are allowed whatever the ratio."""


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows. ``member`` is its name in a .zip."""

    path: Path
    suffix: str
    """Suffix of the uncompressed file, in lower case."""
    member: str = ""

    @property
    def place(self) -> str:
        """The file in messages."""
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    @property
    def stem(self) -> str:
        """The name without suffixes."""
        return Path(self.member or self.path.name.removesuffix(".gz")).stem

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the uncompressed content.

        Raises:
            DataError: The file cannot be read, is truncated, or is a decompression bomb. This also holds for errors
                while the content is read.
        """
        with blame(self.place):
            if self.member:
                with open_zip(self.path) as archive, archive.open(self.member) as stream:
                    yield cast(BinaryIO, stream)
            elif self.path.suffix.lower() == ".gz":
                with self.path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as stream:
                    yield cast(BinaryIO, io.BufferedReader(_Limited(cast(IO[bytes], stream), self.path)))
            else:
                with self.path.open("rb") as file:
                    yield file

    def head(self, size: int) -> bytes:
        """Return the first bytes of the uncompressed content."""
        with self.open() as stream:
            return stream.read(size)


def row_file(path: Path) -> RowFile | None:
    """Return the file of rows at a path, or None if the path has no suffix of a file of rows.

    Raises:
        DataError: A .zip is damaged or unsafe, or has several files of rows.
    """
    if not path.is_file():
        return None
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return _in_zip(path)
    inner = Path(path.stem).suffix.lower() if suffix == ".gz" else suffix
    known = TEXT_SUFFIXES if suffix == ".gz" else SUFFIXES
    return RowFile(path, inner) if inner in known else None


@contextmanager
def blame(place: str) -> Iterator[None]:
    """Report an error of reading as an error of this file, not of the folder that the index is written to."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
        rule, remedy = "the compressed file must be complete and valid", "Copy or download the file again."
        raise DataError(
            "data.archive_damaged", rule, place=place, value=without_names(str(error)), remedy=remedy
        ) from None
    except (OSError, NotImplementedError, RuntimeError) as error:  # an encrypted .zip is a RuntimeError
        rule, remedy = "the file must be readable", "Check the disk and the permissions, or copy the file again."
        raise DataError(
            "data.file_not_readable", rule, place=place, value=without_names(str(error)), remedy=remedy
        ) from error


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a .zip whose members are safe to read.

    Raises:
        DataError: It is damaged, a member has a path outside, or it is a decompression bomb.
    """
    with blame(str(path)), zipfile.ZipFile(path) as archive:
        for one in archive.infolist():
            if os.path.isabs(one.filename) or ".." in Path(one.filename.replace("\\", "/")).parts:  # noqa: PTH117
                rule, remedy = "no file in the .zip must have a path outside of it", "Pack the files again."
                raise DataError(
                    "data.archive_path_outside",
                    rule,
                    place=path,
                    value="path with .." if ".." in one.filename else "absolute path",
                    remedy=remedy,
                )
            _check_size(one.file_size, one.compress_size, path)
        yield archive


def _in_zip(path: Path) -> RowFile | None:
    with open_zip(path) as archive:
        names = [one.filename for one in archive.infolist() if not one.is_dir() and _is_shown(one.filename)]
    rows = [name for name in names if Path(name).suffix.lower() in TEXT_SUFFIXES]
    if len(rows) > 1:
        tables = [name for name in rows if Path(name).suffix.lower() != ".txt"]
        rows = tables if len(tables) == 1 else rows
    if len(rows) > 1:
        rule, remedy = "a .zip must have one file of rows", "Extract it, and name the folder or one of its files."
        raise DataError("data.archive_several_files", rule, place=path, value=rows[:5], remedy=remedy)
    return RowFile(path, Path(rows[0]).suffix.lower(), rows[0]) if rows else None


def _is_shown(name: str) -> bool:
    return not any(part.startswith((".", "_")) for part in Path(name).parts)


def _check_size(size: int, compressed: int, path: Path) -> None:
    if size > FREE_BYTES + MAX_RATIO * compressed:
        rule = f"a compressed file must expand to at most {MAX_RATIO} times its size"
        value = f"{size:,} bytes from {compressed:,}"
        raise DataError("data.archive_bomb", rule, place=path, value=value, remedy="Decompress it yourself.")


class _Limited(io.RawIOBase):
    """Decompressed bytes that are counted."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream, self._path = stream, path
        self._bytes, self._compressed = 0, path.stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        self._bytes += len(content)
        _check_size(self._bytes, self._compressed, self._path)
        buffer[: len(content)] = content
        return len(content)
