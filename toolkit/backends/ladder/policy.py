"""TRL's GRPOTrainer on the ladder: completions are written, read and learned from as many at once as fit."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from toolkit.backends.ladder import figures
from toolkit.backends.ladder.at_once import AtOnce, attempt
from toolkit.backends.ladder.cut import PICTURES, piece, rows_of
from toolkit.backends.ladder.passes import Ladder
from toolkit.backends.policy_trainer import PolicyTrainer, RolloutTrainer

_BY_ROWS = ("grpo", "dr_grpo")
"""Losses that are means over the completions of a pass."""
_BY_TOKENS = ("bnpo",)
"""Over its tokens. All others are sums, divided by the tokens of the whole step."""


class RolloutLadder(Ladder, RolloutTrainer):
    """See ``passes``. ``writing``: prompts in one generation."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.writing = AtOnce()
        self.probing = self._written = False
        self._first = 0
        super().__init__(*args, **options)

    def begin_step(self) -> None:
        """See ``Ladder.begin_step``."""
        super().begin_step()
        self._first, self._written = self._step, False

    def go_to(self, number: int) -> None:
        """TRL finds a pass's completions by its own count of passes."""
        super().go_to(number)
        self._step = self._first + number

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._written:  # TRL would generate again for the first pass of a step
            return self._buffered_inputs[self._step % self.args.steps_per_generation]
        logged, tokens = self._metrics["train"], self.state.num_input_tokens_seen
        since = figures.counted(logged)
        try:
            inputs = super()._prepare_inputs(generation_batch)
        except RuntimeError:
            figures.forget(logged, since)
            self.state.num_input_tokens_seen = tokens
            self._buffered_inputs = None
            raise
        self._written = True
        return inputs

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> Any:
        ask = super()._generate_single_turn
        if self.use_vllm:
            return ask(prompt_ids, images, multimodal_fields)
        batch = {**multimodal_fields, "prompt_ids": prompt_ids}
        if images is not None:
            batch |= {PICTURES: [len(one or ()) for one in images], "images": images}
        if isinstance(batch.get("pixel_values"), list):
            batch["pixel_values"] = torch.tensor(np.array(batch["pixel_values"]))
        completion_ids: list[list[int]] = []
        while (start := len(completion_ids)) < rows_of(batch):
            count = self.writing.of(rows_of(batch) - start)
            part = piece(batch, start, start + count)
            part.pop(PICTURES, None)
            call = functools.partial(ask, part.pop("prompt_ids"), part.pop("images", None), part)
            found = attempt(call)
            if found is None:
                self.too_small(self.writing, count, "completions that are written")
            else:
                completion_ids += found[0]
        return completion_ids, None

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        if self.probing:  # nobody judges what was written to fill the memory
            return torch.zeros(len(prompts), len(self.reward_funcs), device=self.accelerator.device)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def weighted(self, ask: Callable[[Any], Any], part: Mapping[str, Any], whole: Mapping[str, Any]) -> Any:
        """See ``Ladder.weighted``.

        Unsloth's loss has its gradients before it goes backward and ignores what it is multiplied with there
        (``UnslothEfficientGRPO`` in unsloth_zoo/rl_replacements.py); but it divides by the passes of a step.
        """
        passes = self.current_gradient_accumulation_steps
        self.current_gradient_accumulation_steps = passes / self.share(part, whole)
        try:
            return ask(self.given(part))
        finally:
            self.current_gradient_accumulation_steps = passes

    def share(self, part: Mapping[str, Any], whole: Mapping[str, Any]) -> float:
        """By what the loss of a pass is divided by: its completions, or the tokens of the whole step."""
        return rows_of(part) / rows_of(whole) if self.loss_type in _BY_ROWS else 1.0

    def weights(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        """Completion tokens; where one ratio stands for a whole completion, what is clipped counts completions."""
        tokens = [float(_tokens(part)) for part in parts]
        clipped = tokens if self.importance_sampling_level == "token" else [float(rows_of(part)) for part in parts]
        return {"tokens": tokens, "clip_ratio": clipped, "cispo_clip_ratio": clipped}

    def longest_batch(self, rows: Sequence[int]) -> tuple[Any, int]:
        """See ``Ladder.longest_batch``: the prompts of a step, each once for every completion."""
        prompts = self.args.generation_batch_size // self.num_generations
        used = list(rows[:prompts])
        repeated = [used[i % len(used)] for i in range(prompts) for _ in range(self.num_generations)]
        return self.train_dataset.__getitems__(repeated), len(used)

    @contextmanager
    def as_long_as_can_be(self) -> Iterator[None]:
        """See ``Ladder.as_long_as_can_be``."""
        before = self.generation_config.min_new_tokens
        self.generation_config.min_new_tokens, self.probing = self.max_completion_length, True
        try:
            yield
        finally:
            self.generation_config.min_new_tokens, self.probing = before, False


class PolicyLadder(RolloutLadder, PolicyTrainer):
    """The same for TRL as it is, which ``PolicyTrainer`` teaches to cut pictures by sample.

    ``reading``: completions in a pass without gradients. Unsloth cuts those passes itself, by the memory that is free.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.reading = AtOnce()
        super().__init__(*args, **options)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        batch_size: Any = None,
        **fields: Any,
    ) -> Any:
        ask = functools.partial(
            super()._get_per_token_logps_and_entropies, model, input_ids, attention_mask, logits_to_keep, **fields
        )
        if torch.is_grad_enabled():
            return ask(batch_size=batch_size)
        rows = len(input_ids)
        while True:
            size = _divisor(rows, self.reading.of(batch_size or rows))
            found = attempt(functools.partial(ask, batch_size=size))
            if found is not None:
                return found
            self.too_small(self.reading, size, "completions that are read")

    def weighted(self, ask: Callable[[Any], Any], part: Mapping[str, Any], whole: Mapping[str, Any]) -> Any:
        """See ``Ladder.weighted``."""
        return Ladder.weighted(self, ask, part, whole)

    def share(self, part: Mapping[str, Any], whole: Mapping[str, Any]) -> float:
        """By what TRL divides the loss of a pass by (``GRPOTrainer._compute_loss``): bnpo's is by its own tokens."""
        if self.loss_type in _BY_TOKENS:
            return max(_tokens(part), 1) / max(_tokens(whole), 1)
        return super().share(part, whole)


def _tokens(part: Mapping[str, Any]) -> int:
    return int(part["completion_mask"].sum())


def _divisor(rows: int, most: int) -> int:
    """TRL cuts by sizes that go into the rows without a rest."""
    return next(size for size in range(min(rows, most), 0, -1) if rows % size == 0)
