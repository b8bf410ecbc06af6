"""Start, resume or reopen a run: one process at a time, one recipe and one dataset for each folder."""

import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from toolkit import identifiers
from toolkit.errors import RecipeError, RunError, ToolkitError, warn
from toolkit.recipe import Recipe, changed_keys, dump_recipe
from toolkit.runfolder.files import check_appendable, from_json, remove_partial_line, write_json, write_text
from toolkit.runfolder.folder import (
    SCHEMA_VERSION,
    TRAINING_STAGES,
    RunFolder,
    check_schema,
    find_run,
    read_state_file,
)
from toolkit.runfolder.logs import logging_to
from toolkit.runfolder.output import free_name
from toolkit.runfolder.versions import installed_versions, now

HARMLESS = frozenset(
    {
        "run.folder",
        "run.report_to",
        "run.tracker_examples",
        "run.checkpoint_steps",
        "run.keep_checkpoints",
        "run.log_steps",
        "run.purpose",
        "run.country",
        "data.train",
        "data.validation",
        "data.test",
        "data.image_root",
        "data.max_dropped",
        "rewards.time_limit",
        "images.scan",
        "images.memory_cache_mb",
        "images.disk_cache",
        "imagegen.ratings",
        "imagegen.image_root",
        "imagegen.max_dropped",
    }
)
"""Keys that a resumed run may change, because neither the weights nor the completions depend on them. Paths of the data
may change because the content is compared by fingerprint."""

_FRESH = "start over with --fresh (the old folder is kept under another name)"
_NOT_MADE = ("run.folder_not_made", "it must be possible to create the run folder")

log = logging.getLogger(__name__)


@contextmanager
def start_run(recipe: Recipe, *, fresh: bool = False) -> Iterator[RunFolder]:
    """Create or resume the run folder of a recipe. It is locked, and log.txt receives the log, while the block runs.

    Args:
        recipe: its ``run_folder`` is the path.
        fresh: start over. An old folder is renamed to ``<name>.old-1`` (or -2, ...) and never removed, except for an
            old dry run that a new dry run replaces.

    Raises:
        RunError: another process uses the folder, the recipe differs from that of the folder, the folder is not a run
            or one of another version, or a dry run would replace another run.
    """
    path = recipe.run_folder.absolute()
    with _locked(path):
        if fresh and recipe.run.is_dry_run:
            _remove_dry_run(RunFolder(path), recipe)
        elif fresh and path.exists():
            path.rename(free_name(path))
        run = RunFolder(path)
        if run.run_file.is_file():
            check_schema(run)  # before the recipe of another version is read
        else:
            _check_no_other_files(path)
        path.mkdir(parents=True, exist_ok=True)
        check_appendable(run.metrics_file)
        with logging_to(run.log_file), _LogFailure():
            _check_recipe_unchanged(run, recipe)
            _begin_session(run, recipe)
            write_text(run.recipe_file, dump_recipe(recipe))
            yield run


def check_resumable(recipe: Recipe) -> None:
    """Check before any work that the run folder of a recipe is free, or has a run of the same recipe.

    Raises:
        RunError: as ``start_run``, except that another process may use the folder.
    """
    run = RunFolder(recipe.run_folder.absolute())
    if run.run_file.is_file():
        check_schema(run)
        _check_recipe_unchanged(run, recipe)
    else:
        _check_no_other_files(run.path)


@contextmanager
def reopen_run(path: Path | str) -> Iterator[RunFolder]:
    """Open an existing run to add to it. It is locked, and log.txt receives the log, while the block runs.

    Raises:
        RunError: the folder is not a run, or another process uses it.
    """
    run = find_run(path)
    with _locked(run.path):
        check_appendable(run.metrics_file)
        with logging_to(run.log_file), _LogFailure():
            _remove_unfinished(run)
            yield run


