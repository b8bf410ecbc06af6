"""The Python API: the commands of `toolkit` as functions. ``import toolkit`` imports them when they are first used.

Each function loads the recipe or the run folder and calls the same code as the command of its name. It prints nothing
and logs to the logger ``toolkit``. Errors are subclasses of ``toolkit.errors.ToolkitError``, also for a value of the
wrong type. An unknown or missing argument is a ``TypeError``, as for every Python function.
"""

import functools
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args, get_origin

from toolkit.errors import ToolkitError, path_error

if TYPE_CHECKING:
    from toolkit.data.sample import Answer
    from toolkit.evaluation.predict_rows import RowPredictions
    from toolkit.evaluation.predictor import Predictor
    from toolkit.exporting.results import ExportResult
    from toolkit.imagegen.results import ImagegenResult
    from toolkit.pipeline import RunResults
    from toolkit.pipeline.plan import AnyPlan
    from toolkit.pipeline.seeds import SeedsResult
    from toolkit.recipe import Recipe


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_MODULE = re.compile(r"\b(?:collections\.abc|pathlib|typing)\.")


def _checked(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return the function with a ToolkitError for an argument of the wrong type, and for an impossible path."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # raises the same error, with the function's name
        for name, value in given.items():
            kind = signature.parameters[name].annotation
            if not _fits(value, kind):
                rule = f"must be {_MODULE.sub('', inspect.formatannotation(kind))}"
                place, remedy = f"toolkit.{function.__name__}({name})", "Pass a value of this type."
                raise ToolkitError("api.argument_type", rule, place=place, value=value, remedy=remedy)
        try:
            return function(*args, **kwargs)
        except (OSError, RuntimeError, ValueError) as error:
            if rejected := path_error(error):
                raise rejected from error
            raise

    return call


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value has the type of an annotation. A single text counts as a sequence of texts."""
    if kind is Any:
        return True
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Sequence:
        if isinstance(value, Mapping):
            return False
        entries = value if isinstance(value, Collection) and not isinstance(value, str) else ()
        return isinstance(value, Iterable | Path) and all(_fits(one, get_args(kind)[0]) for one in entries)
    if get_origin(kind) is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, os.PathLike if kind is Path else type(None) if kind is None else kind)


@_checked
def run(
    recipe: Path | str,
    settings: Sequence[str] = (),
    *,
    fresh: bool = False,
    dry_run: bool = False,
    seeds: int | Sequence[int] | None = None,
) -> "RunResults | ImagegenResult | SeedsResult":
    """Run all stages of a recipe, or resume where the run stopped.

    Args:
        recipe: the TOML file of the recipe.
        settings: overrides, such as ``"grpo.learning_rate=1e-6"``.
        fresh: start again. An old run of this name is renamed to NAME.old-1.
        dry_run: run every stage on a few rows with tiny models, in the folder NAME.dry-run.
        seeds: repeat the training with the seeds 1 to N for a number N, or with those of a list. Each seed is a run of
            its own, NAME-seed-1. Not with ``dry_run``.

    Returns:
        The results of the run. For a recipe with [imagegen] these are an ``ImagegenResult``, and with ``seeds`` a
        ``SeedsResult``.

    Raises:
        RecipeError: the recipe is invalid, or files that it names are missing.
        PlanError: the run certainly cannot work.
        ToolkitError: a stage failed. Call ``run`` again to resume.
    """
    from toolkit.pipeline import run_recipe
    from toolkit.pipeline.plan import plan_run
    from toolkit.pipeline.stages import STAGES
    from toolkit.recipe import load_recipe
    from toolkit.runfolder import is_main_process
    from toolkit.tasks import TASKS

    loaded = load_recipe(recipe, _several(settings), tasks=TASKS, files=not dry_run)
    if seeds is not None:
        return _run_seeds(loaded, seeds, fresh=fresh, dry_run=dry_run)
    if dry_run:
        return _dry_run(loaded)
    planned = plan_run(loaded, fresh=fresh) if is_main_process() else None
    if loaded.imagegen is not None:
        from toolkit.pipeline.imagegen import run_imagegen

        return run_imagegen(loaded, fresh=fresh, plan=planned)[1]
    return run_recipe(loaded, STAGES, fresh=fresh, plan=planned)


@_checked
def plan(
    recipe: Path | str, settings: Sequence[str] = (), *, gpu: str | float | None = None, deep: bool = False
) -> "AnyPlan":
    """Estimate what a run needs, without running it.

    Args:
        recipe: the TOML file of the recipe.
        settings: overrides, such as ``"grpo.learning_rate=1e-6"``.
        gpu: the GPU to plan for, by name (``"T4"``) or memory in GB (``16``). None: the GPU of this machine.
        deep: try one batch of every stage on a small random model of the real architecture.

    Returns:
        The plan. ``plan.problems`` is empty if the run can work, and ``plan.to_json()`` returns all figures.

    Raises:
        RecipeError: the recipe is invalid.
        PlanError: no GPU with known figures has the name ``gpu``, or its memory is out of range.
    """
    from toolkit.pipeline.plan import parse_gpu, plan_recipe
    from toolkit.planning import find_gpu
    from toolkit.recipe import for_language_models, load_recipe
    from toolkit.tasks import TASKS

    loaded = load_recipe(recipe, _several(settings), tasks=TASKS)
    if deep:
        for_language_models(loaded, "toolkit.plan(deep=True)")
    return plan_recipe(loaded, find_gpu() if gpu is None else parse_gpu(str(gpu)), deep=deep)


@_checked
def evaluate(
    run_folder: Path | str, settings: Sequence[str] = (), *, name: str | None = None, model: str | None = None
) -> "RunResults":
    """Evaluate a run's model, or one of its exports, on the held-out split.

    Args:
        run_folder: a run folder, such as ``"runs/quickstart"``.
        settings: overrides of [evaluate], such as ``"evaluate.limit=100"``.
        name: the name of the evaluation. Default: the name of the model, otherwise again-1, again-2, …
        model: adapter, merged, gguf, a quantization such as q8_0, or a path. Default: the last trained weights.

    Returns:
        The evaluations of the run with this one as the last row, compared with the earlier ones.

    Raises:
        RunError: the folder is not a run, the name is taken, or a setting does not belong to [evaluate].
    """
    from toolkit.pipeline.existing_run import evaluate_again
    from toolkit.pipeline.stages import STAGES

    return evaluate_again(Path(run_folder), STAGES, _several(settings), name=name, model=model)


@_checked
def export(
    run_folder: Path | str,
    settings: Sequence[str] = (),
    *,
    to: Sequence[str] = (),
    quant: Sequence[str] = (),
    out: Path | str | None = None,
    force: bool = False,
) -> "ExportResult":
    """Export a run's model and verify the exported weights.

    Args:
        run_folder: a run folder, such as ``"runs/quickstart"``.
        settings: overrides of [export], such as ``"export.verify=0"``.
        to: formats: adapter, merged, gguf. Default: those of the recipe.
        quant: GGUF quantizations: f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m. Default: those of the recipe.
        out: the folder to write to. Default: the run folder.
        force: rename an existing folder in ``out`` to NAME.old-1 instead of raising an error.

    Returns:
        The result of the export: folder, size and verification of each format.

    Raises:
        RunError: the folder is not a run or has no weights, or a setting does not belong to [export].
        RecipeError: a setting is invalid, or sets what ``to`` or ``quant`` sets.
        ModelError: the exported weights fail verification.
        MissingExtraError: a package that the format needs is not installed.
    """
    from toolkit.pipeline.existing_run import Delivery, export_again, export_settings
    from toolkit.pipeline.stages import STAGES

    chosen = export_settings(_several(to), _several(quant), _several(settings))
    return export_again(Path(run_folder), STAGES, chosen, Delivery(None if out is None else Path(out), force=force))


@_checked
def predict(
    run_folder: Path | str,
    question: str,
    images: Sequence[Path | str],
    *,
    options: Sequence[str] = (),
    context: Mapping[str, str] | None = None,
    model: str | None = None,
) -> "Answer":
    """Answer one question about one or more images with greedy decoding.

    Args:
        run_folder: a run folder, or weights inside one.
        question: the question, without its options.
        images: image files, in the order of the question.
        options: the options of a multiple-choice question, with or without letters.
        context: column of ``prompt.context`` -> its text.
        model: adapter, merged, gguf, a quantization such as q8_0, or a path. Default: the last trained weights.

    Returns:
        The completion (``text``), the parsed values, and why it could not be parsed (``problem``).

    Raises:
        RunError: the folder is not a run, or the weights are missing.
        DataError: the question lacks something that its task needs, or is too long.
        ImageError: an image cannot be read.
    """
    from toolkit.pipeline.existing_run import open_for_inference

    opened, weights = open_for_inference(Path(run_folder), model)
    from toolkit.evaluation.predict import predict as answer  # after Unsloth is imported

    paths = [Path(image) for image in _several(images)]
    return answer(opened, question, paths, _several(options), context, weights)


@_checked
def predict_rows(  # noqa: PLR0913 (the options of the command)
    run_folder: Path | str,
    data: Path | str,
    out: Path | str,
    settings: Sequence[str] = (),
    *,
    fields: Mapping[str, Any] | None = None,
    image_root: Path | str | None = None,
    model: str | None = None,
) -> "RowPredictions":
    """Predict every row of a file, or every image of a folder, and write a table. The same call resumes.

    Args:
        run_folder: a run folder, or weights inside one.
        data: a source of rows in any format, a folder of images, or one image. References in the rows are ignored.
        out: the table to write: .csv or .jsonl. It must not exist.
        settings: overrides of ``data.columns``, ``data.max_dropped``, ``images.unreadable`` and
            ``evaluate.batch_size``, such as ``"images.unreadable=skip"``.
        fields: values of every row: ``question`` and ``options`` if the rows have none, and for a folder of images the
            columns of ``prompt.context``.
        image_root: the folder of relative image paths. Default: that of the source.
        model: adapter, merged, gguf, a quantization such as q8_0, or a path. Default: the last trained weights.

    Returns:
        The file, the number of its rows, and counts of problems and of unusable rows.

    Raises:
        RunError: the folder is not a run, the weights are missing, ``out`` exists, or another setting is given.
        DataError: the rows do not fit the recipe.
        ImageError: images cannot be read, and the recipe has ``unreadable = "stop"``.
        Interrupted: after a signal. The same call resumes.
    """
    from toolkit.pipeline.existing_run import open_for_inference
    from toolkit.runfolder import StopRequest

    with StopRequest() as stop:
        opened, weights = open_for_inference(Path(run_folder), model)
        from toolkit.evaluation.predict_rows import RowsRequest, predict_rows  # after Unsloth is imported
        from toolkit.evaluation.unlabelled_rows import Constants

        context = dict(fields or {})
        question, options = context.pop("question", None), _several(context.pop("options", ()))
        root = None if image_root is None else Path(image_root)
        constants = Constants(question, tuple(options), context)
        request = RowsRequest(Path(data), Path(out), root, constants, settings=_several(settings))
        return predict_rows(opened, request, stop, weights=weights)


@_checked
def load_predictor(
    model_path: Path | str, base_model_name: str | None = None, *, recipe: Path | str | None = None
) -> "Predictor":
    """Load a model that predicts one question or GUI step after another.

    Args:
        model_path: a run folder (its last trained weights), an adapter, a merged model, or a GGUF file.
        base_model_name: Hub name or folder of the base model. Default: as the run or the adapter says.
        recipe: the recipe that defines the prompt. Default: that of the run that contains ``model_path``.

    Returns:
        A predictor. ``predictor.predict(question, images, ...)`` returns an answer. With agent memory,
        ``predictor.predict_step(image_path, user_goal, ...)`` returns one step and the agent memory after it.

    Raises:
        RunError: there are no weights.
        ModelError: the base model is unknown or not available.
        DataError: the task needs settings from the rows of a run, and there are none.
    """
    from toolkit.errors import RunError
    from toolkit.pipeline.existing_run import open_for_inference

    try:
        # It checks the run and imports Unsloth if its recipe uses it. ``load`` finds run and weights itself.
        open_for_inference(Path(model_path))
    except RunError as error:
        if error.code != "run.not_a_run_folder":
            raise
    from toolkit.evaluation.predictor import load_predictor as load  # after Unsloth is imported

    return load(model_path, base_model_name, recipe=recipe)


def _several(values: Any) -> list[Any]:
    """Return a list. A single text or path counts as one entry. Otherwise its characters would be the entries."""
    return [values] if isinstance(values, str | Path) else list(values)


def _run_seeds(recipe: "Recipe", seeds: int | Sequence[int], *, fresh: bool, dry_run: bool) -> "SeedsResult":
    from toolkit.pipeline import RunResults, run_recipe
    from toolkit.pipeline.plan import plan_run
    from toolkit.pipeline.seeds import check_seeds, count_seeds, run_seeds
    from toolkit.pipeline.stages import STAGES
    from toolkit.runfolder import is_main_process

    if dry_run:
        rule, remedy = "must not be set together with dry_run", "Leave one of them out."
        raise ToolkitError("api.arguments_conflict", rule, place="toolkit.run(seeds)", value=seeds, remedy=remedy)

    def run_one(one: "Recipe") -> RunResults:
        planned = plan_run(one, fresh=fresh) if is_main_process() else None
        return run_recipe(one, STAGES, fresh=fresh, plan=planned)

    chosen = count_seeds(seeds) if isinstance(seeds, int) else check_seeds(list(seeds))
    return run_seeds(recipe, chosen, run_one, fresh=fresh)


def _dry_run(recipe: "Recipe") -> "RunResults | ImagegenResult":
    from toolkit.pipeline.stages import STAGES

    if recipe.imagegen is not None:
        from toolkit.pipeline.imagegen_dry_run import dry_run_imagegen

        return dry_run_imagegen(recipe)[1]
    from toolkit.pipeline.dry_run import dry_run

    return dry_run(recipe, STAGES).results
