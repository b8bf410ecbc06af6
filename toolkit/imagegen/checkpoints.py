"""Checkpoints: ``checkpoints/<run timestamp>/epoch_<n>/``, each complete or absent. Only the newest ones are kept.

A file of tensors holds one dataclass, as plain values that ``torch.load(weights_only=True)`` accepts.

An epoch has ``{selector,policy,synthetic}_checkpoint.pt``, and its number counts through all stages. In stage 1
``synthetic`` only names the generator's base. In stage 2 it has the update of one method, and selector and policy are
those of that round. Frozen encoders and the base are never stored.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from toolkit.errors import RunError, warn
from toolkit.imagegen.generators.generator import BaseModel
from toolkit.imagegen.scorers.fitting import FittingState
from toolkit.imagegen.training.update_state import SavedUpdate
from toolkit.runfolder import RunFolder, flush_folder, from_json, remove_tree, sync_folder, write_text
from toolkit.runfolder.manifest import digest_file, find_damage, write_manifest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Content = TypeVar("Content")

SYNTHETIC = "synthetic_checkpoint.pt"
"""The generator's update: LoRA, optimizer, random states and round."""

SELECTOR, POLICY = "selector_checkpoint.pt", "policy_checkpoint.pt"
PARTS = (SELECTOR, POLICY, SYNTHETIC)
FOLDER = "checkpoints"

_EPOCH = re.compile(r"epoch_(\d+)")


@dataclass(frozen=True, slots=True, eq=False)
class ScorerCheckpoint:
    """The selector or the policy in an epoch. ``fitting`` is the state of its training in stage 1."""

    epoch: int
    stage: Literal[1, 2]
    model: dict[str, Tensor]
    fitting: FittingState | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GeneratorCheckpoint:
    """The generator in an epoch. In stage 1 it is the base, without an update.

    Attributes:
        epoch: number of the epoch.
        stage: 1 or 2.
        base: the base.
        arm: control, sft or ddpo.
        update: LoRA, optimizer and random states of the arm.
        progress: the arm's own dataclass of its rounds, as plain values.
    """

    epoch: int
    stage: Literal[1, 2]
    base: BaseModel
    arm: str | None = None
    update: SavedUpdate | None = None
    progress: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The epochs of one run.

    Attributes:
        folder: ``checkpoints/<run timestamp>``.
        keep_last: number of newest epochs that are kept, at least 1.
    """

    folder: Path
    keep_last: int

    def epochs(self) -> list[int]:
        """Return the numbers of the saved epochs in ascending order."""
        return sorted(_numbers(self.folder))

    def path(self, epoch: int) -> Path:
        """Return the folder of an epoch."""
        return self.folder / f"epoch_{epoch}"


def open_run_checkpoints(run: RunFolder, keep_last: int) -> Checkpoints:
    """Return the checkpoints of a run, below ``checkpoints/<timestamp>``."""
    return open_checkpoints(run.path / FOLDER, keep_last, datetime.now())


def last_epoch(checkpoints: Checkpoints) -> int:
    """Return the newest complete epoch, 0 before the first."""
    return newest_epoch(checkpoints, PARTS) or 0


def open_checkpoints(root: Path, keep_last: int, now: datetime) -> Checkpoints:
    """Return the run's checkpoints: those that exist below ``root``, or a new folder named by ``now``.

    A run has one timestamp, however often it is resumed. Parts that an interrupted save left are removed.

    Raises:
        RunError: several runs have checkpoints in ``root``.
    """
    existing = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if len(existing) > 1:
        raise RunError(
            "imagegen.checkpoint_folders_several",
            "a run must have one folder of checkpoints",
            place=root,
            value=[path.name for path in existing],
            remedy="Move the folders of other runs away.",
        )
    folder = existing[0] if existing else root / now.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder, keep_last)
    _recover(checkpoints)
    return checkpoints


def save_epoch(
    checkpoints: Checkpoints,
    epoch: int,
    parts: "Mapping[str, DataclassInstance]",
    write_files: Callable[[Path], None] | None = None,
) -> Path:
    """Save an epoch as a whole, then delete epochs beyond the newest ``keep_last``.

    Args:
        checkpoints: the checkpoints of the run.
        epoch: the number of the epoch. An epoch that exists is replaced.
        parts: file name to its content.
        write_files: writes further files into the folder that it gets, such as a generator's ``save_lora``.

    Returns:
        The epoch's folder.

    Raises:
        TypeError: a part holds what ``weights_only`` rejects, for example a NumPy number.
    """
    final = checkpoints.path(epoch)
    temporary, old = (checkpoints.folder / f".epoch_{epoch}.{suffix}" for suffix in ("partial", "old"))
    _remove((temporary, old))
    temporary.mkdir(parents=True)
    for name, content in parts.items():
        torch.save(to_plain(content), temporary / name)
        _check_loadable(temporary / name)
    if write_files is not None:
        write_files(temporary)
    flush_folder(temporary)
    write_manifest(temporary)
    if final.exists():  # A folder that is not empty cannot be replaced in one step.
        final.rename(old)
    temporary.rename(final)
    sync_folder(checkpoints.folder)
    # A later epoch is a damaged one that was skipped. It is replaced when training reaches its number.
    reached = [number for number in checkpoints.epochs() if number <= epoch]
    _remove([old, *(checkpoints.path(number) for number in reached[: -checkpoints.keep_last])])
    return final


def load_part(checkpoints: Checkpoints, epoch: int, name: str, kind: type[Content]) -> Content:
    """Return a part of an epoch, with its tensors on the CPU.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = checkpoints.path(epoch) / name
    damage = find_damage(path.parent, [name])
    remedy = f"Delete {path.parent.name}. The run then resumes from the epoch before."
    if damage is not None:
        raise _unreadable(damage.file, damage.reason, remedy)
    return _load(path, kind, remedy)


