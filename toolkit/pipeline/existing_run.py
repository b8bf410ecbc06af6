"""Evaluate or export an existing run again, with other settings of that section, and open it for inference."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.errors import Problem, RecipeError, RunError, warn
from toolkit.evaluation.generate import weights_identity
from toolkit.evaluation.results import RESERVED_EVALUATION_NAMES, EvaluationResult, evaluation_stage
from toolkit.evaluation.stage_context import Context
from toolkit.evaluation.trackers import tracking
from toolkit.exporting.exported import Exported, find_exported
from toolkit.exporting.results import ExportResult
from toolkit.models.llamacpp import formats_of, is_gguf
from toolkit.pipeline.run import (
    DATA,
    Result,
    StageCall,
    Stages,
    has_other_inputs,
    has_other_metrics,
    require_export,
    run_stage,
    stopping,
    unfinished_stages,
    write_report,
)
from toolkit.pipeline.run_results import RunResults, collect_results, evaluations, write_results
from toolkit.recipe import Recipe, changed_keys, for_language_models, load_recipe
from toolkit.runfolder import (
    EXPORT,
    Progress,
    Record,
    RunFolder,
    StopRequest,
    locate_weights,
    no_progress,
    read_saved,
    reopen_run,
    write_json,
)
from toolkit.runfolder.manifest import check_weights
from toolkit.runfolder.usage import recording
from toolkit.tasks import TASKS

EVALUATION = "evaluate"
"""Command that sends results to experiment trackers."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Callbacks = tuple[Progress, Callable[[int], None]]
"""Called with the progress of a stage, and with the number of a signal that requests a stop."""

SILENT: Callbacks = (no_progress, lambda number: None)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where an export goes in addition to the run folder.

    Attributes:
        out: the parent folder of the formats' folders. None: the run folder.
        push: ``owner/name`` of a repository on the Hub. None: nothing is pushed.
        public: create a public repository instead of a private one.
        force: rename an existing folder in ``out``, and push to a repository that has files.
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
    callbacks: Callbacks = SILENT,
) -> RunResults:
    """Evaluate a run's last weights or one of its exports.

    The evaluation is compared with the run's own evaluations if its samples are the same. The same call resumes an
    interrupted evaluation. With a name, it returns the results of a finished one.

    Args:
        path: the run folder.
        stages: the functions that do the work.
        settings: ``--set`` values for [evaluate].
        name: name of the evaluation. Default: that of the model (merged, q8_0), otherwise again-1, again-2, …
        model: the model to evaluate instead of the last weights. See ``find_exported``.
        callbacks: progress and signals.

    Returns:
        The table of results with this evaluation as its last row.

    Raises:
        RunError: the folder is not a run, the name is taken, or a setting does not belong to [evaluate].
    """
    with reopen_run(path) as run:
        recipe = _with_section(run, "evaluate", settings)
        exported = find_exported(run, model) if model is not None else None
        chosen = _choose_name(run, recipe, exported, name)
        earlier = evaluations(run) if _same_samples(run.recipe(TASKS), recipe) else []

        def work(context: Context) -> EvaluationResult:
            return stages.evaluate(context, chosen.name, exported.weights if exported else context.weights, earlier)

        if exported is None:
            _warn_if_untrained(run, recipe)
        if exported is not None and is_gguf(exported.weights):
            recipe = _without_backend(recipe)
        stage = evaluation_stage(chosen.name)
        file = _request_file(run, chosen.name)
        if unfinished_stages([stage], run.is_done):
            write_json(file, chosen.request)
            _run_one(run, recipe, stages, StageCall(stage, work), callbacks)
            write_report(run)
        else:
            if has_other_inputs(run, recipe):
                stages.prepare(recipe, run, callbacks[0])
            write_results(run)
        if name is None:  # the next evaluation without a name gets another number
            file.unlink(missing_ok=True)
        return collect_results(run, [*earlier, chosen.name])


