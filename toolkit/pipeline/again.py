"""One more evaluation or export of a run that is there, with its own section of the recipe changed if asked."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.compute import recording
from toolkit.errors import RunError
from toolkit.pipeline.results import EVALUATE, LABELS, Results, evaluations, read_results
from toolkit.pipeline.steps import DATA, Stages, Step, run_step, stopping
from toolkit.recipe import Recipe, changed_keys, load_recipe
from toolkit.run import EXPORT, Progress, Record, RunFolder, StopRequest, reopen_run, silent
from toolkit.stages.context import Context

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Notify = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where an export goes besides the run folder.

    ``out``: a folder for the forms' folders. ``push``: ``owner/name`` on the Hub, private unless ``public``. ``force``:
    a folder of others in ``out`` is renamed, and a repository may have files, instead of either being refused.
    """

    out: Path | None = None
    push: str | None = None
    public: bool = False
    force: bool = False


def evaluate_again(
    path: Path,
    stages: Stages,
    settings: Sequence[str] = (),
    *,
    name: str | None = None,
    progress: Progress = silent,
    notify: Notify = lambda number: None,
) -> Results:
    """Evaluate a run's last weights once more, and give the table with this evaluation in it.

    It is compared with the run's own evaluations where it asks the same questions.

    Args:
        path: the run folder.
        stages: who does it.
        settings: ``--set`` values for [evaluate].
        name: of the evaluation; default: again-1, again-2, …

    Raises:
        RunError: no run is there, the name is taken, or a setting is not about [evaluate].
    """
    with reopen_run(path) as run:
        recipe = _with_section(run, "evaluate", settings)
        name = _free_name(run) if name is None else _checked(name)
        if run.is_done(EVALUATE + name):
            raise RunError("an evaluation of this name is there", place=run.path, value=name, remedy="Choose another.")
        earlier = evaluations(run) if _same_questions(run.recipe(), recipe) else []
        step = Step(EVALUATE + name, lambda context: stages.evaluate(context, name, context.weights, earlier))
        _do(run, recipe, stages, step, progress, notify)
        return read_results(run, [*earlier, name])


def export_again(
    path: Path,
    stages: Stages,
    settings: Sequence[str] = (),
    delivery: Delivery = Delivery(),
    *,
    progress: Progress = silent,
    notify: Notify = lambda number: None,
) -> Record:
    """Export a run's last weights, with ``--set`` values for [export], and give the stage's record.

    What is to be pushed and stands proven already is not exported again. The record of a push has ``pushed``, the
    address of its commit.

    Raises:
        RunError: no run is there, it has no weights, a setting is not about [export], or nothing can be pushed.
    """
    with reopen_run(path) as run:
        recipe = _with_section(run, "export", settings)
        export = stages.export
        if delivery.out or delivery.force:
            export = partial(export, out=delivery.out, force=delivery.force)
        if delivery.push is None:
            return _do(run, recipe, stages, Step(EXPORT, export), progress, notify)
        from toolkit.pipeline.push import prepare_push, push_export  # loads model libraries

        form = prepare_push(run, recipe, delivery.push)
        if form.open or delivery.out:
            _do(run, recipe, stages, Step(EXPORT, export), progress, notify)
        return push_export(run, form.name, delivery.push, public=delivery.public, force=delivery.force)


def _do(run: RunFolder, recipe: Recipe, stages: Stages, step: Step, progress: Progress, notify: Notify) -> Record:
    command = step.name.partition("-")[0]
    with StopRequest(notify) as stop, recording(run, recipe.run, command) as recorder:
        with recorder.stage(DATA):
            data, images = stages.prepare(recipe, run, stopping(stop, progress))
        context = Context(recipe, run, data, images, stop, progress)
        stop.check(f"{step.name} has not begun")
        return run_step(step, context, recorder)


def _with_section(run: RunFolder, section: str, settings: Sequence[str]) -> Recipe:
    """The run's recipe with the section switched on and ``settings`` put in."""
    own = run.recipe()
    switch_on = [f"{section}={{}}"] if getattr(own, section) is None else []
    recipe = load_recipe(run.recipe_file, [*switch_on, *settings])
    others = [key for key in changed_keys(own, recipe) if key.partition(".")[0] != section]
    if others:
        raise RunError(
            f"only [{section}] may be changed for a run that is there",
            place="--set",
            value=", ".join(others),
            remedy="Another recipe needs a run of its own.",
        )
    return recipe


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name in (*LABELS, "baseline"):
        raise RunError(
            "an evaluation's name is letters, digits, dots, dashes and underscores, and none of the run's own",
            place="--name",
            value=name,
        )
    return name


def _same_questions(own: Recipe, recipe: Recipe) -> bool:
    def questions(section: Any) -> tuple[Any, ...] | None:
        return (section.split, section.limit, section.max_tasks) if section else None

    return questions(own.evaluate) == questions(recipe.evaluate)


def _free_name(run: RunFolder) -> str:
    number = 1
    while run.is_done(f"{EVALUATE}again-{number}"):
        number += 1
    return f"again-{number}"
