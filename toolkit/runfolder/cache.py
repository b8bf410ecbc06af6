"""The folder for caches: its content, its size limit, and the removal of what killed processes left.

Files are recognized by their names, because the user may choose a folder with other files. Those are never touched.
"""

import logging
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.runfolder.process import is_running

log = logging.getLogger(__name__)

LIMIT = "TOOLKIT_CACHE_GB"
"""Environment variable with the largest size of the cache in GB (10^9 bytes)."""

HOUR, DAY = 3600, 24 * 3600
TEMPORARY = re.compile(r"\.new-(?P<new>\d+)-\w+|.+\.(?P<other>\d+)(\.partial)?")
"""Names of files that are being written. The group is the id of the process."""

_HASH = r"[0-9a-f]{16}-[0-9a-f]{16}"
_PLAN = r"[a-z]+-[0-9a-f]{32}\.json"
OWN_FILES: Mapping[str, re.Pattern[str]] = {
    "images": re.compile(
        r"[0-9a-f]{16}/[0-9a-f]{2}/([0-9a-f]{32}-[\w-]+|\.new-\w+(-\w+)?)|files/[0-9a-f]{2}/([0-9a-f]{32}|\.new-\w+(-\w+)?)"
    ),
    "rows": re.compile(
        rf"({_HASH}\.(arrow|json)|{_HASH}-[0-9a-f]{{16}}\.npz)(\.\d+)?"
        rf"|images/[0-9a-f]{{2}}/[0-9a-f]{{40}}(\.[a-z]{{3}})?(\.\d+)?"
        rf"|\.{_HASH}(\.(arrow|json)|-[0-9a-f]{{16}}\.npz)\.\d+\.partial"
    ),
    "plans": re.compile(rf"{_PLAN}|\.{_PLAN}\.\d+\.partial"),
    "imagegen": re.compile(r"\.?tiny-pipeline-\d+(\.partial)?/.+"),
}
"""Kind, which is a folder of the cache -> the paths of its files in the folder."""

CONTENTS: Mapping[str, str] = {
    "images": "resized images",
    "rows": "indices of rows, and images from tables",
    "plans": "token counts, and checks of architectures",
    "imagegen": "the tiny pipeline of dry runs",
}


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return ``$TOOLKIT_CACHE``, or ``~/.cache/toolkit`` if the variable is not set.

    Raises:
        ToolkitError: the user has no home directory, as in a container without HOME.
    """
    if folder := environment.get("TOOLKIT_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "toolkit"
    except RuntimeError as error:
        raise ToolkitError(
            "run.cache_folder_unknown",
            "the cache folder must be known, but this user has no home directory",
            place="cache",
            remedy="Set TOOLKIT_CACHE or HOME.",
        ) from error


def make_cache_folder(folder: Path) -> None:
    """Create a folder in the cache. Others cannot look into a cache that is created here, because it has rows.

    Raises:
        OSError: it cannot be created.
    """
    with suppress(FileExistsError, ToolkitError):
        root = cache_folder()
        if folder.is_relative_to(root):
            root.parent.mkdir(parents=True, exist_ok=True)
            root.mkdir(mode=0o700)
    folder.mkdir(parents=True, exist_ok=True)


def cache_limit(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the largest size of the cache in bytes. None: there is no limit.

    Raises:
        ToolkitError: the variable is not a number above 0.
    """
    text = environment.get(LIMIT, "")
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) == 0:
        remedy = f"Set {LIMIT}=50, or unset it for no limit."
        rule = "must be a number of GB above 0"
        raise ToolkitError("run.cache_limit_invalid", rule, place=LIMIT, value=text, remedy=remedy)
    return int(float(text) * 1e9)


@dataclass(frozen=True, slots=True)
class CacheFile:
    """One file of the cache. ``used`` is when it was last written or read, in seconds since the epoch."""

    kind: str
    path: Path
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class CacheKind:
    """The files of one kind: their number and size in bytes."""

    kind: str
    content: str
    files: int
    size: int


