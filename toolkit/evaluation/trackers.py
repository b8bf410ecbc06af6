"""Experiment trackers of a run: figures, results and examples go to TensorBoard, wandb and trackio.

A run has one id, so that a resumed run continues its curves and a fresh one of its name does not. The curves of TRL's
trainers go into the same run, because their callbacks use the wandb run that is open, and the trackio run of the same
project and name.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from toolkit.errors import MissingExtraError, RunError, warn
from toolkit.runfolder.folder import RunFolder
from toolkit.runfolder.logs import hide_secrets
from toolkit.runfolder.start import read_state

PROJECT = "toolkit"
"""Project of wandb (unless WANDB_PROJECT names another one) and of trackio."""


DATA_FOLDER = "WANDB_DATA_DIR"
"""Environment variable with the folder in which wandb prepares uploads."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose cells are texts, numbers and images. An image is in mode RGB. Every row has a cell per column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class Tracker(Protocol):
    """A tracker that is open."""

    def log_figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Log figures of a stage at a step: an epoch, a round, or the number of an evaluation."""

    def log_table(self, name: str, step: int, table: Table) -> None:
        """Log a table under a name such as ``evaluation/results``. A later table of the name replaces it."""

    def close(self) -> None:
        """Send what is not sent yet, and end the session. Another one can continue the run."""


@dataclass(slots=True, eq=False)
class Trackers:
    """The open trackers of a run. One that fails is reported once and not used again, so that it never ends a run."""

    opened: dict[str, Tracker] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Return whether a tracker is open."""
        return bool(self.opened)

    def figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Log figures to every tracker. See ``Tracker.log_figures``."""
        self._each(lambda tracker: tracker.log_figures(stage, step, figures))

    def table(self, name: str, step: int, table: Table) -> None:
        """Log a table to every tracker. See ``Tracker.log_table``."""
        self._each(lambda tracker: tracker.log_table(name, step, table))

    def close(self) -> None:
        """Close every tracker."""
        self._each(lambda tracker: tracker.close())
        self.opened.clear()

    def _each(self, use: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.opened.items()):
            try:
                use(tracker)
            except Exception as error:  # noqa: BLE001  A tracker can raise anything, and the training must continue.
                del self.opened[name]
                warn(
                    "tracker.failed",
                    f"the tracker {name} must accept results. It gets no more of them from this process",
                    place="run.report_to",
                    value=_reason(error),
                    remedy="results.json and metrics.jsonl of the run folder have all results.",
                )


NO_TRACKERS = Trackers()


@contextmanager
def tracking(names: Sequence[str], run: RunFolder) -> Iterator[Trackers]:
    """Open the trackers of a run. They are closed when the block ends.

    Args:
        names: values of ``run.report_to``.
        run: the run, which has been started.

    Raises:
        MissingExtraError: a tracker is not installed.
        RunError: a tracker cannot be started.
    """
    with ExitStack() as opened:
        trackers = Trackers()
        opened.callback(trackers.close)
        for name in names:
            trackers.opened[name] = _open(name, run)
        yield trackers


def tracked_name(run: RunFolder) -> str:
    """Return the name of a run for a tracker that knows runs by their name alone."""
    return f"{run.name}-{run_id(run)}"


def run_id(run: RunFolder) -> str:
    """Return the id of a run for its trackers, which depends on its name and its first start in ``state.json``."""
    began = read_state(run).sessions[0].started
    return hashlib.sha256(f"{run.name}/{began}".encode()).hexdigest()[:16]


def _open(name: str, run: RunFolder) -> Tracker:
    try:
        return _OPEN[name](run)
    except ImportError as error:
        raise MissingExtraError(name, "tracking", f"run.report_to = [{name!r}]") from error
    except _failures() as error:
        raise RunError(
            "tracker.not_started",
            f"the tracker {name} must start",
            place="run.report_to",
            value=_reason(error),
            remedy="Log in to it, set WANDB_MODE=offline for wandb, or remove it from run.report_to.",
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors of a tracker that cannot start. wandb has its own, and is loaded only if it is named."""
    errors = getattr(sys.modules.get("wandb"), "errors", None)
    return (OSError, RuntimeError, ValueError, *((errors.Error,) if errors else ()))


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return hide_secrets(f"{type(error).__name__}: {text}" if text else type(error).__name__)


