"""The next step in medical software, from Python: a loaded model that is asked one step after another.

>>> predictor = load_model_for_inference("runs/steps")                                     # doctest: +SKIP
>>> first = predictor.predict_step(image_path="1.png", user_goal="Load the MRI scan")      # doctest: +SKIP
>>> predictor.predict_step(                                                                # doctest: +SKIP
...     image_path="2.png",
...     user_goal="Load the MRI scan",
...     short_term_memory=first.short_term_memory,
...     long_term_memory=first.long_term_memory,
... )
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import tiny
from toolkit.data.agent_memory import Memory
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, ModelError, RowProblem, warn
from toolkit.evaluation.answers import read_reply
from toolkit.evaluation.generate import Asker
from toolkit.evaluation.unlabelled_rows import carrying
from toolkit.images import ImagePolicy, ImageStore, read_image_header
from toolkit.images.ref import ImageRef
from toolkit.models import Backend
from toolkit.models.llamacpp import is_gguf
from toolkit.models.prompts import Prompts
from toolkit.recipe import Evaluate, Model, Recipe, Run, for_language_models, load_recipe, recipe_model
from toolkit.runfolder import current_weights, find_run, find_weights, read_json
from toolkit.tasks import TASKS

ANSWER_TOKENS = 512
"""Tokens of an answer where no recipe says how many: room for both memories."""


@dataclass(frozen=True, slots=True)
class StepPrediction:
    """One predicted step.

    Attributes:
        action: one of the recipe's actions; None: none could be read.
        target: what it acts on, in the model's words; None: it named nothing.
        coords: (x, y) or (x1, y1, x2, y2) in pixels of the screenshot's file, from its upper left corner; not clipped
            to the screenshot; None: no place.
        short_term_memory, long_term_memory: for the next call: the answer's, merged key by key into those that the call
            was given. Where the answer could not be read they are those that it was given.
        reason: the model's own; None: it gave none.
        problem: why no step could be read, or was asked for at all; None: one was read.
        completion: the model's text.
        truncated: whether it ran into evaluate.max_completion_tokens.
    """

    action: str | None
    target: str | None
    coords: tuple[float, ...] | None
    short_term_memory: Mapping[str, Any]
    long_term_memory: Mapping[str, Any]
    reason: str | None
    problem: str | None
    completion: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Predictor:
    """A loaded model; ``recipe`` says how it is asked. It remembers nothing between calls."""

    recipe: Recipe
    asker: Asker

    def predict_step(
        self,
        image_path: Path | str,
        user_goal: str,
        short_term_memory: Mapping[str, Any] | None = None,
        long_term_memory: Mapping[str, Any] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> StepPrediction:
        """The next step towards the goal on this screenshot.

        It keeps no compute record: what such calls use is in no run's ``compute.jsonl`` and in no compute report.

        Args:
            image_path: the screenshot, in any format that training reads.
            user_goal: what is to be reached, as the rows' Instruction.
            short_term_memory: what the step before left (``StepPrediction.short_term_memory``); nothing at the first.
            long_term_memory: likewise.
            context: values of the columns that the recipe's prompt.context names.

        Raises:
            ImageError: the screenshot is missing or cannot be read.
            DataError: the goal is empty, a memory is no object that JSON can hold, or the recipe names no such context.
        """
        task, carried = carrying(self.recipe)
        memory = carried.memory_of(
            _plain(short_term_memory, "short_term_memory"), _plain(long_term_memory, "long_term_memory")
        )
        question = self._question(Path(image_path).absolute(), user_goal, memory, context or {})
        reply = self.asker.reply([question])[0]
        answer = read_reply(task, question, reply)
        after = carried.plain(carried.advance(memory, answer))
        place = answer.values.get("place")
        return StepPrediction(
            action=answer.values.get("action"),
            target=answer.values.get("target"),
            coords=None if place is None else tuple(place),
            short_term_memory=after["short_term"],
            long_term_memory=after["long_term"],
            reason=answer.values.get("reason"),
            problem=answer.problem,
            completion=answer.text,
            truncated=answer.truncated,
        )

    def _question(self, image: Path, goal: str, memory: Memory, context: Mapping[str, str]) -> Sample:
        if unknown := sorted(set(context) - set(self.recipe.prompt.context)):
            raise DataError(
                "predict.context_unknown",
                "context must have names from the recipe's prompt.context",
                place="context",
                value=unknown,
            )
        task, carried = carrying(self.recipe)
        # Looked at anew each time: a program may write its screenshots over each other.
        width, height = read_image_header(ImageRef(image), ImagePolicy.from_recipe(self.recipe.images)).size
        row = {"task": "step", "image": str(image), "question": goal, "width": width, "height": height}
        settings = task.settings(self.recipe, "predict")
        origin = RowOrigin(Path("predict_step"), Path("/"), dict(zip(row, row, strict=True)), settings=settings)
        try:
            sample = carried.open_row("step", row, origin)
        except RowProblem as problem:
            raise DataError(
                "predict.question_invalid",
                f"the question must be valid: {problem.reason}",
                place="user_goal",
                value=problem.problem.value,
            ) from problem
        return carried.put(replace(sample, fields={**sample.fields, **context}), memory)


def load_model_for_inference(
    model_path: Path | str,
    base_model_name: str | None = None,
    *,
    recipe: Path | str | None = None,
    backend: Backend | None = None,
) -> Predictor:
    """The model in ``model_path``, ready to be asked.

    Args:
        model_path: a run folder (its last trained weights), a folder with an adapter, or one with whole weights.
        base_model_name: the base model's Hub name, its folder, or "tiny"; default: what the run or the adapter says.
        recipe: the TOML that says how steps are asked for; default: that of the run that ``model_path`` is or lies in,
            else the defaults of the task with agent memory, which is warned about.
        backend: who loads and asks the model; default: the recipe's.

    Raises:
        RunError: there are no weights.
        ModelError: the base model is not known or cannot be had.
        RecipeError: how the model's family writes coordinates is not known.
        DataError: the recipe is one of another task.
    """
    path = Path(model_path).absolute()
    run = next((folder for folder in (path, *path.parents) if _is_run(folder)), None)
    weights = path if is_gguf(path) else find_weights(path) if path != run else None
    own = (
        load_recipe(recipe, tasks=TASKS)
        if recipe is not None
        else find_run(run).recipe(TASKS)
        if run is not None
        else None
    )
    if own is not None:
        for_language_models(own, "load_predictor")
    asked = _named(own or _default(path, base_model_name, weights), base_model_name)
    carrying(asked)[0].settings(asked, "predict")  # an unknown family of models is told before the model is loaded
    if path == run:
        weights = current_weights(find_run(path), asked)
    loaded = asked
    if weights is not None and path != run and not _is_adapter(weights) and not is_gguf(weights):
        loaded, weights = _named(asked, str(weights)), None  # whole weights bring their own processor
    images = asked.images.model_copy(update={"unreadable": "stop", "memory_cache_mb": 0})
    prompts = Prompts.of(asked, ImageStore.from_recipe(images))
    return Predictor(asked, Asker.load(loaded, prompts, weights, backend))


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() and (folder / "recipe.toml").is_file()


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _named(recipe: Recipe, name: str | None) -> Recipe:
    """The recipe with another base model."""
    if name is None or name == recipe.model.name:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name, "revision": None})})


def _default(path: Path, base: str | None, weights: Path | None) -> Recipe:
    """The defaults of the task, on the base model that is named or that the adapter says."""
    warn(
        "predict.recipe_missing",
        "the weights are not in a run and no recipe is given, so the task's defaults apply",
        place=path,
        remedy="Give recipe.",
    )
    if base is None and weights is not None and _is_adapter(weights):
        base = read_json(weights / "adapter_config.json").get("base_model_name_or_path")
        base = "tiny" if base and Path(base) == tiny.FOLDER else base
    elif base is None and not is_gguf(path):
        base = str(path)
    if not base:
        raise ModelError(
            "predict.base_model_unknown", "the base model must be known", place=path, remedy="Give base_model_name."
        )
    task = next((name for name, one in TASKS.items() if one.carried), None)  # without one, data.task is rejected
    answer = Evaluate(max_completion_tokens=ANSWER_TOKENS)
    parts = {"run": Run(name="predict"), "model": Model(name=base), "data": {"task": task}, "evaluate": answer}
    return recipe_model(TASKS).model_validate(parts)


def _plain(memory: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """The memory as JSON has it: a copy that shares nothing with the caller's."""
    try:
        plain = json.loads(json.dumps(dict(memory or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(
            "predict.memory_not_json", "agent memory must be a JSON object", place=name, value=memory
        ) from error
    return dict(plain)
