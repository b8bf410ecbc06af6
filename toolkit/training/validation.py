"""Validation within SFT and GRPO: figures on a fixed sample, early stopping, and the best checkpoint.

A validation follows the log line of its optimizer step and precedes the checkpoint of this step. A checkpoint
therefore has all validations so far, in ``trainer_state.json``, and a resumed stage makes the same decisions. They
depend on the list of validations alone (``judge``).

The sample is drawn from the validation split with the seed. SFT has the loss of its reference answers, over the same
tokens as in training. Both stages have greedy completions, with their score and in GRPO their reward. The random state
of the training does not change.

A signal interrupts a validation. Its step is saved without it, and the resumed stage begins with this validation.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from toolkit.data.loading import check_validation_split
from toolkit.data.sample import Answer, Sample
from toolkit.data.sample_set import SampleSet, limit
from toolkit.errors import TrainingError
from toolkit.evaluation.answers import read_answer
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend
from toolkit.models.backend import Policy, Sampling
from toolkit.models.lengths import check_lengths
from toolkit.models.oom import attempt
from toolkit.models.prompts import Prompts
from toolkit.models.random_state import RandomState
from toolkit.models.vision_cache import find_tower, vision_cache_of
from toolkit.recipe import Validation as Section
from toolkit.runfolder import from_json, is_main_process
from toolkit.scoring.statistics import bootstrap_ratio, proportion
from toolkit.training import distributed
from toolkit.training.results import Validation, ValidationFigure, ValidationResult
from toolkit.training.resume import checkpoint_of, is_finished, skip_reason, stateful_callbacks
from toolkit.training.rewards import RewardTable, check_rewards_apply
from toolkit.training.sft_loss import in_place_of_trl

log = logging.getLogger(__name__)

LOSS, REWARD = "loss", "reward"
Figures = dict[str, ValidationFigure]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a list of validations decides.

    Attributes:
        best: Index of the best one, the earliest of equal ones.
        waited: Number of validations since the last improvement.
        stops: Whether the training stops early.
    """

    best: int
    waited: int
    stops: bool


def judge(values: Sequence[float], section: Section, *, lower_is_better: bool) -> Verdict:
    """Return the decision after the last of the validations.

    An improvement is a value that is better than the value of the last improvement by more than ``min_improvement``.
    Slow progress thus counts as soon as it adds up to this difference.

    >>> judge([0.5, 0.7, 0.6, 0.7], Section(patience=2), lower_is_better=False)
    Verdict(best=1, waited=2, stops=True)
    """
    goodness = [-value if lower_is_better else value for value in values]
    reference, waited = goodness[0], 0
    for value in goodness[1:]:
        if value - reference > section.min_improvement:
            reference, waited = value, 0
        else:
            waited += 1
    best = max(range(len(goodness)), key=lambda number: (goodness[number], -number))
    return Verdict(best, waited, section.patience is not None and waited >= section.patience)


@dataclass(frozen=True, slots=True)
class _History:
    """The validations in a checkpoint."""

    validations: tuple[Validation, ...] = ()