def export_again(
    path: Path,
    stages: Stages,
    settings: Sequence[str] = (),
    delivery: Delivery = Delivery(),
    *,
    callbacks: Callbacks = SILENT,
) -> ExportResult:
    """Export a run's last weights.

    A format that is already exported and verified is pushed without another export. An export outside the run folder
    does not change the run's result.

    Args:
        path: the run folder.
        stages: the functions that do the work.
        settings: ``--set`` values for [export].
        delivery: where the export goes.
        callbacks: progress and signals.

    Returns:
        The result of the export. After a push, ``pushed`` is the address of the commit.

    Raises:
        RunError: the folder is not a run, it has no weights, a setting does not belong to [export], or nothing can be
            pushed.
    """
    with reopen_run(path) as run:
        recipe = _with_section(run, "export", settings)
        _check_delivery(run, recipe, settings, delivery)
        require_export(recipe)
        export = stages.export
        if delivery.out or delivery.force:
            export = partial(export, out=delivery.out, force=delivery.force)
        call, in_run = StageCall(EXPORT, export), delivery.out is None
        if delivery.push is None:
            return _run_one(run, recipe, stages, call, callbacks, in_run=in_run)
        from toolkit.pipeline.push import Push, prepare_push, push_export  # imports model libraries

        chosen = prepare_push(run, recipe, delivery.push)
        export_first = chosen.needs_export or delivery.out
        if export_first and recipe.export and not recipe.export.verify:
            rule, remedy = "only verified exports can be pushed", "Leave out --no-verify (export.verify = 0)."
            raise RunError("push.not_verified", rule, place="--push", remedy=remedy)
        if export_first:
            result = _run_one(run, recipe, stages, call, callbacks, in_run=in_run)
        else:
            result = run.result(EXPORT, ExportResult)
        push = Push(delivery.push, delivery.public, delivery.force)
        return replace(result, pushed=push_export(run, result, chosen.name, push))


def export_settings(
    to: Sequence[str], quant: Sequence[str], others: Sequence[str] = (), *, verify: bool = True
) -> list[str]:
    """Return ``--set`` values of [export]: those of the options, and ``others``.

    Args:
        to: formats. One text may hold several, separated by commas.
        quant: GGUF quantizations, likewise.
        others: ``--set`` values that the user gives beside the options.
        verify: False: skip verification.

    Raises:
        RecipeError: a text has no name, or an option and ``others`` set the same key.
    """
    options = (("to", "--to", bool(to)), ("quant", "--quant", bool(quant)), ("verify", "--no-verify", not verify))
    keys = {text.partition("=")[0].replace(" ", "") for text in others}
    for key, option, is_given in options:
        if is_given and keys & {f"export.{key}", "export"}:
            rule, remedy = f"must not be used together with --set export.{key}", "Use one of them."
            raise RecipeError([Problem("export.set_twice", rule, option, remedy=remedy)])
    settings = []
    for key, given in (("to", to), ("quant", quant)):
        names = [name.strip() for text in given for name in text.split(",") if name.strip()]
        if given and not names:
            remedy = f"Name one, such as --{key} {'merged' if key == 'to' else 'q8_0'}."
            problem = Problem("export.names_missing", "must have at least one name", f"--{key}", remedy=remedy)
            raise RecipeError([problem])
        if names:
            settings.append(f"export.{key}={json.dumps(names)}")
            settings += ["export.optional=[]"] if key == "to" else []  # named formats are never optional
    return [*settings, *([] if verify else ["export.verify=0"]), *others]


def open_for_inference(path: Path, model: str | None = None) -> tuple[RunFolder, Path | None]:
    """Open a run for predictions, and import Unsloth if its recipe uses it.

    Call it before any module that imports transformers, because Unsloth must be imported first.

    Args:
        path: a run folder, or weights inside one.
        model: an export of the run. See ``find_exported``.

    Returns:
        The run, and the weights to use. None: the run's last weights.

    Raises:
        RunError: the folder is not a run, or the weights are missing.
        RecipeError: the run is one of an image generator.
        ModelError: the backend of the recipe is not available.
    """
    from toolkit.models import preload

    run, weights = locate_weights(path)
    for_language_models(run.recipe(TASKS), "toolkit predict")
    if model is not None:
        weights = find_exported(run, model).weights
    elif weights is not None:
        check_weights(weights)
    else:
        _warn_if_untrained(run, run.recipe(TASKS))
    preload(run.recipe(TASKS), run.path, weights)
    return run, weights


def _warn_if_untrained(run: RunFolder, recipe: Recipe) -> None:
    if recipe.training and run.trained_weights() is None:
        rule = "a training stage should have finished, otherwise the model is the one before training"
        remedy = "Finish the run first: toolkit run RECIPE."
        warn("run.model_untrained", rule, place=run.path, remedy=remedy)


