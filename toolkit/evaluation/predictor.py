"""Load a model, and predict one question or GUI step after another.

>>> load_predictor("runs/quickstart").predict("Which side?", ["1.png"]).values             # doctest: +SKIP
>>> predictor = load_predictor("runs/steps")                                               # doctest: +SKIP
>>> first = predictor.predict_step(image_path="1.png", user_goal="Load the MRI scan")      # doctest: +SKIP
>>> predictor.predict_step(                                                                # doctest: +SKIP
...     image_path="2.png",
...     user_goal="Load the MRI scan",
...     short_term_memory=first.short_term_memory,
...     long_term_memory=first.long_term_memory,
... )
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import tiny
from toolkit.data.episodes import Memory
from toolkit.data.sample import Answer, Sample
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, ImageError, ModelError, RowProblem, warn
from toolkit.evaluation.answers import read_reply
from toolkit.evaluation.episodes import task_with_memory
from toolkit.evaluation.generate import Completer, prompts_of_readable_images
from toolkit.evaluation.predict import Question, check_context, invalid_question, read_question, task_settings
from toolkit.images import ImagePolicy, read_image_header
from toolkit.images.ref import ImageRef
from toolkit.models import Backend
from toolkit.models.adapter_config import read_adapter_config
from toolkit.models.llamacpp import is_gguf
from toolkit.recipe import Evaluate, Model, Recipe, Run, for_language_models, load_recipe, recipe_model
from toolkit.runfolder import current_weights, find_run, find_weights, is_run
from toolkit.runfolder.manifest import check_weights
from toolkit.tasks import TASKS, Task

ANSWER_TOKENS = 512
"""Maximum length of a completion in tokens without a recipe: enough for both agent memories."""


@dataclass(frozen=True, slots=True)
class StepPrediction:
    """One predicted GUI step.

    Attributes:
        action: one of the recipe's actions, or None if no action could be parsed.
        target: the object of the action in the model's words, or None.
        coords: (x, y) or (x1, y1, x2, y2) in pixels of the screenshot file, from the upper left corner. They are not
            clipped to the screenshot. None if the model gave no coordinates.
        short_term_memory: agent memory for the next call: that of the completion merged by key into that of the call.
            It is that of the call if the completion could not be parsed.
        long_term_memory: likewise.
        reason: the reason that the model gave, or None.
        problem: why no step could be parsed, or why the prompt was skipped. None if a step was parsed.
        completion: the text of the model.
        truncated: whether the completion reached evaluate.max_completion_tokens.
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
    """A loaded model. It keeps no state between calls.

    Attributes:
        recipe: defines the prompt.
        completer: the loaded model.
        settings: the settings of the task, with those that the rows of the run decided.
    """

    recipe: Recipe
    completer: Completer
    settings: Any = None

    @property
    def task(self) -> Task:
        """Return the task of the model."""
        return self.completer.prompts.task

    def predict(
        self,
        question: str | None = None,
        images: Sequence[Path | str] = (),
        *,
        options: Sequence[str] = (),
        context: Mapping[str, str] | None = None,
    ) -> Answer:
        """Answer one question with greedy decoding. Prompt and images are processed as in training.

        The call is not in the compute report of any run.

        Args:
            question: the question, without its options. None: that of the task.
            images: image files, in any format that training reads, in the order of the question.
            options: options of a multiple-choice question, with or without letters.
            context: column of prompt.context -> text. A missing column causes a warning.

        Returns:
            The parsed completion. ``problem`` says why it could not be parsed, or why the prompt was skipped.

        Raises:
            DataError: the question lacks something that its task needs, or the task has agent memory.
            ImageError: an image is missing or cannot be read.
        """
        return self.answer(self.question_sample(question, images, options, context))

    def question_sample(
        self,
        question: str | None,
        images: Sequence[Path | str],
        options: Sequence[str] = (),
        context: Mapping[str, str] | None = None,
    ) -> Sample:
        """Return a question as a sample of the task, for ``answer``. Arguments and errors are those of ``predict``."""
        if self.task.agent_memory is not None:
            rule, remedy = "a task with agent memory predicts GUI steps", "Use predict_step."
            raise DataError("predict.task_has_memory", rule, place="[data] task", value=self.task.name, remedy=remedy)
        files = [Path(image) for image in images]
        return read_question(
            self.recipe, self.settings, Question(question, files, options, context or {}, place="question")
        )

    def answer(self, sample: Sample) -> Answer:
        """Answer a sample of the task with greedy decoding. A prompt that does not fit has a problem as its answer.

        Raises:
            ImageError: an image is missing or cannot be read.
        """
        images = self.completer.prompts.images
        try:
            for ref in sample.images:
                images.read_header(ref)
            reply = self.completer.reply([sample])[0]
        except ImageError as error:
            number = next((place for place, ref in enumerate(sample.images, 1) if ref.path == error.path), 1)
            raise error.at(f"image {number}") from None
        return read_reply(self.task, sample, reply)

    def predict_step(
        self,
        image_path: Path | str,
        user_goal: str,
        short_term_memory: Mapping[str, Any] | None = None,
        long_term_memory: Mapping[str, Any] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> StepPrediction:
        """Predict the next GUI step towards a goal.

        The call is not in the compute report of any run.

        Args:
            image_path: the screenshot, in any format that training reads.
            user_goal: the goal, as in the rows' column Instruction.
            short_term_memory: ``StepPrediction.short_term_memory`` of the preceding step. None at the first step.
            long_term_memory: likewise.
            context: column of prompt.context -> text.

        Raises:
            ImageError: the screenshot is missing or cannot be read.
            DataError: the goal is empty, an agent memory is not a JSON object, or the recipe has no such context.
        """
        sample = self.step_sample(image_path, user_goal, short_term_memory, long_term_memory, context)
        answer = self.answer(sample)
        short, long = self.memory_after(sample, answer)
        place = answer.values.get("place")
        return StepPrediction(
            action=answer.values.get("action"),
            target=answer.values.get("target"),
            coords=None if place is None else tuple(place),
            short_term_memory=short,
            long_term_memory=long,
            reason=answer.values.get("reason"),
            problem=answer.problem,
            completion=answer.text,
            truncated=answer.truncated,
        )

    def step_sample(
        self,
        image_path: Path | str,
        user_goal: str,
        short_term_memory: Mapping[str, Any] | None = None,
        long_term_memory: Mapping[str, Any] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Sample:
        """Return a GUI step as a sample, for ``answer``. Arguments and errors are those of ``predict_step``."""
        memory = task_with_memory(self.recipe)[1].memory_of(
            _plain(short_term_memory, "short_term_memory"), _plain(long_term_memory, "long_term_memory")
        )
        return self._step_sample(Path(image_path).absolute(), user_goal, memory, context or {})

    def memory_after(self, sample: Sample, answer: Answer) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the short-term and the long-term agent memory after an answered GUI step."""
        agent_memory = task_with_memory(self.recipe)[1]
        after = agent_memory.plain(agent_memory.advance(agent_memory.held(sample), answer))
        return after["short_term"], after["long_term"]

    def _step_sample(self, image: Path, goal: str, memory: Memory, context: Mapping[str, str]) -> Sample:
        check_context(self.recipe, context, "context")
        agent_memory = task_with_memory(self.recipe)[1]
        # The size is read each time, because a program may overwrite its screenshots.
        try:
            width, height = read_image_header(
                ImageRef(image), ImagePolicy.from_recipe(self.recipe.images, self.recipe.model)
            ).size
        except ImageError as error:
            raise error.at("image_path") from None
        row = {"task": "step", "image": str(image), "question": goal, "width": width, "height": height}
        origin = RowOrigin(Path("predict_step"), Path("/"), dict(zip(row, row, strict=True)), settings=self.settings)
        try:
            sample = agent_memory.open_row("step", row, origin)
        except RowProblem as problem:
            raise invalid_question(problem, "user_goal") from problem
        return agent_memory.put(replace(sample, fields={**sample.fields, **context}), memory)


def load_predictor(
    model_path: Path | str,
    base_model_name: str | None = None,
    *,
    recipe: Path | str | None = None,
    backend: Backend | None = None,
) -> Predictor:
    """Load the model in ``model_path``.

    Args:
        model_path: a run folder (its last trained weights), or a folder with an adapter or merged weights.
        base_model_name: Hub name or folder of the base model, or "tiny". Default: as the run or the adapter says.
        recipe: the recipe that defines the prompt. Default: that of the run that contains ``model_path``, otherwise the
            defaults of the task with agent memory, with a warning.
        backend: loads the model. Default: that of the recipe.

    Raises:
        RunError: there are no weights.
        ModelError: the base model is unknown or not available.
        RecipeError: the coordinate convention of the model family is unknown.
        DataError: the task needs settings from the rows of a run, and there are none.
    """
    path = Path(model_path).absolute()
    run = next((folder for folder in (path, *path.parents) if is_run(folder)), None)
    weights = path if is_gguf(path) else find_weights(path) if path != run else None
    if is_gguf(path):
        check_weights(path)
    own = (
        load_recipe(recipe, tasks=TASKS)
        if recipe is not None
        else find_run(run).recipe(TASKS)
        if run is not None
        else None
    )
    if own is not None:
        for_language_models(own, "load_predictor")
    chosen = _named(own or _default(path, base_model_name, weights), base_model_name)
    # It reports an unknown model family before the model is loaded.
    settings = task_settings(None if run is None else find_run(run), chosen)
    if path == run:
        weights = current_weights(find_run(path), chosen)
    loaded = chosen
    if weights is not None and path != run and not _is_adapter(weights) and not is_gguf(weights):
        loaded, weights = _named(chosen, str(weights)), None  # merged weights have their own processor
    prompts = prompts_of_readable_images(chosen, memory_cache_mb=0)
    return Predictor(chosen, Completer.load(loaded, prompts, weights, backend), settings)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _named(recipe: Recipe, name: str | None) -> Recipe:
    """Return the recipe with another base model."""
    if name is None or name == recipe.model.name:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name, "revision": None})})


def _default(path: Path, base: str | None, weights: Path | None) -> Recipe:
    """Return the task's defaults for the given base model, or that of the adapter."""
    warn(
        "predict.recipe_missing",
        "the weights are not in a run and no recipe is given, so the task's defaults apply",
        place=path,
        remedy="Give recipe.",
    )
    if base is None and weights is not None and _is_adapter(weights):
        base = read_adapter_config(weights).base_model_name_or_path
        base = "tiny" if base and Path(base) == tiny.FOLDER else base
    elif base is None and not is_gguf(path):
        base = str(path)
    if not base:
        raise ModelError(
            "predict.base_model_unknown", "the base model must be known", place=path, remedy="Give base_model_name."
        )
    task = next((name for name, one in TASKS.items() if one.agent_memory), None)  # without one, data.task is rejected
    answer = Evaluate(max_completion_tokens=ANSWER_TOKENS)
    parts = {"run": Run(name="predict"), "model": Model(name=base), "data": {"task": task}, "evaluate": answer}
    return recipe_model(TASKS).model_validate(parts)


def _plain(memory: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Return a copy of an agent memory through JSON, which is independent of the caller's."""
    try:
        plain = json.loads(json.dumps(dict(memory or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(
            "predict.memory_not_json", "agent memory must be a JSON object", place=name, value=memory
        ) from error
    return dict(plain)