class Validator:
    """The validations of a stage.

    Args:
        context: The run, with a section [validation].
        stage: Name of the stage.
        prompts: Renders the samples.
        rewards: The rewards of the stage. None: the stage has the loss of the reference answers.

    Attributes:
        validations: The validations so far.

    Raises:
        DataError: The validation split is empty, or has a group, image or question of another split.
    """

    def __init__(self, context: Context, stage: str, prompts: Prompts, rewards: RewardTable | None) -> None:
        section = context.recipe.validation
        assert section is not None
        self.context, self.stage, self.section = context, stage, section
        self.samples = validation_samples(context, section)
        self.validations: tuple[Validation, ...] = ()
        self._prompts, self._rewards = prompts, rewards

    @classmethod
    def of(
        cls, context: Context, stage: str, prompts: Prompts, rewards: RewardTable | None = None
    ) -> "Validator | None":
        """Return the validator of a stage, or None if the recipe has no [validation]."""
        return None if context.recipe.validation is None else cls(context, stage, prompts, rewards)

    @property
    def metric(self) -> str:
        """Return the name of the figure that decides."""
        named = self.section.metric
        if named == "auto":
            return LOSS if self._rewards is None else REWARD
        return self._prompts.task.primary if named == "score" else named

    @property
    def verdict(self) -> Verdict | None:
        """Return what the validations decide. None: there is none yet."""
        values = [one.figures[self.metric].value for one in self.validations]
        return judge(values, self.section, lower_is_better=self.metric == LOSS) if values else None

    @property
    def best(self) -> Validation | None:
        """Return the best validation so far."""
        return None if self.verdict is None else self.validations[self.verdict.best]

    @property
    def stops(self) -> bool:
        """Return whether the validations so far stop the training."""
        return self.verdict is not None and self.verdict.stops

    def kept_step(self) -> int | None:
        """Return the step whose checkpoint must be kept."""
        return self.best.step if self.best and self.section.weights == "best" else None

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether a validation follows this optimizer step of ``steps``."""
        return step > 0 and (step % self.section.every_steps == 0 or step >= steps)

    def check_rows(self, policy: Policy) -> None:
        """Check the rows of the sample as those of the training.

        Raises:
            DataError: A row is too long, or contains a special token.
            RewardError: No reward applies to a row.
        """
        recipe, check = self.context.recipe, self.context.check_stop_before_first_step
        lengths = [recipe.evaluation.max_completion_tokens, *([None] if self._rewards is None else [])]
        for tokens in lengths:
            check_lengths(policy.processor, self._prompts, self.samples, recipe.model.max_tokens, tokens, on_row=check)
        if self._rewards is not None:
            check_rewards_apply(self._prompts.task, self._rewards, self.samples)
        log.info(
            "%s: validation on %d rows every %d optimizer steps",
            self.stage,
            len(self.samples),
            self.section.every_steps,
        )

    def read(self, checkpoint: Path | None) -> None:
        """Read the validations in a checkpoint. None: there are none."""
        state = {} if checkpoint is None else stateful_callbacks(checkpoint)
        self.restore(state.get(ValidateSteps.__name__))

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Restore the validations from ``ValidateSteps.state``. None: there are none."""
        self.validations = from_json(_History, state["attributes"]).validations if state else ()

    def add(self, step: int, figures: Figures) -> None:
        """Add a validation.

        Raises:
            TrainingError: Its value of the metric that decides is missing, or not finite.
        """
        decides = figures.get(self.metric)
        if decides is not None and not math.isfinite(decides.value):
            raise TrainingError(
                "training.validation_not_finite",
                f"{self.metric} of a validation must be finite",
                place=f"{self.stage}, step {step}",
                value=decides.value,
                remedy="Lower learning_rate and start again with --fresh.",
            )
        if decides is None:
            raise TrainingError(
                "training.validation_metric_missing",
                "the metric must apply to at least one validation row",
                place="[validation] metric",
                value=self.metric,
                remedy="Choose another metric, or other validation rows.",
            )
        self.validations += (Validation(step, figures),)

    def measure(self, backend: Backend, policy: Policy, *, interruptible: bool) -> Figures | None:
        """Return the figures of a policy on the sample. None: a signal came, and ``interruptible``.

        Raises:
            TrainingError: A row does not fit into GPU memory.
            ModelError: A single completion does not fit into GPU memory.
        """
        stop = self.context.stop
        with _unchanged_random_state():
            sums, answers = [], list[Answer]()
            for sample in self.samples if self._rewards is None else ():
                if interruptible and stop.requested:
                    return None
                sums.append(self._supervised_loss(backend, policy, sample))
            for batch in self._batches():
                if interruptible and stop.requested:
                    return None
                answers += self._answer(backend, policy, batch)
                self.context.progress(f"{self.stage} validation", len(answers), len(self.samples), "")
        loss = {}
        if sums:
            loss = {LOSS: self._token_mean(sums)}
        return {**loss, **self._score(answers)}

    def finish(self, backend: Backend, policy: Policy, folder: Path, last: int) -> ValidationResult | None:
        """Load the parameters of the best checkpoint, unless they are those of the ``last`` step. Return the result.

        The checkpoint of the last step exists, whether or not the training stopped early.

        Raises:
            TrainingError: The checkpoint is missing or damaged.
        """
        best = self.best
        if best is None:
            return None
        step = self.kept_step() or last
        if step != last:
            backend.restore(policy, _intact(checkpoint_of(folder, step)))
        reason = None
        if self.stops and not is_finished(checkpoint_of(folder, last)):
            reason = f"{self.metric} did not improve in {self.section.patience} validations"
        log.info(
            "%s: %s weights are those of step %d (best %s %.4g at step %d)%s",
            *(self.stage, self.section.weights, step, self.metric, best.figures[self.metric].value, best.step),
            f". Training stopped at step {last}: {reason}" if reason else "",
        )
        return ValidationResult(
            rows=len(self.samples),
            metric=self.metric,
            lower_is_better=self.metric == LOSS,
            best_step=best.step,
            best_value=best.figures[self.metric].value,
            weights_step=step,
            stopped_early=reason,
            validations=self.validations,
        )

    def _batches(self) -> Iterator[Sequence[Sample]]:
        size = self.context.recipe.evaluation.batch_size
        yield from (self.samples[start : start + size] for start in range(0, len(self.samples), size))

    def _supervised_loss(self, backend: Backend, policy: Policy, sample: Sample) -> tuple[float, int]:
        row = self._prompts.row(sample, answer=True)
        found = attempt(lambda: backend.supervised_loss(policy, row)) or attempt(
            lambda: backend.supervised_loss(policy, row)  # the first error has freed what torch held without using it
        )
        if found is None:
            raise TrainingError(
                "training.validation_out_of_memory",
                "GPU memory must be large enough for the loss of one row",
                place=sample.shown,
                value="out of memory",
                remedy="Lower images.max_side, or leave out long validation rows.",
            )
        return found

    def _answer(self, backend: Backend, policy: Policy, batch: Sequence[Sample]) -> list[Answer]:
        sampling = Sampling(self.context.recipe.evaluation.max_completion_tokens)
        groups = backend.generate(policy, [self._prompts.row(sample) for sample in batch], sampling)
        _forget_images(policy.model)
        return [read_answer(self._prompts.task, sample, one) for sample, (one,) in zip(batch, groups, strict=True)]

    def _score(self, answers: Sequence[Answer]) -> Figures:
        task, pairs = self._prompts.task, list(zip(self.samples, answers, strict=True))
        values: dict[str, list[float | None]] = {task.primary: [task.scores(*pair)[task.primary] for pair in pairs]}
        if self._rewards is not None:
            values[REWARD] = [self._rewards.score(*pair).total for pair in pairs]
        values["unreadable"] = [float(answer.problem is not None) for answer in answers]
        values["truncated"] = [float(answer.truncated) for answer in answers]
        figures = {name: self._mean(column) for name, column in values.items()}
        return {name: figure for name, figure in figures.items() if figure is not None}

    def _mean(self, values: Sequence[float | None]) -> ValidationFigure | None:
        """Return the mean of the rows that have a value."""
        recipe, rows = self.context.recipe, zip(values, self.samples, strict=True)
        known = [(value, sample.group) for value, sample in rows if value is not None]
        numbers, groups = [value for value, _ in known], [group for _, group in known]
        found = proportion(numbers, groups, recipe.evaluation.bootstrap, recipe.run.seed)
        return None if found.value is None else ValidationFigure(found.value, found.n, found.low, found.high)

    def _token_mean(self, sums: Sequence[tuple[float, int]]) -> ValidationFigure:
        """Return the mean over the tokens of all rows, from the sum and the number of tokens of each row."""
        recipe, groups = self.context.recipe, [sample.group for sample in self.samples]
        losses, tokens = [total for total, _ in sums], [number for _, number in sums]
        if not math.isfinite(sum(losses)):
            return ValidationFigure(sum(losses) / sum(tokens), len(sums))
        found = bootstrap_ratio(losses, tokens, groups, recipe.evaluation.bootstrap, recipe.run.seed)
        assert found.value is not None
        return ValidationFigure(found.value, found.n, found.low, found.high)


