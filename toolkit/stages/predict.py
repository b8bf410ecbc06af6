"""Prediction: one question about one or more pictures, asked of a run's model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.backends import choose_backend
from toolkit.backends.base import Sampling
from toolkit.errors import DataError
from toolkit.images import ImageStore
from toolkit.recipe import Evaluate, Recipe
from toolkit.run import RunFolder, find_weights
from toolkit.sample import Answer, ImageRef, Sample
from toolkit.stages.answers import read_answer
from toolkit.stages.lengths import check_lengths
from toolkit.stages.prompts import Prompts

LETTERS = "ABCDEFGH"


def predict(run: RunFolder, question: str, images: Sequence[Path], options: Sequence[str] = ()) -> Answer:
    """The run's greedy answer, with pictures and prompt treated as in training.

    Args:
        run: a run; its last trained weights are asked, or its base model where nothing was trained.
        question: without its options.
        images: pictures, in the order of the question.
        options: of a multiple-choice question, with or without their letters.

    Raises:
        DataError: the question lacks what its task needs, or is too long.
        ImageError: a picture cannot be read.
    """
    recipe = run.recipe()
    sample = _sample(recipe, question, images, options)
    store = ImageStore.of(recipe.images)
    prompts = Prompts.of(recipe, store)
    backend = choose_backend(recipe.model)
    adapter = recipe.model.adapter
    weights = run.trained_weights() or (find_weights(adapter) if adapter else None)
    policy = backend.load(recipe, weights, trainable=False)
    limit = (recipe.evaluate or Evaluate()).max_completion_tokens
    check_lengths(policy.processor, prompts, [sample], recipe.model.max_tokens, answer_tokens=limit)
    completion = backend.generate(policy, [prompts.row(sample)], Sampling(limit))[0][0]
    return read_answer(prompts.task, sample, completion)


def _sample(recipe: Recipe, question: str, images: Sequence[Path], options: Sequence[str]) -> Sample:
    task = recipe.data.task
    if task == "mcq" and len(options) < 2:
        raise DataError(
            "a multiple-choice question must have at least two options",
            place="--option",
            value=list(options),
            remedy='Give each with --option "A. text".',
        )
    fields: dict[str, Any] = {"question": question}
    if task == "mcq":
        fields["options"] = _options(options)
    if task == "vqa":
        fields["answer_type"] = "open"
    return Sample("question", task, "question", tuple(ImageRef(path.absolute()) for path in images), fields, {})


def _options(options: Sequence[str]) -> dict[str, str]:
    """Letter -> text; letters in front of the texts are taken off when all have theirs in order."""
    named = [option.partition(".") for option in options]
    if all(letter.strip() == LETTERS[i] and dot for i, (letter, dot, _) in enumerate(named)):
        return {letter.strip(): text.strip() for letter, _, text in named}
    return dict(zip(LETTERS, (option.strip() for option in options), strict=False))
