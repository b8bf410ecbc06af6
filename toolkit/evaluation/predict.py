"""Answer one question with a run's model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.data.placeholders import place_images
from toolkit.data.result import DataResult
from toolkit.data.sample import Answer, Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, ImageError, RowProblem, warn
from toolkit.evaluation.answers import read_answer
from toolkit.evaluation.generate import Completer, is_whole_model, prompts_of_readable_images
from toolkit.images import read_image_header
from toolkit.models.lengths import check_lengths
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, current_weights
from toolkit.runfolder.usage import recording
from toolkit.tasks import TASKS, Task

PREDICT = "predict"
"""Name of predictions in the compute report."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question without a reference.

    Attributes:
        text: the question, without its options. None: that of the task.
        images: image files, in the order of the question.
        options: options of a multiple-choice question, with or without letters.
        context: column of prompt.context -> text. A missing column causes a warning.
        place: what errors name the question by.
    """

    text: str | None
    images: Sequence[Path] = ()
    options: Sequence[str] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    place: str = "--question"


def predict(
    run: RunFolder,
    question: str,
    images: Sequence[Path],
    options: Sequence[str] = (),
    context: Mapping[str, str] | None = None,
    weights: Path | None = None,
) -> Answer:
    """Answer a question with greedy decoding. Prompt and images are processed as in training.

    Args:
        run: a run. Its last trained weights are used, or its base model if nothing was trained.
        question: the question, without its options.
        images: image files, in the order of the question.
        options: options of a multiple-choice question, with or without letters.
        context: column of prompt.context -> text. A missing column causes a warning.
        weights: an adapter, merged weights, or a GGUF file beside its projector, instead of the run's weights.

    Returns:
        The parsed completion.

    Raises:
        DataError: the question lacks something that its task needs, is too long, or has unknown context.
        ImageError: an image cannot be read.
        RunError: the weights that the recipe starts from are missing.
    """
    recipe = run.recipe(TASKS)
    sample = read_question(recipe, task_settings(run, recipe), Question(question, images, options, context or {}))
    with recording(run, recipe.run, PREDICT) as recorder, recorder.stage(PREDICT):
        return _generate(recipe, sample, weights, current_weights(run, recipe))


def task_settings(run: RunFolder | None, recipe: Recipe) -> Any:
    """Return the settings of the task for a prediction, with those that the rows of the run decided.

    Args:
        run: the run. None: the weights are in no run.
        recipe: the recipe of the prediction.

    Raises:
        DataError: the run has not read its rows, and its task needs settings from them.
    """
    task = TASKS[recipe.dataset.task]
    found = run.result("data", DataResult).found if run is not None and run.is_done("data") else {}
    if task.from_rows and task.from_rows.needed and not found:
        rule = "the run must have read its rows, which decide settings of its task"
        raise DataError("predict.rows_not_read", rule, place="[data]", remedy="Start the run with toolkit run.")
    return task.settings_of(recipe, PREDICT, found)


def _generate(recipe: Recipe, sample: Sample, chosen: Path | None, own: Path | None) -> Answer:
    prompts = prompts_of_readable_images(recipe)
    for number, ref in enumerate(sample.images, 1):
        try:
            read_image_header(ref, prompts.images.policy)
        except ImageError as error:
            raise error.at(f"--image, image {number}") from None
    completer = Completer.load(recipe, prompts, chosen or own, stored=is_whole_model(chosen))
    limit = recipe.evaluation.max_completion_tokens
    check_lengths(completer.policy.processor, prompts, [sample], recipe.model.max_tokens, answer_tokens=limit)
    return read_answer(prompts.task, sample, completer.complete([sample])[0])


def read_question(recipe: Recipe, settings: Any, question: Question) -> Sample:
    """Return the question as a sample of the task, so that its prompt is the same as in training.

    Raises:
        DataError: the question lacks something that its task needs, or has unknown context.
    """
    task = TASKS[recipe.dataset.task]
    _check_options(task, question.options)
    given = {"question": question.text} if question.text is not None else {}
    row = {
        **given,
        "options": list(question.options),
        "image": [str(path.absolute()) for path in question.images],
        # A task reads only rows with a reference. This one is removed below.
        **task.placeholders(settings),
    }
    source = RowOrigin(Path("--question"), Path("/"), dict(zip(row, row, strict=True)), settings=settings)
    try:
        sample = place_images(task, task.read("question", row, source))
    except RowProblem as problem:
        raise invalid_question(problem, question.place) from problem
    alone = replace(sample, fields={**sample.fields, **given}, reference={})
    return _with_context(recipe, alone, question.context)


def _with_context(recipe: Recipe, sample: Sample, context: Mapping[str, str]) -> Sample:
    check_context(recipe, context, "--context")
    for name in recipe.prompt.context:
        if name not in context:
            warn(
                "predict.context_missing",
                "the prompt had this context in training, but this question has none",
                place="--context",
                value=name,
                remedy=f"Add --context {name}=...",
            )
    return replace(sample, fields={**sample.fields, **context})


def check_context(recipe: Recipe, context: Mapping[str, str], place: str) -> None:
    """Check that context has only names of prompt.context. Raises DataError otherwise."""
    names = recipe.prompt.context
    if unknown := sorted(set(context) - set(names)):
        raise DataError(
            "predict.context_unknown",
            "context must have names from the recipe's prompt.context",
            place=place,
            value=unknown,
            remedy=f"Choose from: {', '.join(names)}." if names else "Leave the context out.",
        )


def invalid_question(problem: RowProblem, place: str) -> DataError:
    """Return the error of a question that its task cannot read as a row."""
    rule = f"the question must be valid: {problem.reason}"
    return DataError("predict.question_invalid", rule, place=place, value=problem.problem.value)


def _check_options(task: Task, options: Sequence[str]) -> None:
    if task.takes_options and len(options) < 2:
        raise DataError(
            "predict.too_few_options",
            "a multiple-choice question must have at least two options",
            place="--option",
            value=list(options),
            remedy='Give each with --option "A. text".',
        )
    if not task.takes_options and options:
        raise DataError(
            "predict.options_not_allowed",
            "only a multiple-choice question may have options",
            place="--option",
            value=list(options),
        )