class StoppedBeforeFirstStep(Exception):
    """A resumed stage begins with a validation that stops it. The trainer can only stop after a step."""


class ValidateSteps(TrainerCallback, ExportableState):
    """Validates within one trainer.

    The trainer's ``evaluate`` is replaced by an instance attribute. transformers calls it between the log line and the
    checkpoint of a step (checked: 5.15) if a callback requests it.

    Args:
        trainer: The trainer.
        backend: The backend of the policy.
        policy: The policy that is trained.
        validator: The validations of the stage.
    """

    def __init__(self, trainer: Any, backend: Backend, policy: Policy, validator: Validator) -> None:
        self._trainer, self._validator = trainer, validator
        self._measure: Callable[..., Figures | None] = partial(validator.measure, backend, policy)
        trainer.evaluate = self._evaluate
        trainer.add_callback(self)

    def state(self) -> dict[str, Any]:
        """Return the validations so far for the checkpoint."""
        return {"args": {}, "attributes": asdict(_History(self._validator.validations))}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the validations of the checkpoint. Make the one that a signal has interrupted.

        Raises:
            Interrupted: A signal came.
            StoppedBeforeFirstStep: This validation stops the training.
        """
        validator, step = self._validator, state.global_step
        known: Any = state.stateful_callbacks
        validator.restore(known.get(type(self).__name__) if step else None)
        done = {one.step for one in validator.validations}
        if validator.is_due(step, state.max_steps) and step not in done and not validator.stops:
            self._evaluate()
            validator.context.stop.check(f"{validator.stage} is saved after step {step}")
            if validator.stops:
                raise StoppedBeforeFirstStep

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request a validation if one is due."""
        if self._validator.is_due(state.global_step, state.max_steps):
            control.should_evaluate = True

    def _evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate in place of the trainer's ``evaluate``. Set what follows: a checkpoint, the end of the training."""
        trainer, validator = self._trainer, self._validator
        state, control, stop = trainer.state, trainer.control, validator.context.stop
        figures, number = None, 0
        with _training_loss(trainer.args):
            if is_main_process():
                figures = self._measure(interruptible=state.global_step < state.max_steps)
                number = 0 if figures is not None else stop.number or 0
        figures, number = distributed.from_main((figures, number))
        if figures is None:
            stop.join(number)
            control.should_save = control.should_training_stop = True
            return {}
        validator.add(state.global_step, figures)
        metrics = {f"validation/{name}": figure.value for name, figure in figures.items()}
        metrics["validation/n"] = len(validator.samples)
        if not self._is_logged(state.global_step):
            # TRL's own log would add its training metrics that are not logged yet.
            Trainer.log(trainer, metrics)
        if validator.kept_step() == state.global_step:
            control.should_save = True
        if validator.stops and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        trainer.callback_handler.on_evaluate(trainer.args, state, control, metrics)
        return metrics

    def _is_logged(self, step: int) -> bool:
        """Return whether an interrupted start has logged this validation. It was repeated from the same checkpoint."""
        lines = self._validator.context.run.metrics()
        return any(
            line["stage"] == self._validator.stage and line["step"] == step and "validation/n" in line for line in lines
        )