@dataclass(frozen=True, slots=True)
class RunSession:
    """One start of `toolkit run`: its time, and the versions of Python and the libraries."""

    started: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RunState:
    """The content of run.json.

    Attributes:
        schema_version: ``SCHEMA_VERSION``.
        seed: the seed of the run.
        fingerprints: input (``data``, ``rewards``) -> digest of its content.
        sessions: every start of `toolkit run`.
    """

    schema_version: int
    seed: int
    fingerprints: Mapping[str, str]
    sessions: tuple[RunSession, ...]


def read_state(run: RunFolder) -> RunState:
    """Return the content of run.json.

    Raises:
        RunError: the file is corrupt, or of another version.
    """
    check_schema(run)
    problem = "sessions: none"
    try:
        state = from_json(RunState, read_state_file(run))
        if state.sessions:
            return state
    except ValueError as error:
        problem = str(error)
    remedy = f"Restore it, or {_FRESH}."
    raise RunError("run.state_damaged", "run.json must be valid", place=run.run_file, value=problem, remedy=remedy)


def check_fingerprints(run: RunFolder, fingerprints: Mapping[str, str]) -> None:
    """Store the fingerprints of a run's inputs, or check that the inputs are unchanged.

    Args:
        run: a started run.
        fingerprints: name of the input (``data``, ``rewards``) -> digest of its content.

    Raises:
        RunError: a digest differs from that of the first session.
    """
    state = read_state(run)
    known = state.fingerprints
    changed = [name for name, digest in fingerprints.items() if known.get(name, digest) != digest]
    if changed:
        raise RunError(
            "run.inputs_changed",
            "the inputs of a run must not change",
            place=run.path,
            value=f"changed: {', '.join(changed)}",
            remedy=f"Restore them, {_FRESH}, or choose another name with --set run.name=...",
        )
    write_json(run.run_file, replace(state, fingerprints={**known, **fingerprints}))


