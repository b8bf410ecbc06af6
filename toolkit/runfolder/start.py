"""Start, continue or reopen a run: one process at a time, one recipe and one set of data for a folder."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from toolkit.errors import RecipeError, RunError, ToolkitError, warn
from toolkit.recipe import Recipe, changed_keys, dump_recipe
from toolkit.runfolder.files import cut_torn_line, read_json, write_json, write_text
from toolkit.runfolder.folder import Record, RunFolder, find_run
from toolkit.runfolder.logs import logging_to
from toolkit.runfolder.versions import now, versions

HARMLESS = frozenset(
    {
        "run.folder",
        "run.report_to",
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
        "images.scan",
        "images.memory_cache_mb",
        "images.disk_cache",
        "imagegen.ratings",
        "imagegen.image_root",
        "imagegen.max_dropped",
    }
)
"""Keys that may change while a run goes on: they change neither the weights nor the answers. Where the data lie may
change since what they hold is compared by fingerprint."""

_FRESH = "start over with --fresh (the old folder is kept under another name)"
_NOT_MADE = ("run.folder_not_made", "it must be possible to make the run folder")

log = logging.getLogger(__name__)


@contextmanager
def start_run(recipe: Recipe, *, fresh: bool = False) -> Iterator[RunFolder]:
    """The recipe's run folder, new or to be continued, locked and logging to its log.txt while the block runs.

    Args:
        recipe: its ``run_folder`` names the place.
        fresh: begin anew; an old folder of this name is renamed to ``<name>.old-1`` (or -2, ...), never removed; but an
            old rehearsal is, by a new one.

    Raises:
        RunError: another process works in it; the recipe differs from the folder's; the folder is no run; or a
            rehearsal would replace what is none.
    """
    path = recipe.run_folder.absolute()
    with _locked(path):
        if fresh and recipe.run.is_rehearsal:
            _remove_rehearsal(RunFolder(path), recipe)
        elif fresh and path.exists():
            path.rename(_name_for_old(path))
        run = RunFolder(path)
        if not run.run_file.is_file():
            _refuse_foreign(path)
        path.mkdir(parents=True, exist_ok=True)
        with logging_to(run.log_file), _LogFailure():
            _refuse_changes(run, recipe)
            _begin_session(run, recipe)
            write_text(run.recipe_file, dump_recipe(recipe))
            yield run


@contextmanager
def reopen_run(path: Path | str) -> Iterator[RunFolder]:
    """An existing run, locked and logging while the block runs, to add something to it.

    Raises:
        RunError: no run is there, or another process works in it.
    """
    run = find_run(path)
    with _locked(run.path), logging_to(run.log_file), _LogFailure():
        yield run


def read_state(run: RunFolder) -> Record:
    """What run.json holds.

    Raises:
        RunError: it is damaged.
    """
    try:
        state: Record = read_json(run.run_file)
        if isinstance(state["fingerprints"], dict) and state["sessions"]:
            return state
    except (ValueError, KeyError, TypeError):
        pass
    raise RunError(
        "run.state_damaged",
        "run.json must be as the run wrote it",
        place=run.run_file,
        remedy=f"Restore it, or {_FRESH}.",
    )


def check_fingerprints(run: RunFolder, fingerprints: Mapping[str, str]) -> None:
    """Keep what went into the run, or see that it is still the same.

    Args:
        run: a started run.
        fingerprints: what (``data``, ``rewards``) -> a digest of its content.

    Raises:
        RunError: a digest differs from the one that the run began with.
    """
    state = read_state(run)
    known: dict[str, str] = state["fingerprints"]
    changed = [name for name, digest in fingerprints.items() if known.get(name, digest) != digest]
    if changed:
        raise RunError(
            "run.inputs_changed",
            "the inputs of a run must be those that it began with",
            place=run.path,
            value=f"changed: {', '.join(changed)}",
            remedy=f"Restore them, {_FRESH}, or choose another run.name.",
        )
    write_json(run.run_file, {**state, "fingerprints": {**known, **fingerprints}})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Beside the folder, so that it also covers the moment when --fresh renames it. The operating system lets go of the
    # lock when its process ends, however it ends.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_made(path, error) from error
    lock = FileLock(path.parent / f".{path.name}.lock", timeout=0)
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
        raise _cannot_be_made(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _cannot_be_made(path: Path, error: OSError) -> RunError:
    value = error.strerror or str(error)
    return RunError(*_NOT_MADE, place=path, value=value, remedy="Choose another run.name or run.folder.")


def _name_for_old(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}.old-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.old-{number}")


def _remove_rehearsal(old: RunFolder, new: Recipe) -> None:
    if not old.recipe_file.is_file():
        return  # nothing, or no run at all, which is looked at next
    try:
        replaceable = old.recipe(new.tasks).run.is_rehearsal
    except RecipeError:  # of another version, or damaged: nobody can say what it is
        replaceable = False
    if not replaceable:
        raise RunError(
            "run.not_a_dry_run",
            "a dry run must not replace a run that is not a dry run or cannot be read",
            place=old.path,
            remedy="Choose another name with --set run.name=...",
        )
    # Renamed first, so that no half of a run stays under its name.
    doomed = old.path.with_name(f".{old.name}.removed")
    if doomed.exists():
        shutil.rmtree(doomed)
    old.path.rename(doomed)
    shutil.rmtree(doomed)


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(*_NOT_MADE, place=path, value="a file", remedy="Choose another run.name or run.folder.")
    if path.is_dir() and any(file.name != "log.txt" for file in path.iterdir()):
        raise RunError(
            "run.folder_of_other_files",
            "a run folder must be empty or have run.json",
            place=path,
            remedy="Choose another run.name or run.folder.",
        )


def _refuse_changes(run: RunFolder, recipe: Recipe) -> None:
    if not run.recipe_file.is_file():
        return
    changed = changed_keys(run.recipe(recipe.tasks), recipe)
    lines = [f"{key}: {old} -> {new}" for key, (old, new) in changed.items() if key not in HARMLESS]
    if lines and _is_bound(run, recipe):
        raise RunError(
            "run.recipe_changed",
            "\n  ".join(["the recipe must be the one that the run began with:", *lines]) + "\n",
            place=run.path,
            remedy=f"Run the old recipe, {_FRESH}, or choose another name with --set run.name=...",
        )
    for key, (old, new) in changed.items():
        log.info("the recipe changed where it may: %s: %s -> %s", key, old, new)


def _is_bound(run: RunFolder, recipe: Recipe) -> bool:
    """Return whether something in the run depends on its recipe and data.

    The first stage of [imagegen] only checks them. Until it has finished, a corrected recipe or ratings file continues.
    """
    return recipe.imagegen is None or bool(run.finished_stages())


def _remove_unfinished(run: RunFolder) -> None:
    """Remove temporary files of writes that a kill interrupted. The lock is held, so that no other process writes."""
    for file in run.path.rglob(".*.partial"):
        if file.is_file():
            file.unlink()


def _begin_session(run: RunFolder, recipe: Recipe) -> None:
    _remove_unfinished(run)
    torn = cut_torn_line(run.metrics_file)
    if torn:
        log.info("metrics.jsonl ended in an unfinished line of %d bytes, which was cut off", torn)
    session: Record = {"started": now(), "versions": versions()}
    if not run.run_file.is_file():
        write_json(run.run_file, {"seed": recipe.run.seed, "fingerprints": {}, "sessions": [session]})
        log.info("run %s begins in %s", run.name, run.path)
        return
    state = read_state(run)
    log.info("run %s goes on in %s", run.name, run.path)
    _tell_changed_versions(state["sessions"][-1]["versions"], session["versions"])
    bound = {} if _is_bound(run, recipe) else {"seed": recipe.run.seed, "fingerprints": {}}
    write_json(run.run_file, {**state, **bound, "sessions": [*state["sessions"], session]})


def _tell_changed_versions(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            rule = f"the version should be that of the run's last session, {old.get(name)}"
            warn("run.version_changed", rule, place=name, value=new.get(name))


class _LogFailure:
    """Writes what ends the run into its log and lets it pass."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, ToolkitError):
            log.debug("stopped: %s", error)
        elif error is not None:
            log.debug("stopped by an error of the toolkit itself", exc_info=error)