def _run_one(
    run: RunFolder,
    recipe: Recipe,
    stages: Stages,
    call: StageCall[Result],
    callbacks: Callbacks,
    *,
    in_run: bool = True,
) -> Result:
    """Run one stage. Its result becomes the run's if ``in_run``."""
    command, (progress, notify) = call.name.partition("-")[0], callbacks
    with StopRequest(notify) as stop, recording(run, recipe.run, command) as recorder:
        with recorder.stage(DATA):
            data, images = stages.prepare(recipe, run, stopping(stop, progress))
        context = Context(recipe, run, data, images, stop, progress)
        stop.check(f"{call.name} has not begun")
        if in_run:
            with tracking(recipe.run.report_to if command == EVALUATION else (), run) as trackers:
                return run_stage(call, context, recorder, trackers)
        write_results(run)  # the model card is written from results.json
        with recorder.stage(call.name):
            return call.work(context)


def _check_delivery(run: RunFolder, recipe: Recipe, settings: Sequence[str], delivery: Delivery) -> None:
    if "gguf" not in formats_of(recipe.export_settings) and any(one.startswith("export.quant=") for one in settings):
        rule = "only GGUF files can be quantized, and none is exported"
        raise RunError("export.quant_without_gguf", rule, place="--quant", remedy="Add --to gguf.")
    own = (run.path / "stages" / EXPORT).resolve()
    if delivery.out and delivery.out.resolve().is_relative_to(own):
        rule, remedy = "must be outside the run's own export folder", "Leave out --out, or name another folder."
        raise RunError("export.out_in_run_folder", rule, place="--out", value=str(delivery.out), remedy=remedy)


def _with_section(run: RunFolder, section: str, settings: Sequence[str]) -> Recipe:
    """Return the run's recipe with ``settings`` for one section, which is added if the recipe lacks it."""
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
    """Return the recipe for llama.cpp, which runs a GGUF file without the recipe's own backend."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"backend": "hf"})})


def _valid_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name in RESERVED_EVALUATION_NAMES:
        raise RunError(
            "evaluate.name_invalid",
            "must be 1 to 100 letters, digits, dots, dashes and underscores, begin with a letter or digit, and not be "
            "the name of one of the run's own stages",
            place="--name",
            value=name,
            remedy="Choose another name.",
        )
    return name


def _same_samples(own: Recipe, recipe: Recipe) -> bool:
    def selection(section: Any) -> tuple[Any, ...] | None:
        return (section.split, section.limit, section.max_tasks) if section else None

    return selection(own.evaluate) == selection(recipe.evaluate)


@dataclass(frozen=True, slots=True)
class _NamedRequest:
    """The name of an evaluation, and the settings and weights by which the same command recognises it."""

    name: str
    request: Record


def _choose_name(run: RunFolder, recipe: Recipe, exported: Exported | None, name: str | None) -> _NamedRequest:
    """Return the name of an evaluation: that of the user, or a free one.

    Raises:
        RunError: the name is invalid, or that of an evaluation with other settings, weights or metrics.
    """
    weights = exported.weights if exported else run.trained_weights()
    request = {
        "settings": recipe.evaluation.model_dump(mode="json"),
        "model": exported and run.relative(exported.weights),
        "files": [list(file) for file in weights_identity(weights)[1]],
    }

    def is_taken(name: str) -> bool:
        """Return whether the run has this evaluation, unless the same command made it."""
        stage = evaluation_stage(name)
        if not run.is_done(stage):
            return False
        is_same = read_saved(_request_file(run, name)) == request
        return not is_same or has_other_metrics(run.result(stage, EvaluationResult), recipe)

    if name is not None:
        if is_taken(_valid_name(name)):
            rule, remedy = "the name of an evaluation must be new in the run", "Choose another name."
            raise RunError("evaluate.name_taken", rule, place=run.path, value=name, remedy=remedy)
        return _NamedRequest(name, request)
    if exported is not None and not is_taken(exported.name):
        return _NamedRequest(_valid_name(exported.name), request)
    number, base = (2, _valid_name(exported.name)) if exported else (1, "again")
    while is_taken(f"{base}-{number}"):
        number += 1
    return _NamedRequest(f"{base}-{number}", request)


def _request_file(run: RunFolder, name: str) -> Path:
    """Return the file with the settings of an evaluation, by which the same command recognises it.

    Without a name, it exists until the command has written everything.
    """
    return run.path / "stages" / evaluation_stage(name) / "request.json"