def is_locked(path: Path) -> bool:
    """Return whether a process uses a run folder."""
    file = _lock_file(path)
    if not file.is_file():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _lock_file(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The lock is beside the folder, because --fresh renames the folder. The operating system releases it when the
    # process ends for any reason.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _creation_error(path, error) from error
    lock = FileLock(_lock_file(path), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            "run.folder_in_use",
            "only one process must use a run folder at a time",
            place=path,
            remedy="Wait for the other process, or choose another name with --set run.name=...",
        ) from error
    except OSError as error:
        raise _creation_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _creation_error(path: Path, error: OSError) -> RunError:
    value = error.strerror or str(error)
    return RunError(*_NOT_MADE, place=path, value=value, remedy="Choose another run.name or run.folder.")


def _remove_dry_run(old: RunFolder, new: Recipe) -> None:
    if not old.recipe_file.is_file():
        return  # The folder does not exist, or is not a run, which is checked next.
    try:
        replaceable = old.recipe(new.tasks).run.is_dry_run
    except RecipeError:  # A recipe of another version or a corrupt one may belong to a real run.
        replaceable = False
    if not replaceable:
        raise RunError(
            "run.not_a_dry_run",
            "a dry run must not replace a run that is not a dry run or cannot be read",
            place=old.path,
            remedy="Choose another name with --set run.name=...",
        )
    # Rename first, so that an interruption leaves no partial run under this name.
    removed = old.path.with_name(f".{old.name}.removed")
    if os.path.lexists(removed):
        _remove(removed)
    old.path.rename(removed)
    _remove(removed)


def _remove(folder: Path) -> None:
    """Remove a folder, or a link to one, whose files stay."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def _check_no_other_files(path: Path) -> None:
    if os.path.lexists(path) and not path.is_dir():
        value = "a link that leads nowhere" if path.is_symlink() else "a file"
        raise RunError(*_NOT_MADE, place=path, value=value, remedy="Choose another run.name or run.folder.")
    # A run that was killed before its first rename has its log and the temporary file of run.json.
    if path.is_dir() and any(
        not (fnmatch(file.name, ".run.json.*.partial") or file.name in ("log.txt", identifiers.FILE))
        for file in path.iterdir()
    ):
        raise RunError(
            "run.folder_of_other_files",
            "a run folder must be empty or have run.json",
            place=path,
            remedy="Choose another run.name or run.folder, or add --fresh to rename the folder to NAME.old-1.",
        )


def _check_recipe_unchanged(run: RunFolder, recipe: Recipe) -> None:
    if not run.recipe_file.is_file():
        return
    changed = changed_keys(run.recipe(recipe.tasks), recipe)
    lines = [f"{key}: {old} -> {new}" for key, (old, new) in changed.items() if key not in HARMLESS]
    if lines and _is_bound(run, recipe):
        raise RunError(
            "run.recipe_changed",
            "\n  ".join(["the recipe of a run must not change:", *lines]) + "\n",
            place=run.path,
            remedy=f"{_train_further(run, recipe, changed)}Run the old recipe, {_FRESH}, or choose another name with "
            "--set run.name=...",
        )
    for key, (old, new) in changed.items():
        log.info("changed setting: %s: %s -> %s", key, old, new)


def _train_further(run: RunFolder, recipe: Recipe, changed: Mapping[str, tuple[object, object]]) -> str:
    """Return how to train a finished stage further, if the new recipe has more of its steps or epochs."""
    for stage in TRAINING_STAGES:
        for name in ("max_steps", "epochs"):
            old, new = changed.get(f"{stage}.{name}", (None, None))
            is_longer = isinstance(old, int | float) and (new is None or (isinstance(new, int | float) and new > old))
            if is_longer and run.is_done(stage):
                key = "model.adapter" if recipe.model.tuning == "lora" else "model.name"
                weights = shlex.quote(f"{key}={run.weights_folder(stage)}")
                return (
                    f"{stage} has finished, and its learning-rate schedule has ended. To train its weights further, "
                    f"start a new run: toolkit run RECIPE --set run.name=NEW --set {weights}. Otherwise: "
                )
    return ""


def _is_bound(run: RunFolder, recipe: Recipe) -> bool:
    """Return whether something in the run depends on its recipe and data.

    The first stage of [imagegen] only checks them. Until it has finished, a corrected recipe or ratings file continues.
    """
    return recipe.imagegen is None or bool(run.finished_stages())


def _remove_unfinished(run: RunFolder) -> None:
    """Remove temporary files of interrupted writes. The lock is held, so no other process writes."""
    for file in run.path.rglob(".*.partial"):
        if file.is_file():
            file.unlink()


def _begin_session(run: RunFolder, recipe: Recipe) -> None:
    _remove_unfinished(run)
    removed = remove_partial_line(run.metrics_file)
    if removed:
        log.info("removed an unfinished line of %d bytes from metrics.jsonl", removed)
    session = RunSession(now(), installed_versions())
    if not run.run_file.is_file():
        write_json(run.run_file, RunState(SCHEMA_VERSION, recipe.run.seed, {}, (session,)))
        log.info("starting run %s in %s", run.name, run.path)
        return
    state = read_state(run)
    log.info("resuming run %s in %s", run.name, run.path)
    _warn_changed_versions(state.sessions[-1].versions, session.versions)
    if not _is_bound(run, recipe):
        state = replace(state, seed=recipe.run.seed, fingerprints={})
    write_json(run.run_file, replace(state, sessions=(*state.sessions, session)))


def _warn_changed_versions(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            rule = f"the version should be that of the last session of the run, {old.get(name)}"
            warn("run.version_changed", rule, place=name, value=new.get(name))


class _LogFailure:
    """Log the error that ends the run, without handling it."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, ToolkitError):
            log.debug("stopped: %s [%s]", error, error.code)
        elif error is not None:
            log.debug("stopped by an unexpected error", exc_info=error)
