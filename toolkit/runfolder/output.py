"""Files that commands write for the user: complete or absent, and no file of the user's is replaced.

A folder has a record (``WRITTEN``) with the digest of each file that a command wrote. A later call replaces and
removes only files that still have their digest. Other files are an error, or are renamed with ``force``.
"""

import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import RunError
from toolkit.identifiers import PRIVATE
from toolkit.runfolder.files import flush_folder, read_saved, remove_temporaries, sync_folder, write_json, write_text
from toolkit.runfolder.process import is_running

WRITTEN = ".written.json"
"""File with the digests of the other files: name -> digests that a command wrote or is about to write."""

STAGING = ".partial-"
"""Prefix of folders whose files are not complete."""

FORCE = "Choose another --out, or add --force to rename them to NAME.old-1."
SHOWN = 5
BLOCK = 1 << 20
"""Bytes that are read at once for a digest."""

Written = dict[str, list[str]]


def free_name(path: Path) -> Path:
    """Return ``NAME.old-1`` beside ``path``, or the next free number."""
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}.old-{number}")):
        number += 1
    return path.with_name(f"{path.name}.old-{number}")


def check_free(path: Path, *, force: bool = False) -> None:
    """Check before the work that ``claim_file`` can make a file name free, and create its folder.

    Raises:
        RunError: the file exists without ``force``, or its folder cannot be written.
    """
    if os.path.lexists(path) and not force:
        rule, remedy = "the file must not exist", "Choose another --out, or add --force to rename it to NAME.old-1."
        raise RunError("output.file_exists", rule, place=path, remedy=remedy)
    require_writable(path.absolute().parent)


def has_text(path: Path, text: str) -> bool:
    """Return whether a file has exactly this text, as a killed command leaves it whose same call is repeated."""
    try:
        return path.is_file() and path.read_bytes() == text.encode("utf-8", "surrogatepass")
    except OSError:
        return False


def claim_file(path: Path, *, force: bool = False) -> None:
    """Make a file name free: rename an existing file to ``NAME.old-1`` with ``force``. Create its folder.

    Temporary files of killed processes, which ``write_text`` would have renamed, are removed.

    Raises:
        RunError: as in ``check_free``.
    """
    check_free(path, force=force)
    remove_temporaries(path)
    if os.path.lexists(path):
        path.rename(free_name(path))


def require_writable(folder: Path) -> None:
    """Create a folder and check that files can be written to it.

    Raises:
        RunError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            "output.folder_not_writable",
            "the output folder must be a folder that can be created and written",
            place=folder,
            value=error.strerror or str(error),
            remedy="Choose another --out, or change its permissions.",
        ) from error


def check_output(folder: Path, names: Iterable[str], *, force: bool = False) -> None:
    """Check before the work that files with these names may be written to a folder, which need not exist.

    Raises:
        RunError: the folder cannot be written, or has other files of these names and ``force`` is not set.
    """
    existed = folder.is_dir()
    require_writable(folder)
    _reject(folder, [] if force else _foreign(folder, names, _read_written(folder)))
    if not existed:
        folder.rmdir()


@contextmanager
def output_files(folder: Path, *, force: bool = False, private: bool = False) -> Iterator[Path]:
    """Open a hidden folder whose files move to ``folder`` if the block succeeds, and are removed otherwise.

    A new folder gets its name by one rename. In an existing folder, the files of the last call are removed first, so
    that files of two calls are never mixed. Other files in the folder stay.

    Args:
        folder: the output folder, created if it is missing.
        force: rename files that no earlier call wrote, or that were changed since, to ``NAME.old-1``.
        private: only the owner may read the files, and a new folder, because they have rows.

    Raises:
        RunError: the folder cannot be written, or such files exist and ``force`` is not set.
    """
    folder = folder.absolute()
    new = not folder.exists()
    require_writable(folder.parent if new else folder)
    if not (new or force):
        known = _read_written(folder)
        _reject(folder, _foreign(folder, known, known))
    parent, prefix = (folder.parent, f".{folder.name}{STAGING}") if new else (folder, STAGING)
    # A killed process may have begun before the folder existed, or after.
    hidden = folder.parent.glob(f"{glob.escape(f'.{folder.name}{STAGING}')}*")
    for left in (*hidden, *folder.glob(f"{STAGING}*")):
        process = left.name.rpartition("-")[2]
        if process.isdecimal() and not is_running(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(f".{WRITTEN}.*.partial"):
        left.unlink()
    staging = parent / f"{prefix}{os.getpid()}"
    staging.mkdir(mode=0o700 if private else 0o777)
    try:
        yield staging
        for name in _names(staging) if private else ():
            (staging / name).chmod(PRIVATE)
        digests = {name: [_digest(staging / name)] for name in _names(staging)}
        flush_folder(staging)
        if new:
            write_json(staging / WRITTEN, digests)
            staging.rename(folder)
            sync_folder(folder.parent)
        else:
            _move(staging, folder, digests, force=force)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def add_output(folder: Path, name: str, text: str, *, force: bool = False, private: bool = False) -> Path:
    """Write one more file to an output folder, whose other files stay. ``private``: only the owner may read it.

    Raises:
        RunError: the folder cannot be written, or has another file of this name and ``force`` is not set.
    """
    require_writable(folder)
    known = _read_written(folder)
    _make_free(folder, [name], known, force=force)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    write_json(folder / WRITTEN, {**known, name: [digest]})
    write_text(folder / name, text, private=private)
    return folder / name


def _digest(path: Path) -> str:
    """Return a digest of the file's content."""
    whole = hashlib.blake2b(digest_size=16)
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            whole.update(block)
    return whole.hexdigest()


