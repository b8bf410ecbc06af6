"""Manifests of folders with weights: size and SHA-256 of each file, so that damage is found before a file is used.

A manifest is written with the folder, before the folder gets its name. A file is hashed at least once in each process
that uses it, since a change can keep a file's size and time. In one process, an unchanged file is hashed once.
"""

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from toolkit.errors import RunError
from toolkit.runfolder.files import from_json, read_json, write_json

MANIFEST = "manifest.json"
"""Name of a manifest: path of each other file below its folder -> size and digest."""
CARD = "README.md"
"""File of the model card. Its owner may edit it, so no manifest has it."""

RESTORE_WEIGHTS = (
    "Restore the file, or start over with --fresh (the old folder is kept under another name). A new run can start "
    "from other weights with --set run.name=NEW --set model.adapter=FOLDER."
)

_RECENT_NS = 100_000_000
"""A file may change again within the resolution of its time. The digest of so recent a file is not remembered."""

_known: dict[tuple[str, int, int, int, int, int], str] = {}
"""(name, device, inode, size, times of modification and change) -> SHA-256. The folder's name may change."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a manifest has about a file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that differs from its manifest, and how."""

    file: Path
    reason: str


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files below a folder, except its model card. The files must be complete."""
    write_json(folder / MANIFEST, {name: asdict(digest_file(folder / name)) for name in listed_files(folder)})


def listed_files(folder: Path) -> list[str]:
    """Return the sorted paths below ``folder`` that a manifest has."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in names if name not in (CARD, MANIFEST))


def whole_digest(files: Mapping[str, FileDigest]) -> str:
    """Return one digest of the names, sizes and contents of files."""
    lines = (f"{name}\0{found.size}\0{found.sha256}\0" for name, found in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def digest_file(path: Path) -> FileDigest:
    """Return size and SHA-256 of a file, which is read once in this process while it is unchanged.

    Raises:
        OSError: the file cannot be read.
    """
    facts, begun = path.stat(), time.time_ns()
    key = (path.name, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    found = _known.get(key)
    if found is None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if max(facts.st_mtime_ns, facts.st_ctime_ns) < begun - _RECENT_NS:
            _known[key] = found
    return FileDigest(facts.st_size, found)


def read_manifest(folder: Path) -> dict[str, FileDigest]:
    """Return the manifest of a folder.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is damaged, or has no digests, as those of earlier versions.
    """
    found = from_json(dict[str, FileDigest], read_json(folder / MANIFEST))
    if not found:
        raise ValueError("it has no files")
    for name in found:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"{name!r} is outside the folder")
    return found


def find_damage(folder: Path, names: Collection[str] | None = None, digest: str | None = None) -> Damage | None:
    """Return the first file that differs from the manifest of its folder, or None.

    Files that the manifest does not have are ignored, since users may add files.

    Args:
        folder: a folder with a manifest.
        names: the files to compare. None: all files of the manifest.
        digest: that of ``whole_digest`` which the manifest must have. None: any.
    """
    try:
        known = read_manifest(folder)
    except FileNotFoundError:
        return Damage(folder / MANIFEST, "it is missing")
    except (OSError, ValueError) as error:
        return Damage(folder / MANIFEST, f"it cannot be read: {error}")
    if digest is not None and whole_digest(known) != digest:
        return Damage(folder / MANIFEST, "it is of other files than those on record")
    for name in known if names is None else names:
        if name not in known:
            return Damage(folder / name, f"{MANIFEST} does not have it")
        if reason := _difference(folder / name, known[name]):
            return Damage(folder / name, reason)
    return None


def is_as_written(folder: Path) -> bool:
    """Return whether a folder has exactly the files of its manifest, except its model card."""
    return find_damage(folder) is None and read_manifest(folder).keys() == set(listed_files(folder))


def check_weights(
    weights: Path, *, own: bool = False, digest: str | None = None, remedy: str = RESTORE_WEIGHTS
) -> None:
    """Check that weights are as they were written, if their folder has a manifest.

    Args:
        weights: a folder, or a GGUF file with its projector beside it.
        own: a run of this version wrote them, so the manifest must exist. Otherwise, weights of others have none, or a
            file of this name with other content.
        digest: as for ``find_damage``.
        remedy: how to fix them.

    Raises:
        RunError: a file is missing, or differs from its manifest.
    """
    is_file = weights.is_file()
    folder = weights.parent if is_file else weights
    if not own and not _has_manifest(folder):
        return
    damage = find_damage(folder, _gguf_files(weights) if is_file else None, digest)
    if damage is not None:
        rule = "the file must be as the run wrote it"
        raise RunError("run.weights_damaged", rule, place=damage.file, value=damage.reason, remedy=remedy)


def _has_manifest(folder: Path) -> bool:
    """Return whether a folder has a manifest, whole or damaged, and not a JSON file of another program."""
    try:
        found = read_json(folder / MANIFEST)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    values = found.values() if isinstance(found, dict) else ()
    return any(isinstance(one, dict) and one.keys() == {"size", "sha256"} for one in values)


def _gguf_files(model: Path) -> list[str] | None:
    """Return the GGUF file and the projectors of its manifest. Other quantizations beside it are not read."""
    try:
        known = read_manifest(model.parent)
    except (OSError, ValueError):
        return None  # reported by the comparison
    return [model.name, *(name for name in known if name.startswith("mmproj"))] if model.name in known else []


def _difference(file: Path, known: FileDigest) -> str | None:
    try:
        if not file.is_file():  # a pipe or a device would never end
            return "it is missing"
        size = file.stat().st_size
        if size != known.size:
            return f"it has {size:,} bytes instead of {known.size:,}"
        return None if digest_file(file) == known else f"its {size:,} bytes differ from those written (SHA-256)"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
