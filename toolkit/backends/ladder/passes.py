"""Training that goes on when the GPU's memory is too small: the same step again, in smaller passes.

A pass that ran out of memory leaves gradients of a part of its rows. So the step's gradients are dropped, what torch
keeps is given back, and the step's passes are made again from the first one, each in parts of half as many rows. The
parts' losses are weighted so that they sum to the loss of the whole pass: the update is that of an undisturbed step,
up to the order in which numbers are added (and to dropout, whose masks depend on a pass's shape). Completions that are
there are not generated again. The smaller passes stay until the stage ends; a run that is resumed begins with those of
its recipe.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import Trainer

from toolkit.backends.ladder import figures
from toolkit.backends.ladder.advice import nothing_left
from toolkit.backends.ladder.at_once import AtOnce, attempt
from toolkit.backends.ladder.cut import cut, rows_of
from toolkit.backends.ladder.probe_step import probe_step
from toolkit.backends.ladder.random_state import RandomState
from toolkit.errors import TrainingError
from toolkit.run import Record, world_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Mark:
    """How things stood before a pass, so that it can be made again."""

    random: RandomState
    figures: Mapping[str, int]
    tokens: float


class Ladder(Trainer):
    """What SFT and GRPO share; it stands before TRL's trainer.

    Attributes:
        advice: what a user can do about a row that does not fit.
        longest: rows for the probe step, which comes before the first step; empty: no probe.
        probe: what the probe step found.
        passes: rows in one forward and backward pass.
        errors: how often memory was too small, whatever for.
    """

    args: Any
    model: Any
    train_dataset: Any
    _metrics: Any
    _total_train_tokens: Any
    _buffered_inputs: Any
    current_gradient_accumulation_steps: Any
    _divisor = 1

    def __init__(self, *args: Any, **options: Any) -> None:
        self.advice = ""
        self.longest: Sequence[int] = ()
        self.probe: Record | None = None
        self.passes = AtOnce()
        self.errors = self._told = self._done = self._number = self._wide = 0
        self._batches: list[Any] = []
        self._marks: list[_Mark] = []
        super().__init__(*args, **options)

    def get_batch_samples(self, *args: Any, **options: Any) -> Any:
        """Called by transformers when a step begins."""
        found = super().get_batch_samples(*args, **options)
        self.begin_step()
        return found

    def begin_step(self) -> None:
        """Nothing of the step is done yet."""
        self._done, self._batches, self._marks = 0, [], []

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """One forward and backward pass; where memory was too small, all of the step so far. Gives the pass's loss.

        Raises:
            TrainingError: one row does not fit.
        """
        if self.longest:
            rows, self.longest = self.longest, ()
            self.probe = probe_step(self, model, rows)
        return self.make_pass(model, inputs, num_items_in_batch)

    def make_pass(self, model: Any, inputs: Any, items: Any) -> Any:
        """See ``training_step``."""
        self._batches = [*self._batches[: self._done], inputs]
        first = self._done
        while (loss := attempt(partial(self._make, model, first, items))) is None:
            self._halve()
            model.zero_grad()
            first = 0
        self._done += 1
        return loss

    def _make(self, model: Any, first: int, items: Any) -> Any:
        """Passes ``first`` to the newest one; the loss of the newest."""
        loss = None
        for number in range(first, len(self._batches)):
            self.go_to(number)
            loss = super().training_step(model, self._batches[number], items)
        return loss

    def go_to(self, number: int) -> None:
        """Pass ``number`` of the step is made next."""
        self._number = number

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a pass. All parts but the last have gone backward already; the caller does so with the last."""
        ask = super().compute_loss
        if return_outputs or not self.model.training:
            return ask(model, self.given(inputs), return_outputs, num_items_in_batch)
        self._wide = rows_of(inputs)
        self._mark_or_return()
        parts = cut(inputs, self.passes.of(self._wide))
        if len(parts) == 1:
            return ask(model, self.given(inputs), num_items_in_batch=num_items_in_batch)
        self._check_sums()
        self._divisor = self._divided_by(num_items_in_batch)
        return self._sum(lambda part: ask(model, part, num_items_in_batch=num_items_in_batch), parts, inputs)

    def _divided_by(self, items: Any) -> int:
        """By what transformers divides the loss that ``compute_loss`` gives (``Trainer.training_step``)."""
        told = self.model_accepts_loss_kwargs and items is not None
        return 1 if told or self.compute_loss_func is not None else self.current_gradient_accumulation_steps

    def _sum(self, ask: Callable[[Any], Any], parts: Sequence[dict[str, Any]], whole: Mapping[str, Any]) -> Any:
        logged = self._metrics["train"]
        since, found, total = figures.counted(logged), [], torch.zeros((), device=self.args.device)
        for part in parts:
            loss = self.weighted(ask, part, whole)
            found.append(figures.take(logged, since))
            if part is not parts[-1]:
                self.accelerator.backward(loss / self._divisor)
                total += loss.detach()
        for name, value in figures.put_together(found, self.weights(parts)).items():
            logged[name].append(value)
        return loss + total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The step's figures; where memory was too small since the last line, how often, and what goes at once now."""
        if self.errors > self._told:
            logs = {**logs, "out_of_memory": float(self.errors - self._told)}
            if self.passes.most:
                logs["micro_batch"] = float(self.passes.most)
            self._told = self.errors
        super().log(logs, start_time)

    def too_small(self, at_once: AtOnce, rows: int, what: str) -> None:
        """Count that memory was too small for so many at once, halve them, and tell.

        Raises:
            TrainingError: it was one.
        """
        self.errors += 1
        step = f"step {self.state.global_step + 1}"
        if not at_once.halve(rows):
            raise nothing_left(step, what, self.advice)
        log.warning("%s: out of memory with %d %s at once: %d from here on", step, rows, what, at_once.most)

    def given(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """What TRL's loss is given of a batch."""
        return dict(part)

    def weighted(self, ask: Callable[[Any], Any], part: Mapping[str, Any], whole: Mapping[str, Any]) -> Any:
        """The loss of a part, weighted by its share."""
        return ask(self.given(part)) * self.share(part, whole)

    def share(self, part: Mapping[str, Any], whole: Mapping[str, Any]) -> float:
        """What a part's loss is multiplied with, so that the parts' sum is the whole's."""
        raise NotImplementedError

    def weights(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        """The parts' weights in what is logged; see ``figures.put_together``."""
        raise NotImplementedError

    def longest_batch(self, rows: Sequence[int]) -> tuple[Any, int]:
        """What ``training_step`` gets for the first of these rows, and how many they are."""
        raise NotImplementedError

    def as_long_as_can_be(self) -> AbstractContextManager[None]:
        """Whatever the model writes inside has the length of its limit."""
        return nullcontext()

    def _halve(self) -> None:
        if world_size() > 1:
            raise self._refuse("several processes make the same passes, so that none of them can make smaller ones")
        self.too_small(self.passes, self.passes.of(self._wide or self.args.per_device_train_batch_size), "rows")

    def _mark_or_return(self) -> None:
        """Note how things stand before a pass; where it is made again, go back there."""
        logged = self._metrics["train"]
        if self._number == len(self._marks):
            self._marks.append(_Mark(RandomState.now(), figures.counted(logged), self._total_train_tokens))
            return
        mark = self._marks[self._number]
        mark.random.restore()
        figures.forget(logged, mark.figures)
        self._total_train_tokens = mark.tokens

    def _check_sums(self) -> None:
        if getattr(self, "aux_loss_enabled", False):
            raise self._refuse("the loss that balances a mixture of experts does not sum over parts of a pass")

    def _refuse(self, rule: str) -> TrainingError:
        return TrainingError(
            rule,
            place=f"step {self.state.global_step + 1}",
            value="out of memory",
            remedy=f"Lower batch_size (SFT) or micro_batch (GRPO). {self.advice}",
        )
