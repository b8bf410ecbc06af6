"""One more evaluation or export of a run that is there, with its own section of the recipe changed if asked."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.errors import RunError
from toolkit.evaluation.context import Context, EvaluationRecord
from toolkit.models.llamacpp import forms_of, is_gguf
from toolkit.pipeline.results import EVALUATE, LABELS, Results, evaluations, read_results, write_results
from toolkit.pipeline.run import DATA, Stages, Step, require_export, run_step, stopping
from toolkit.recipe import Export, Recipe, changed_keys, for_language_models, load_recipe
from toolkit.runfolder import EXPORT, Exported, Progress, RunFolder, StopRequest, find_exported, no_progress, reopen_run
from toolkit.runfolder.usage import recording
from toolkit.tasks import TASKS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Told = tuple[Progress, Callable[[int], None]]
"""Who is told how far a stage has come, and of the number of a signal that asks it to stop."""

SILENT: Told = (no_progress, lambda number: None)


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
    model: str | None = None,
    told: Told = SILENT,
) -> Results:
    """Evaluate a run's last weights, or some exported ones, and give the table with this evaluation in it.

    It is compared with the run's own evaluations where it asks the same questions.

    Args:
        path: the run folder.
        stages: who does it.
        settings: ``--set`` values for [evaluate].
        name: of the evaluation; default: the model's (merged, q8_0), or again-1, again-2, …
        model: what is asked instead of the run's last weights; see ``find_exported``.

    Raises:
        RunError: no run is there, the name is taken, or a setting is not about [evaluate].
    """
    with reopen_run(path) as run:
        recipe = _with_section(run, "evaluate", settings)
        asked = find_exported(run, model) if model is not None else None
        name = _free_name(run, asked) if name is None else _checked(name)
        if run.is_done(EVALUATE + name):
            rule, remedy = "the name of an evaluation must be new in the run", "Choose another name."
            raise RunError("evaluate.name_taken", rule, place=run.path, value=name, remedy=remedy)
        earlier = evaluations(run) if _same_questions(run.recipe(TASKS), recipe) else []

        def work(context: Context) -> EvaluationRecord:
            return stages.evaluate(context, name, asked.weights if asked else context.weights, earlier)

        if asked is not None and is_gguf(asked.weights):
            recipe = _without_backend(recipe)
        _do(run, recipe, stages, Step(EVALUATE + name, work), told)
        return read_results(run, [*earlier, name])


def export_again(
    path: Path,
    stages: Stages,
    settings: Sequence[str] = (),
    delivery: Delivery = Delivery(),
    *,
    told: Told = SILENT,
) -> Mapping[str, Any]:
    """Export a run's last weights, with ``--set`` values for [export], and give the stage's record.

    What is to be pushed and stands proven already is not exported again. The record of a push has ``pushed``, the
    address of its commit.
    An export elsewhere leaves the run's own record as it is.

    Raises:
        RunError: no run is there, it has no weights, a setting is not about [export], or nothing can be pushed.
    """
    with reopen_run(path) as run:
        recipe = _with_section(run, "export", settings)
        _refuse_misplaced(run, recipe, settings, delivery)
        require_export(recipe)
        export = stages.export
        if delivery.out or delivery.force:
            export = partial(export, out=delivery.out, force=delivery.force)
        step, kept = Step(EXPORT, export), delivery.out is None
        if delivery.push is None:
            return _do(run, recipe, stages, step, told, kept=kept)
        from toolkit.pipeline.push import Push, prepare_push, push_export  # loads model libraries

        form = prepare_push(run, recipe, delivery.push)
        again = form.open or delivery.out
        if again and recipe.export and not recipe.export.verify:
            rule, remedy = "only verified exports can be pushed", "Leave out --no-verify (export.verify = 0)."
            raise RunError("push.not_verified", rule, place="--push", remedy=remedy)
        record = _do(run, recipe, stages, step, told, kept=kept) if again else run.record(EXPORT)
        push = Push(delivery.push, delivery.public, delivery.force)
        return {**record, "pushed": push_export(run, record, form.name, push)}


def _do(
    run: RunFolder, recipe: Recipe, stages: Stages, step: Step, told: Told, *, kept: bool = True
) -> Mapping[str, Any]:
    """Do one step of a run; ``kept``: its record becomes the run's."""
    command, (progress, notify) = step.name.partition("-")[0], told
    with StopRequest(notify) as stop, recording(run, recipe.run, command) as recorder:
        with recorder.stage(DATA):
            data, images = stages.prepare(recipe, run, stopping(stop, progress))
        context = Context(recipe, run, data, images, stop, progress)
        stop.check(f"{step.name} has not begun")
        if kept:
            return run_step(step, context, recorder)
        write_results(run)  # what a model card is written from
        with recorder.stage(step.name):
            return step.work(context)


def _refuse_misplaced(run: RunFolder, recipe: Recipe, settings: Sequence[str], delivery: Delivery) -> None:
    if "gguf" not in forms_of(recipe.export or Export()) and any(one.startswith("export.quant=") for one in settings):
        rule = "only GGUF files can be quantized, and none is exported"
        raise RunError("export.quant_without_gguf", rule, place="--quant", remedy="Add --to gguf.")
    own = (run.path / "stages" / EXPORT).resolve()
    if delivery.out and delivery.out.resolve().is_relative_to(own):
        rule, remedy = "must be outside the run's own export folder", "Leave out --out, or name another folder."
        raise RunError("export.out_in_run_folder", rule, place="--out", value=str(delivery.out), remedy=remedy)


def _with_section(run: RunFolder, section: str, settings: Sequence[str]) -> Recipe:
    """The run's recipe with the section switched on and ``settings`` put in."""
    own = for_language_models(run.recipe(TASKS), f"toolkit {section}")
    switch_on = [f"{section}={{}}"] if getattr(own, section) is None else []
    recipe = load_recipe(run.recipe_file, [*switch_on, *settings], tasks=TASKS)
    others = [key for key in changed_keys(own, recipe) if key.partition(".")[0] != section]
    if others:
        raise RunError(
            "run.setting_not_changeable",
            f"an existing run accepts only [{section}] settings",
            place="--set",
            value=", ".join(others),
            remedy="Start a new run with another run.name.",
        )
    return recipe


def _without_backend(recipe: Recipe) -> Recipe:
    """llama.cpp asks a GGUF: a machine without the recipe's own backend can evaluate it."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"backend": "hf"})})


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name in (*LABELS, "baseline"):
        raise RunError(
            "evaluate.name_invalid",
            "must have only letters, digits, dots, dashes and underscores, and not be a name of the run's own stages",
            place="--name",
            value=name,
            remedy="Choose another name.",
        )
    return name


def _same_questions(own: Recipe, recipe: Recipe) -> bool:
    def questions(section: Any) -> tuple[Any, ...] | None:
        return (section.split, section.limit, section.max_tasks) if section else None

    return questions(own.evaluate) == questions(recipe.evaluate)


def _free_name(run: RunFolder, asked: Exported | None) -> str:
    if asked is not None and not run.is_done(EVALUATE + asked.name):
        return _checked(asked.name)
    number, base = (2, _checked(asked.name)) if asked else (1, "again")
    while run.is_done(f"{EVALUATE}{base}-{number}"):
        number += 1
    return f"{base}-{number}"