def newest_epoch(checkpoints: Checkpoints, names: Iterable[str]) -> int | None:
    """Return the newest epoch that has all files ``names``, all as they were written. Warn about damaged ones."""
    wanted = list(names)
    for epoch in reversed(checkpoints.epochs()):
        folder = checkpoints.path(epoch)
        damage = find_damage(folder)
        if damage is None and all((folder / name).is_file() for name in wanted):
            return epoch
        if damage is not None:
            rule = "checkpoint is incomplete or corrupt. Skipping it"
            warn("imagegen.checkpoint_damaged", rule, place=damage.file, value=damage.reason)
    return None


def save_tensors(path: Path, content: "DataclassInstance") -> None:
    """Save tensors and plain values so that a crash leaves the old file, the new one, or none.

    ``NAME.sha256`` beside it has its digest. A crash between the two writes leaves a file that is not ``is_saved``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        torch.save(to_plain(content), file)
        file.flush()
        os.fsync(file.fileno())
    digest = digest_file(temporary).sha256
    temporary.replace(path)
    write_text(_digest_path(path), f"{digest}  {path.name}\n")


def load_tensors(path: Path, kind: type[Content], remedy: str) -> Content:
    """Return the dataclass that a file of tensors holds, on the CPU. Nothing but plain values is loaded.

    Raises:
        RunError: the file is missing, damaged or of another version.
    """
    check_saved(path, remedy)
    return _load(path, kind, remedy)


def check_saved(path: Path, remedy: str) -> None:
    """Check that a file of ``save_tensors`` is unchanged. Raises RunError if it is not."""
    if reason := _change_of(path):
        raise _unreadable(path, reason, remedy)


def is_saved(path: Path) -> bool:
    """Return whether ``save_tensors`` saved a file that is unchanged. Warn about a changed one."""
    reason = _change_of(path) if path.exists() else None
    if reason is not None:
        rule = "a saved model should be unchanged. It is trained again"
        warn("imagegen.model_damaged", rule, place=path, value=reason)
    return path.exists() and reason is None


def to_plain(value: Any) -> Any:
    """Return dataclasses as dictionaries, at any depth. Tensors are not copied.

    Equal strings become one object. Otherwise the bytes of a pickle depend on which of them were loaded from a file.
    """
    if type(value) is str:
        return sys.intern(value)
    if is_dataclass(value):
        return {sys.intern(one.name): to_plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_plain(inner) for inner in value)
    return value


def _load(path: Path, kind: type[Content], remedy: str) -> Content:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return from_json(kind, content, other_types=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise _unreadable(path, str(error).partition("\n")[0], remedy) from error


def _unreadable(path: Path, reason: str, remedy: str) -> RunError:
    rule = "a checkpoint must be complete, unchanged, and of this version of the toolkit"
    return RunError("imagegen.checkpoint_unreadable", rule, place=path, value=reason, remedy=remedy)


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _change_of(path: Path) -> str | None:
    """Return how a file differs from the one that was saved, or None."""
    try:
        if not path.is_file():
            return "it is missing"
        known = _digest_path(path).read_text(encoding="utf-8").split()
        return None if known[:1] == [digest_file(path).sha256] else "its content differs from that written (SHA-256)"
    except (OSError, ValueError) as error:
        return f"its digest cannot be read: {error}"


def _recover(checkpoints: Checkpoints) -> None:
    """Undo a save that was interrupted, also between its two renames."""
    for old in checkpoints.folder.glob(".epoch_*.old"):
        final = checkpoints.folder / old.name.removeprefix(".").removesuffix(".old")
        if not final.exists():
            old.rename(final)
    _remove(checkpoints.folder.glob(".epoch_*"))


def _numbers(folder: Path) -> list[int]:
    matches = (_EPOCH.fullmatch(path.name) for path in folder.iterdir())
    return [int(match[1]) for match in matches if match]


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        remove_tree(folder)


def _check_loadable(path: Path) -> None:
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except UnpicklingError as error:
        raise TypeError(f"{path.name} must hold plain objects only: {str(error).partition(chr(10))[0]}") from error
