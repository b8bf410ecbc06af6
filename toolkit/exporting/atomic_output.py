"""Where an export stands: nothing of others is replaced, nothing half written has the final name, room comes first."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import RunError
from toolkit.runfolder import Record, flush_folder, read_json, write_json

MARGIN = 1.05
"""Of the weights' own size: headers, and a tokenizer that grew."""
BESIDE = 64_000_000
"""Bytes of what stands beside the weights: tokenizer, processor, card."""


@dataclass(frozen=True, slots=True)
class Place:
    """The final folder of one form, and the names beside it that an export uses on its way there.

    ``own``: the run has written this folder before, so a new export may take its place. ``begun``: the run has begun to
    write here before, so what has the names beside it is its own too. ``force``: a folder that is not its own is
    renamed to ``NAME.old-1`` instead of being refused.
    """

    target: Path
    own: bool = True
    begun: bool = True
    force: bool = False

    @property
    def partial(self) -> Path:
        """What is being written."""
        return self._beside("partial")

    @property
    def differs(self) -> Path:
        """What was written and did not pass."""
        return self._beside("differs")

    @property
    def old(self) -> Path:
        """The run's own earlier export, for the moment between two renames."""
        return self._beside("old")

    def take(self) -> None:
        """See that the place can be taken, and clear away what an export that was interrupted has left.

        An own earlier export whose rename was interrupted gets its name back.

        Raises:
            RunError: another's folder or a file stands there or under a name beside it, or nothing can be written.
        """
        if self.begun and _is_there(self.old) and not _is_there(self.target):
            self.old.replace(self.target)
        _refuse_foreign(self)
        _refuse_read_only(self.target.parent)
        for left in filter(_is_there, (self.partial, self.differs, self.old)):
            if self.begun:
                _remove(left)
            else:
                left.rename(free_name(left))

    def put(self) -> None:
        """Put what was written and has passed under its final name, by renames alone; it is on disk before."""
        flush_folder(self.partial)
        if self.target.exists() and self.own:
            self.target.replace(self.old)
        elif self.target.exists():
            self.target.rename(free_name(self.target))
        self.partial.replace(self.target)
        if _is_there(self.old):
            _remove(self.old)

    def _beside(self, end: str) -> Path:
        return self.target.with_name(f"{self.target.name}.{end}")


@dataclass(frozen=True, slots=True)
class Written:
    """The folders outside a run that its exports have written: path -> their records, in ``file`` inside the run."""

    file: Path

    def digest(self, target: Path) -> str | None:
        """The digest of what this run left in ``target``; None: it wrote nothing there."""
        digest: str | None = self._known().get(str(target), {}).get("digest")
        return digest

    def has(self, target: Path) -> bool:
        """Whether this run has begun to write ``target`` before."""
        return str(target) in self._known()

    def begin(self, target: Path) -> None:
        """Remember that ``target`` is written from now on, and the names beside it."""
        if not self.has(target):
            self.add(target, {})

    def add(self, target: Path, record: Record) -> None:
        """Remember a folder by the export's record of it, unless it lies beside ``file``."""
        if not target.is_relative_to(self.file.parent):
            write_json(self.file, {**self._known(), str(target): record})

    def _known(self) -> dict[str, Record]:
        return read_json(self.file) if self.file.is_file() else {}


def refuse_small_disk(folder: Path, needed: int, what: str) -> None:
    """See that so many bytes of weights fit, with a margin.

    Raises:
        RunError: they do not.
    """
    wanted, free = round(MARGIN * needed) + BESIDE, shutil.disk_usage(_existing(folder)).free
    if wanted > free:
        raise RunError(
            "export.disk_full",
            f"{what} needs {_gigabytes(wanted)} of free disk space",
            place=folder,
            value=_gigabytes(free),
            remedy="Free disk space, export fewer formats, or choose another disk with --out.",
        )


def free_name(path: Path) -> Path:
    """``NAME.old-1`` beside ``path``, or -2, ... where that is taken."""
    number = 1
    while path.with_name(f"{path.name}.old-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.old-{number}")


def _is_there(path: Path) -> bool:
    """Whether anything has this name, a link that leads nowhere among it."""
    return path.is_symlink() or path.exists()


def _remove(path: Path) -> None:
    """Take a folder away; of a link the link alone.

    Raises:
        RunError: it cannot be taken away; files of before would be mixed with new ones.
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


def _refuse_foreign(place: Place) -> None:
    target = place.target
    if target.is_symlink() and not target.exists():
        raise RunError(
            "export.target_broken_link",
            "the target must be a folder, not a broken link",
            place=target,
            remedy="Remove the link.",
        )
    beside = [] if place.begun or place.force else [*filter(_is_there, (place.partial, place.differs, place.old))]
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


def _refuse_read_only(folder: Path) -> None:
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
    """The folder, or the nearest one above it that is there."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  # a link is kept: the disk is the one that it leads to
    return folder if folder.exists() else _existing(folder.parent)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