class _TensorBoard:
    """Writes to the folder ``tensorboard`` of the run. Tables are Markdown, and images have a tag of their own."""

    def __init__(self, run: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(_folder(run, "tensorboard")))

    def log_figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def log_table(self, name: str, step: int, table: Table) -> None:
        import numpy as np

        self._writer.add_text(name, _markdown(table), step)
        for number, row in enumerate(table.rows, 1):
            for cell in filter(_is_image, row):
                self._writer.add_image(f"{name}/{number}", np.asarray(cell), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Continues the wandb run of the run folder, and leaves it open for the callback of transformers."""

    def __init__(self, run: RunFolder) -> None:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        self._wandb: Any = wandb
        # wandb would copy tables and images to a folder of the user, where they stay.
        self._sets_folder = DATA_FOLDER not in os.environ
        os.environ.setdefault(DATA_FOLDER, str(_folder(run, "wandb")))
        self._session: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            id=os.environ.get("WANDB_RUN_ID") or run_id(run),
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(_folder(run, "wandb")),
        )

    def log_figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        # wandb's own step must rise through all stages, so each stage has a step of its own.
        self._session.define_metric(f"{stage}/step")
        self._session.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._session.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in figures.items()}})

    def log_table(self, name: str, step: int, table: Table) -> None:
        rows = [[self._wandb.Image(cell) if _is_image(cell) else cell for cell in row] for row in table.rows]
        content = self._wandb.Table(columns=list(table.columns), data=rows)
        self._session.log({f"{name.partition('/')[0]}/step": step, name: content})

    def close(self) -> None:
        self._session.finish()
        if self._sets_folder:
            os.environ.pop(DATA_FOLDER, None)


class _Trackio:
    """Continues the trackio run of the run folder.

    The callback of transformers opens the same run again, which ends this session. Each call uses the session that is
    open.
    """

    def __init__(self, run: RunFolder) -> None:
        import trackio  # type: ignore[import-not-found, unused-ignore]

        self._trackio: Any = trackio
        self._name = tracked_name(run)
        self._session()

    def _session(self) -> Any:
        current = self._trackio.context_vars.current_run.get()
        if current is None:
            current = self._trackio.init(project=PROJECT, name=self._name, resume="allow", embed=False)
        return current

    def log_figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self._session().log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in figures.items()}})

    def log_table(self, name: str, step: int, table: Table) -> None:
        import pandas

        rows = [[self._trackio.Image(cell) if _is_image(cell) else cell for cell in row] for row in table.rows]
        content = self._trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(table.columns), dtype=object))
        self._session().log({f"{name.partition('/')[0]}/step": step, name: content})

    def close(self) -> None:
        if self._trackio.context_vars.current_run.get() is not None:
            self._trackio.finish()


def _is_image(cell: object) -> bool:
    return hasattr(cell, "getbands")


def _markdown(table: Table) -> str:
    """Return a table as Markdown, whose cells cannot have markup. Images are numbered, because they are elsewhere."""
    lines = [table.columns, ("---",) * len(table.columns)]
    lines += [tuple(_shown(cell, number) for cell in row) for number, row in enumerate(table.rows, 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(cell: object, number: int) -> str:
    if cell is None:
        return ""
    if _is_image(cell):
        return f"image {number}"
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("\n", "<br>")):
        text = text.replace(character, escaped)
    return text


def _folder(run: RunFolder, name: str) -> Path:
    folder = run.path / name
    folder.mkdir(exist_ok=True)
    return folder


_OPEN: Mapping[str, Callable[[RunFolder], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}