def cache_files(folder: Path, kinds: Collection[str] = tuple(OWN_FILES)) -> Iterator[CacheFile]:
    """Yield the cache's own files of these kinds. Links are not followed."""
    for kind in kinds:
        top = folder / kind
        for parent, _, names in os.walk(top):
            for name in names:
                path = Path(parent, name)
                if OWN_FILES[kind].fullmatch(path.relative_to(top).as_posix()) and not path.is_symlink():
                    with suppress(FileNotFoundError):  # another process removed it
                        facts = path.stat()
                        yield CacheFile(kind, path, facts.st_size, facts.st_mtime)


def cache_sizes(folder: Path) -> list[CacheKind]:
    """Return number and size of the files of each kind."""
    files = list(cache_files(folder))
    return [
        CacheKind(kind, content, sum(one.kind == kind for one in files), sum(o.size for o in files if o.kind == kind))
        for kind, content in CONTENTS.items()
    ]


def clear_cache(folder: Path, kinds: Collection[str]) -> list[CacheKind]:
    """Remove the cache's own files of these kinds, and their empty folders. Return what was removed.

    Raises:
        OSError: a file cannot be removed.
    """
    removed: dict[str, list[int]] = {kind: [] for kind in kinds}
    for one in [*cache_files(folder, kinds)]:
        one.path.unlink(missing_ok=True)
        removed[one.kind].append(one.size)
    for kind in kinds:
        for parent, _, _ in os.walk(folder / kind, topdown=False):
            with suppress(OSError):  # it has other files, or does not exist
                Path(parent).rmdir()
    return [CacheKind(kind, CONTENTS[kind], len(sizes), sum(sizes)) for kind, sizes in removed.items()]


def mark_used(path: Path) -> None:
    """Note that a file of the cache was read. The times of the disk may be off (noatime)."""
    with suppress(OSError):
        os.utime(path)


def tidy_cache(folder: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Remove temporary files of killed processes, and the least recently used files above the limit.

    Without a limit this is done once a day, because it lists every file. Files that were used within a day are kept,
    because a running process may need them. Images from tables, and the indices that name them, are kept as well: only
    ``clear_cache`` knows that no index needs them.

    Raises:
        ToolkitError: as ``cache_limit``.
    """
    limit, stamp = cache_limit(environment), folder / ".tidied"
    with suppress(OSError):  # the cache is missing or not writable
        if limit is None and stamp.exists() and time.time() - stamp.stat().st_mtime < DAY:
            return
        stamp.touch()
        files = list(cache_files(folder))
        _remove([one for one in files if _is_left_over(one)], "unfinished")
        if limit is not None:
            _remove(list(_above(limit, files)), f"least recently used (more than {LIMIT})")


def _above(limit: int, files: list[CacheFile]) -> Iterator[CacheFile]:
    size, now = sum(one.size for one in files), time.time()
    for one in sorted(files, key=lambda one: one.used):
        if size <= limit or now - one.used < DAY:
            return
        if _is_replaceable(one):
            size -= one.size
            yield one


def _is_replaceable(one: CacheFile) -> bool:
    """Return whether a file is made again when it is missing."""
    if one.kind == "rows":
        return one.path.parent.name == "rows" and not _names_embedded_images(one.path)
    return one.kind in ("images", "plans")


def _names_embedded_images(file: Path) -> bool:
    index = file.with_name("-".join(file.name.partition(".")[0].split("-")[:2]) + ".json")
    try:
        return '"has_embedded_images": true' in index.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _is_left_over(one: CacheFile) -> bool:
    """Return whether a file is one that a killed process was writing.

    A process of another machine may use the same disk, so the file must be an hour old too.
    """
    found = TEMPORARY.fullmatch(one.path.name)
    if found is None or time.time() - one.used < HOUR:
        return False
    return not is_running(int(found["new"] or found["other"]))


def _remove(files: list[CacheFile], reason: str) -> None:
    if files:
        for one in files:
            one.path.unlink(missing_ok=True)
        log.info("cache: removed %d %s files of %.2f GB", len(files), reason, sum(one.size for one in files) / 1e9)