def validation_samples(context: Context, section: Section) -> SampleSet:
    """Return the rows of the validation split that are validated, drawn with the seed.

    Raises:
        DataError: The split is empty, or has a group, image or question of another split.
    """
    check_validation_split(context.data)
    samples = context.data.validation
    return samples.take(limit(samples.rows, section.limit, context.recipe.run.seed, "validation"))


def _intact(checkpoint: Path) -> Path:
    reason = skip_reason(checkpoint) if checkpoint.is_dir() else "it is missing"
    if reason is not None:
        raise TrainingError(
            "training.best_checkpoint_damaged",
            "the best checkpoint must be complete",
            place=checkpoint,
            value=reason,
            remedy='Start again with --fresh, or set validation.weights = "last" in a new run.',
        )
    return checkpoint


@contextmanager
def _unchanged_random_state() -> Iterator[None]:
    state = RandomState.now()
    try:
        yield
    finally:
        state.restore()


def _training_loss(args: Any) -> AbstractContextManager[None]:
    """Compute the loss of the hf backend's SFT in slices, as its training does."""
    return in_place_of_trl() if getattr(args, "loss_type", None) == "chunked_nll" else nullcontext()


def _forget_images(model: Any) -> None:
    """Free the features that the vision cache of GRPO has for the images of one step."""
    tower = find_tower(model.get_base_model() if hasattr(model, "get_base_model") else model)
    cache = None if tower is None else vision_cache_of(tower)
    if cache is not None:
        cache.clear()
