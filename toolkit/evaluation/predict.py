"""Answer one question about one or more images with a run's model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, RowProblem, warn
from toolkit.evaluation.answers import read_answer
from toolkit.images import ImageStore
from toolkit.models import choose_backend
from toolkit.models.backend import Sampling
from toolkit.models.lengths import check_lengths
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, current_weights
from toolkit.runfolder.usage import recording
from toolkit.tasks import TASKS, Task

PREDICT = "predict"
"""Name of predictions in the compute report."""


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
    sample = _with_context(recipe, _sample(recipe, question, images, options), context or {})
    with recording(run, recipe.run, PREDICT) as recorder, recorder.stage(PREDICT):
        return _generate(recipe, sample, weights, current_weights(run, recipe))


def _generate(recipe: Recipe, sample: Sample, chosen: Path | None, own: Path | None) -> Answer:
    # A prediction on the gray placeholder of an unreadable image would be meaningless.
    prompts = Prompts.of(recipe, ImageStore.from_recipe(recipe.images.model_copy(update={"unreadable": "stop"})))
    weights, stored = chosen or own, chosen is not None and (chosen / "config.json").is_file()
    backend = choose_backend(recipe.model, weights)
    policy = backend.load(recipe, weights, trainable=False, mergeable=stored)
    limit = recipe.evaluation.max_completion_tokens
    check_lengths(policy.processor, prompts, [sample], recipe.model.max_tokens, answer_tokens=limit)
    completion = backend.generate(policy, [prompts.row(sample)], Sampling(limit))[0][0]
    return read_answer(prompts.task, sample, completion)


def _sample(recipe: Recipe, question: str, images: Sequence[Path], options: Sequence[str]) -> Sample:
    """Return the question as a sample of the task, so that its prompt is the same as in training."""
    task = TASKS[recipe.dataset.task]
    _check_options(task, options)
    settings = task.settings(recipe, "predict")
    row = {
        "question": question,
        "options": list(options),
        "image": [str(path.absolute()) for path in images],
        # A task reads only rows with a reference. This one is removed below.
        **task.placeholders(settings),
    }
    source = RowOrigin(Path("--question"), Path("/"), dict(zip(row, row, strict=True)), settings=settings)
    try:
        sample = task.read("question", row, source)
    except RowProblem as problem:
        raise DataError(
            "predict.question_invalid",
            f"the question must be valid: {problem.reason}",
            place="--question",
            value=problem.problem.value,
        ) from problem
    return replace(sample, fields={**sample.fields, "question": question}, reference={})


def _with_context(recipe: Recipe, sample: Sample, context: Mapping[str, str]) -> Sample:
    names = recipe.prompt.context
    if unknown := sorted(set(context) - set(names)):
        raise DataError(
            "predict.context_unknown",
            "context must have names from the recipe's prompt.context",
            place="--context",
            value=unknown,
            remedy=f"Choose from: {', '.join(names)}." if names else "Leave the context out.",
        )
    for name in names:
        if name not in context:
            warn(
                "predict.context_missing",
                "the prompt had this context in training, but this question has none",
                place="--context",
                value=name,
                remedy=f"Add --context {name}=...",
            )
    return replace(sample, fields={**sample.fields, **context})


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
