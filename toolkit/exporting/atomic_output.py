"""Write output folders atomically: check the disk first, rename complete folders, and never replace foreign files."""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from toolkit.errors import ModelError, RunError, warn
from toolkit.exporting.results import FormatExport
from toolkit.models.llamacpp import max_bytes
from toolkit.models.loading import precision_of
from toolkit.models.lora import is_adapter
from toolkit.models.model_paths import model_source
from toolkit.recipe import Model
from toolkit.runfolder import flush_folder, free_name, from_json, read_json, remove_tree, require_writable, write_json
from toolkit.runfolder.manifest import digest_file, listed_files, whole_digest, write_manifest

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
        require_writable(self.target.parent)
        for left in filter(_exists, (self.partial, self.differs, self.old)):
            if self.begun:
                _remove(left)
            else:
                left.rename(free_name(left))

    def seal(self) -> str:
        """Write the manifest of the written folder, before its model card, and return the folder's digest."""
        write_manifest(self.partial)
        return digest_of(self.partial)

    def commit(self) -> None:
        """Flush the written folder to disk, and give it its final name by renames only."""
        flush_folder(self.partial)
        if self.target.exists() and self.own:
            self.target.replace(self.old)
        elif self.target.exists():
            new = free_name(self.target)
            self.target.rename(new)
            rule = f"an export that was changed, or that this run did not write, is now {new.name}"
            warn("export.changed_renamed", rule, place=self.target)
        self.partial.replace(self.target)
        if _exists(self.old):
            _remove(self.old)

    def _beside(self, end: str) -> Path:
        return self.target.with_name(f"{self.target.name}.{end}")


@dataclass(frozen=True, slots=True)
class WrittenFolders:
    """The folders outside a run that its exports wrote. ``file`` inside the run has path -> export."""

    file: Path

    def digests(self, target: Path) -> set[str]:
        """Return the digests of the last export to ``target`` and of the one that it replaced."""
        known = self._known().get(str(target), {})
        return {digest for name in ("digest", "replaced") if (digest := known.get(name))}

    def has(self, target: Path) -> bool:
        """Return whether this run started to write ``target`` before."""
        return str(target) in self._known()

    def begin(self, target: Path) -> None:
        """Record that ``target`` and its temporary names are being written."""
        if not self.has(target):
            self._save(target, {})

    def add(self, output: OutputFolder, export: FormatExport) -> None:
        """Record an export before ``commit`` gives its folder the final name, and the digest of the folder it replaces.

        A kill can come between the two.
        """
        target = output.target
        if not self._is_inside(target):
            replaced = digest_of(target) if output.own and target.is_dir() else None
            self._save(target, {**asdict(export), "replaced": replaced})

    def _save(self, target: Path, export: dict[str, Any]) -> None:
        """Save the export in a folder, unless it is inside the run."""
        if not self._is_inside(target):
            write_json(self.file, {**self._known(), str(target): export})

    def _is_inside(self, target: Path) -> bool:
        return target.is_relative_to(self.file.parent)

    def _known(self) -> dict[str, dict[str, Any]]:
        """Return path -> export. A damaged file names no folder, so that no folder counts as this run's."""
        try:
            return from_json(dict[str, dict[str, Any]], read_json(self.file))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            rule = "the record of exports outside the run should be valid. It is ignored"
            remedy = "Add --force to rename an earlier export in --out."
            warn("export.written_damaged", rule, place=self.file, value=str(error), remedy=remedy)
            return {}


@dataclass(frozen=True, slots=True)
class Size:
    """The number of parameters on disk, and their size in bytes."""

    values: int
    bytes: int


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


def format_bytes(name: str, weights: Path, model: Model, quants: Sequence[str] = ()) -> int | None:
    """Return the size of an export in bytes. None: the base weights are not on this disk yet.

    Args:
        name: adapter, merged or gguf. gguf includes a temporary copy in 16 bits, but not the merged weights.
        weights: the run's trained weights.
        model: the section [model] of the recipe.
        quants: GGUF quantizations.
    """
    own = weights_size(weights)
    if name == "adapter" or own is None:
        return own.bytes if own else None
    whole = base_size(model) if is_adapter(weights) else own
    if whole is None:
        return None
    merged = {"16bit": 2 * whole.values, "32bit": 4 * whole.values}.get(precision_of(model, mergeable=True))
    if name == "merged":
        return whole.bytes if merged is None else merged
    return max_bytes(whole.values, quants)


def base_size(model: Model) -> Size | None:
    """Return the size of the base weights in their folder or the Hub cache, or None if they are missing."""
    source = model_source(model)
    if Path(source).is_dir():
        return weights_size(Path(source))
    try:
        return weights_size(Path(snapshot_download(source, revision=model.revision, local_files_only=True)))
    except LocalEntryNotFoundError:
        return None


def weights_size(folder: Path) -> Size | None:
    """Return the size of the safetensors files in a folder, or None if there are none.

    Raises:
        ModelError: a file is corrupt.
    """
    values, size = 0, 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as opened:
                values += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        except SafetensorError as error:
            rule, remedy = "the weights must be complete", "Restore the file."
            raise ModelError("model.weights_damaged", rule, place=file, value=str(error), remedy=remedy) from error
        size += file.stat().st_size
    return Size(values, size) if size else None


def megabytes(path: Path) -> float:
    """Return the size of a file, or of all files below a folder, in MB."""
    files = path.rglob("*") if path.is_dir() else [path]
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 2)


def digest_of(folder: Path) -> str:
    """Return a digest of all files below ``folder`` except manifest and model card, which its owner may edit.

    It is one of the files' names, sizes and SHA-256, so an unchanged file is read once in a process.
    """
    return whole_digest({name: digest_file(folder / name) for name in listed_files(folder)})


def _exists(path: Path) -> bool:
    """Return whether a file, folder or link has this name, even a broken link."""
    return path.is_symlink() or path.exists()


def _remove(path: Path) -> None:
    """Remove a folder, or a link without its target.

    Raises:
        RunError: it cannot be removed, so that old and new files would be mixed.
    """
    try:
        remove_tree(path)
    except OSError as error:
        raise RunError(
            "export.leftover_not_removable",
            "files of an earlier export must be removable",
            place=path,
            value=error.strerror or str(error),
            remedy="Remove them by hand.",
        ) from error


def _reject_foreign(output: OutputFolder) -> None:
    target = output.target
    if target.is_symlink() and not target.exists():
        raise RunError(
            "export.target_broken_link",
            "the target must be a folder, not a broken link",
            place=target,
            remedy="Remove the link.",
        )
    beside = [] if output.begun or output.force else [*filter(_exists, (output.partial, output.differs, output.old))]
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
            remedy="Move the file away, or choose another --out.",
        )
    if target.is_dir() and not output.own and not output.force and any(target.iterdir()):
        raise RunError(
            "export.target_exists",
            "the target must not exist unless this run's export wrote it",
            place=target,
            remedy="Choose another --out, or add --force to rename it to NAME.old-1.",
        )


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  # keeps links, because the disk is that of their target
    return folder if folder.exists() else _existing(folder.parent)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
