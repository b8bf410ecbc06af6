"""Write output folders atomically: check the disk first, rename complete folders, and never replace foreign files."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import RunError
from toolkit.runfolder import Record, flush_folder, read_json, write_json

MARGIN = 1.05
"""Factor of the size of the weights, for headers and a larger tokenizer."""
EXTRA_BYTES = 64_000_000
"""Bytes of the other files: tokenizer, processor, model card."""


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The final folder of one format, and the temporary names beside it.

    Attributes:
        target: the final folder.
        own: the run wrote this folder before, so a new export may replace it.
        begun: the run started to write here before, so the temporary names are its own too.
        force: rename a foreign folder to ``NAME.old-1`` instead of raising an error.
    """

    target: Path
    own: bool = True
    begun: bool = True
    force: bool = False

    @property
    def partial(self) -> Path:
        """Return the folder while it is written."""
        return self._beside("partial")

    @property
    def differs(self) -> Path:
        """Return the folder of an export that failed verification."""
        return self._beside("differs")

    @property
    def old(self) -> Path:
        """Return the name of the earlier export between two renames."""
        return self._beside("old")

    def prepare(self) -> None:
        """Check that the folder can be written, and remove files of an interrupted export.

        If a rename was interrupted, the earlier export gets its name back.

        Raises:
            RunError: a foreign folder or a file has one of the names, or the parent folder is not writable.
        """
        if self.begun and _exists(self.old) and not _exists(self.target):
            self.old.replace(self.target)
        _reject_foreign(self)
        _require_writable(self.target.parent)
        for left in filter(_exists, (self.partial, self.differs, self.old)):
            if self.begun:
                _remove(left)
            else:
                left.rename(free_name(left))

    def commit(self) -> None:
        """Flush the written folder to disk, and give it its final name by renames only."""
        flush_folder(self.partial)
        if self.target.exists() and self.own:
            self.target.replace(self.old)
        elif self.target.exists():
            self.target.rename(free_name(self.target))
        self.partial.replace(self.target)
        if _exists(self.old):
            _remove(self.old)

    def _beside(self, end: str) -> Path:
        return self.target.with_name(f"{self.target.name}.{end}")


@dataclass(frozen=True, slots=True)
class WrittenFolders:
    """The folders outside a run that its exports wrote. ``file`` inside the run has path -> record."""

    file: Path

    def digest(self, target: Path) -> str | None:
        """Return the digest of what this run wrote to ``target``, or None."""
        digest: str | None = self._known().get(str(target), {}).get("digest")
        return digest

    def has(self, target: Path) -> bool:
        """Return whether this run started to write ``target`` before."""
        return str(target) in self._known()

    def begin(self, target: Path) -> None:
        """Record that ``target`` and its temporary names are being written."""
        if not self.has(target):
            self.add(target, {})

    def add(self, target: Path, record: Record) -> None:
        """Save the record of a folder, unless it is inside the run."""
        if not target.is_relative_to(self.file.parent):
            write_json(self.file, {**self._known(), str(target): record})

    def _known(self) -> dict[str, Record]:
        return read_json(self.file) if self.file.is_file() else {}


def require_disk_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk has space for the weights, with a margin.

    Args:
        folder: the folder to write to. It need not exist.
        needed: size of the weights in bytes.
        what: the operation, for the error.

    Raises:
        RunError: the free space is too small.
    """
    wanted, free = round(MARGIN * needed) + EXTRA_BYTES, shutil.disk_usage(_existing(folder)).free
    if wanted > free:
        raise RunError(
            "export.disk_full",
            f"{what} needs {_gigabytes(wanted)} of free disk space",
            place=folder,
            value=_gigabytes(free),
            remedy="Free disk space, export fewer formats, or choose another disk with --out.",
        )


def free_name(path: Path) -> Path:
    """Return ``NAME.old-1`` beside ``path``, or the next free number."""
    number = 1
    while path.with_name(f"{path.name}.old-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.old-{number}")


def _exists(path: Path) -> bool:
    """Return whether a file, folder or link has this name, even a broken link."""
    return path.is_symlink() or path.exists()


def _remove(path: Path) -> None:
    """Remove a folder, or a link without its target.

    Raises:
        RunError: it cannot be removed, so that old and new files would be mixed.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        raise RunError(
            "export.leftover_not_removable",
            "files of an earlier export must be removable",
            place=path,
            remedy="Remove them by hand.",
        )


def _reject_foreign(place: OutputFolder) -> None:
    target = place.target
    if target.is_symlink() and not target.exists():
        raise RunError(
            "export.target_broken_link",
            "the target must be a folder, not a broken link",
            place=target,
            remedy="Remove the link.",
        )
    beside = [] if place.begun or place.force else [*filter(_exists, (place.partial, place.differs, place.old))]
    if beside:
        raise RunError(
            "export.temporary_name_taken",
            "the export needs this name for temporary files, but this run's export did not write it",
            place=beside[0],
            remedy="Choose another --out, or add --force to rename it to NAME.old-1.",
        )
    if target.exists() and not target.is_dir():
        raise RunError(
            "export.target_is_file",
            "the target must be a folder, not a file",
            place=target,
            remedy="Choose another --out.",
        )
    if target.is_dir() and not place.own and not place.force and any(target.iterdir()):
        raise RunError(
            "export.target_exists",
            "the target must not exist unless this run's export wrote it",
            place=target,
            remedy="Choose another --out, or add --force to rename it to NAME.old-1.",
        )


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            "export.target_not_writable",
            "the folder must be writable",
            place=folder,
            value=error.strerror or str(error),
            remedy="Choose another folder with --out.",
        ) from error


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  # keeps links, because the disk is that of their target
    return folder if folder.exists() else _existing(folder.parent)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