def _move(staging: Path, folder: Path, digests: Written, *, force: bool) -> None:
    known = _read_written(folder)
    _make_free(folder, {*digests, *known}, known, force=force)
    # Until the end the record has the digests of both calls, so that a killed process leaves no foreign file.
    both = {name: [*known.get(name, ()), *digests.get(name, ())] for name in {*known, *digests}}
    write_json(folder / WRITTEN, both)
    for name in known:
        (folder / name).unlink(missing_ok=True)
    for name in digests:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(folder / name)
    for parent in sorted({(folder / name).parent for name in known}, reverse=True):
        if parent != folder and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    sync_folder(folder)
    write_json(folder / WRITTEN, digests)


def _make_free(folder: Path, names: Iterable[str], known: Mapping[str, list[str]], *, force: bool) -> None:
    found = _foreign(folder, names, known)
    if not force:
        _reject(folder, found)
    for path in found:
        path.rename(free_name(path))


def _reject(folder: Path, found: list[Path]) -> None:
    if found:
        listed = ", ".join(path.relative_to(folder).as_posix() for path in found[:SHOWN])
        more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        rule = "files of these names must be absent, or unchanged since this command wrote them"
        raise RunError("output.files_exist", rule, place=folder, value=f"{listed}{more}", remedy=FORCE)


def _foreign(folder: Path, names: Iterable[str], known: Mapping[str, list[str]]) -> list[Path]:
    """Return the paths among these names, and files in place of their folders, that no call wrote."""
    found: dict[Path, None] = {}
    for name in sorted(names):
        path = folder / name
        blocked = [
            one for one in path.parents if one.is_relative_to(folder) and os.path.lexists(one) and not one.is_dir()
        ]
        if blocked:
            found[blocked[0]] = None
        elif os.path.lexists(path) and not _is_own(path, known.get(name, ())):
            found[path] = None
    return list(found)


def _is_own(path: Path, digests: Iterable[str]) -> bool:
    return path.is_file() and not path.is_symlink() and _digest(path) in digests


def _names(folder: Path) -> list[str]:
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in names if name != WRITTEN)


def _read_written(folder: Path) -> Written:
    """Return the record. A missing or damaged one names no file, so that no file counts as this command's."""
    found = read_saved(folder / WRITTEN)
    if not isinstance(found, dict):
        return {}
    inside = {
        name: value for name, value in found.items() if not (Path(name).is_absolute() or ".." in Path(name).parts)
    }
    return {name: [str(one) for one in value] for name, value in inside.items() if isinstance(value, list)}
