"""The overridden private methods of TRL's GRPOTrainer, each with its reason. No other file overrides one.

Run with TRL 1.9.2. Signatures compared with TRL 1.13.0, and with 1.16.0, whose ``_generate_single_turn`` has more
parameters.

``_get_train_sampler``: TRL's sampler gives a run that resumes in a later epoch the row order of the first epoch.

``_generate_and_score_completions``: TRL samples with the adapter's dropout active. TRL does not notice a model that
ignores its images. TRL cannot shuffle or split pixels by sample if the model has no image grid. TRL leaves rounding
errors in the advantages of zero-variance groups, and never replaces these groups.

``_tokenize_prompts``: TRL passes None to the processor as the images of a prompt without images. Processors of
transformers accept only an empty list. Processors that return tensors by default, as those of Mistral 3 and PaliGemma,
need padding for prompts of different length.

``_generate_single_turn``: After an out-of-memory error, each ``generate`` call gets fewer completions.

``_get_per_token_logps_and_entropies``: For models without an image grid, such as Gemma 3, TRL slices the pixels as if
each sample had exactly one image of one block. For models with one, TRL passes empty pixels for rows without images.
TRL gives completions token type 0, which PaliGemma reads as attention in both directions. With packing, the model gets
one row for a prompt and its completions. ``models.pixel_layout`` has the layouts of all families.

``_prepare_inputs``: TRL shuffles the completions of a step before it divides them into passes. With packing, a pass has
completions of one prompt.

``RolloutTrainer`` has the overrides that every library needs. If unsloth is imported first, ``trl.GRPOTrainer`` is
Unsloth's generated trainer, which slices pixels by sample itself. ``PolicyTrainer`` adds the last two methods for TRL's
own trainer, and padding in ``_tokenize_prompts``.

Axes: N completions of a rollout, T tokens.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import (
    RepeatSampler,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from toolkit.errors import TrainingError, warn
from toolkit.models.oom import BatchLimit, attempt
from toolkit.models.packed_prompts import pack_prompts
from toolkit.models.pixel_layout import (
    GRID,
    IMAGE_FIELDS,
    IMAGES_OF_ROWS,
    LABELS,
    TOKEN_TYPES,
    PixelLayout,
    answer_type,
    as_tensors,
    inseparable,
)
from toolkit.models.random_state import RandomState
from toolkit.models.vision_cache import VisionCache
from toolkit.training.image_processor_cache import CachedImageProcessor
from toolkit.training.preflight import images_ignored_error
from toolkit.training.resampling import replace_groups, replacement_rows, zero_variance_groups
from toolkit.training.zero_variance import (
    clear_advantages,
    loss_fraction,
    rows_with_advantage,
    select_rows,
    zero_loss,
)

_OWN_LAYOUT = frozenset({GRID, "image_position_ids", "spatial_shapes"})
"""Fields from which TRL finds the pixels of a sample itself."""
_COUNTS = ("num_images", "num_tiles")
"""TRL's names of the numbers of images and of blocks of each sample."""
_Fields = Mapping[str, Any]
"""Fields of a batch by name: tensors, or lists of a processor. TRL has no type for them."""
_Turn = tuple[Any, Any, _Fields]
"""Token ids, images and processed fields of prompts: the arguments of ``_generate_single_turn``."""


class RolloutTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's or Unsloth's trainer with the overrides that both need. See the module.

    Attributes:
        rollout_limit: Completions per ``generate`` call.
        vision_cache: The features of the images of an optimizer step. None: the model has no vision tower.
        skip_zero_variance: Whether completions without an advantage are left out of the update.
        resample: Extra rollouts of an optimizer step, at most. See ``resampling``.
    """

    rollout_limit: BatchLimit
    vision_cache: VisionCache | None = None
    skip_zero_variance = False
    resample = 0
    _images_checked = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the loss of a pass. See ``zero_variance`` for completions without an advantage."""
        rows, used = len(inputs["advantages"]), rows_with_advantage(inputs)
        if model.training:
            self._metrics["train"]["rows_without_advantage"].append(1 - len(used) / rows)
        if not (model.training and self.skip_zero_variance) or len(used) == rows:
            whole: torch.Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return whole
        if not used:
            return zero_loss(model)
        part = select_rows(inputs, used)
        loss: torch.Tensor = super().compute_loss(model, part, return_outputs, num_items_in_batch)
        return loss * loss_fraction(self.loss_type, part, inputs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)
        return _EpochSampler(
            sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            shuffle=sampler.shuffle,
            seed=sampler.seed,
        )

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        if self.vision_cache is not None:
            self.vision_cache.clear()  # a step has images of its own
        batch = self._roll_out(inputs)
        return self._replace_zero_variance(batch, inputs) if self.resample and self.model.training else batch

    def _replace_zero_variance(self, batch: Any, inputs: Any) -> Any:
        """Return the rollout with other prompts in place of zero-variance groups, as far as extra rollouts have them.

        The metrics are those of the first rollout, whose prompts are not selected. Only tokens are counted in all.
        """
        metrics = self._metrics["train"]
        first = {name: list(values) for name, values in metrics.items()}
        used = {row["index"] for row in inputs}
        rows = replacement_rows(len(self.train_dataset), used, self.args.seed, self.state.global_step)
        rollouts, groups, pad_id = 0, 0, self.processing_class.tokenizer.pad_token_id
        while rollouts < self.resample and (missing := zero_variance_groups(batch["advantages"], self.num_generations)):
            opened = [self.train_dataset[row] for row in islice(rows, len(missing))]
            if not opened:  # every other row has been used
                break
            extra = self._roll_out([row for row in opened for _ in range(self.num_generations)])
            batch, replaced = replace_groups(batch, extra, self.num_generations, pad_id)
            rollouts, groups = rollouts + 1, groups + replaced
        counted = {"resample/rollouts": rollouts, "resample/groups": groups}
        metrics.clear()
        metrics.update(first, num_tokens=[self.state.num_input_tokens_seen])
        # TRL logs means. One number is logged as it is, so that a line of several steps has their sum.
        metrics.update({name: [sum(first.get(name, ())) + number] for name, number in counted.items()})
        return batch

    def _roll_out(self, inputs: Any) -> Any:
        """Return the completions of prompts, with advantages, in the layout that TRL shuffles and slices."""
        with _without_dropout(self.model):
            batch = super()._generate_and_score_completions(inputs)
            if not self._images_checked:
                self._check_token_types(torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1), batch)
                _check_pixels_used(self, batch)
                # An out-of-memory error above skips this line, so that the repeated step is checked again. The check of
                # a rollout without images says nothing about a later one.
                self._images_checked = any(batch.get("num_images") or ())
        if self.model.training:
            batch["advantages"] = clear_advantages(batch["advantages"], self.num_generations)
        if "num_images" in batch and "pixel_values" in batch and not _OWN_LAYOUT & batch.keys():
            # TRL shuffles and slices a list by sample, like the token ids. It would index a tensor by block of pixels.
            batch |= self._divide_by_sample(batch)
        return batch

    def _divide_by_sample(self, batch: _Fields) -> _Fields:
        _check_one_block_per_image(batch["pixel_values"], batch["num_images"])
        return {"pixel_values": list(torch.split(batch["pixel_values"], batch["num_images"]))}

    def _blocks(self, images: Sequence[int]) -> list[int] | None:
        """Return the blocks of pixels of each row of the last rollout. None: unknown. See ``models.pixel_layout``."""
        processor = self.processing_class.image_processor
        return processor.blocks(images) if isinstance(processor, CachedImageProcessor) else None

    def _tokenize_prompts(self, prompts: Any) -> Any:
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        return prompt_ids, images if images is None else [own or [] for own in images], fields

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, *more: Any, **options: Any
    ) -> Any:
        """Generate in parts. After an out-of-memory error, repeat the rollout in parts of half the size.

        The random state is restored first, so that a run which starts with the smaller size has the same completions.

        Raises:
            torch.OutOfMemoryError: One completion does not fit.
        """
        generate = super()._generate_single_turn
        if self.use_vllm:
            return generate(prompt_ids, images, multimodal_fields, *more, **options)

        blocks = self._blocks([len(own or ()) for own in images or ()])

        def in_parts(size: int) -> list[list[int]]:
            completion_ids: list[list[int]] = []
            for part in _parts(prompt_ids, images, multimodal_fields, size, blocks):
                completion_ids += generate(*part, *more, **options)[0]
            return completion_ids

        rows, state = len(prompt_ids), RandomState.now()
        while (found := attempt(functools.partial(in_parts, self.rollout_limit.size_for(rows)))) is None:
            size = self.rollout_limit.size_for(rows)
            if not self.rollout_limit.halve(size):
                raise torch.OutOfMemoryError("one completion does not fit")
            warn(
                "training.rollout_halved",
                f"out of memory with {size} completions per generate call. Calls now have {self.rollout_limit.limit}",
                place=f"grpo, step {self.state.global_step + 1}",
            )
            state.restore()
        return found, None  # transformers' generate returns no log-probabilities

    def _check_token_types(self, input_ids: Any, fields: _Fields) -> None:
        for name in TOKEN_TYPES:
            types = fields.get(name)
            if types is not None and types.shape != input_ids.shape:
                raise TrainingError(
                    "training.token_types_misaligned",
                    f"the mask of image tokens must have the shape of the tokens, {tuple(input_ids.shape)}",
                    place=f"grpo, {name}",
                    value=tuple(types.shape),
                    remedy="Report this with the model's name: its processor is the cause.",
                )


class PolicyTrainer(RolloutTrainer):
    """TRL's own trainer, which computes log-probabilities with the pixels of each sample.

    Attributes:
        packing: Whether the completions of a prompt are in one row. See ``models.packed_prompts``.
    """

    packing = False
    _rollout: _Fields | None = None

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._rollout = super()._generate_and_score_completions(inputs)
        return self._rollout

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)  # shuffles in any case, so that later rollouts are the same
        rollout, self._rollout = self._rollout, None
        if rollout is None or not self.packing or not self.model.training:
            return inputs
        passes = split_tensor_dict(split_pixel_values_by_grid(rollout), self.args.steps_per_generation)
        self._buffered_inputs = [unsplit_pixel_values_by_grid(one) for one in passes]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _divide_by_sample(self, batch: _Fields) -> _Fields:
        layout = PixelLayout.of(batch, batch["num_images"], self._blocks(batch["num_images"]))
        return {**layout.split(batch), "num_tiles": list(layout.blocks)}

    def _tokenize_prompts(self, prompts: Any) -> Any:
        # Without tools and environments, this is what TRL does, with padding.
        images = [[part["image"] for turn in prompt for part in _image_parts(turn)] for prompt in prompts]
        encoded = self.processing_class.apply_chat_template(
            prompts,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )
        masks = encoded.pop("attention_mask").bool()
        rows = {
            name: [row[mask].tolist() for row, mask in zip(encoded[name], masks, strict=True)]
            for name in ("input_ids", *TOKEN_TYPES)
            if name in encoded
        }
        fields = as_tensors({**encoded, **rows})
        return fields.pop("input_ids"), images if any(images) else None, fields

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        batch_size: Any = None,
        **fields: Any,
    ) -> Any:
        self._check_token_types(input_ids, fields)
        if self.packing:
            model = pack_prompts(model)
        pixels = {name: _whole(fields.pop(name, None)) for name in (*IMAGE_FIELDS, LABELS)}
        counts = {name: fields.pop(name, None) for name in _COUNTS}
        types = _types_with_answers(fields, logits_to_keep, sum(counts["num_images"] or ()))
        compute = functools.partial(super()._get_per_token_logps_and_entropies, logits_to_keep=logits_to_keep)
        if pixels["pixel_values"] is None:
            return compute(model, input_ids, attention_mask, batch_size=batch_size, **fields, **types)
        layout = PixelLayout.of(pixels, counts["num_images"], counts["num_tiles"] or self._blocks(counts["num_images"]))
        size, parts = batch_size or len(input_ids), []
        for start in range(0, len(input_ids), size):
            part = slice(start, start + size)
            # The pixels reach the model as bound arguments, because TRL would slice them by row number.
            own = layout.select({**pixels, **self._accepted(layout)}, part)
            parts.append(
                compute(
                    functools.partial(model, **own),
                    input_ids[part],
                    attention_mask[part],
                    batch_size=size,
                    **fields,
                    **{name: value[part] for name, value in types.items()},
                )
            )
        logps_NT, entropies_NT, losses = zip(*parts, strict=True)
        return torch.cat(logps_NT), None if entropies_NT[0] is None else torch.cat(entropies_NT), losses[0]

    def _accepted(self, layout: PixelLayout) -> _Fields:
        """Return the counts of images that the model reads. TRL drops them after the rollout."""
        return {IMAGES_OF_ROWS: layout.images} if IMAGES_OF_ROWS in self.model_kwarg_keys else {}


class _EpochSampler(RepeatSampler):  # type: ignore[misc]
    """A row order for each epoch that depends on the epoch's number alone, so that a resumed run continues it.

    TRL's generator advances with each epoch that it iterates. After a resume, it would start again at epoch 0.
    """

    def set_epoch(self, epoch: int) -> None:
        """Seed the order. The trainer's data loader calls this at the start of an epoch. Epoch 0 has TRL's order."""
        self.generator.manual_seed((self.seed or 0) + epoch)


def _check_one_block_per_image(pixels: torch.Tensor, counts: list[int]) -> None:
    """Raise TrainingError if the processor splits images into tiles."""
    if len(pixels) != sum(counts):
        raise TrainingError(
            "training.processor_tiles_images",
            "GRPO needs a processor that returns one block of pixels per image",
            place="grpo, pixel_values",
            value=f"{len(pixels)} blocks for {sum(counts)} images",
            remedy="Use a model of the Gemma 3 or Qwen-VL families, or turn off the processor's tiling.",
        )


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    """Disable dropout for sampling and log-probabilities, so that they match inference. Only the update has dropout.

    The model itself stays in training mode, because TRL uses the mode to distinguish training from evaluation.
    """
    active = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


@contextmanager
def _at_temperature_1(trainer: Any) -> Iterator[None]:
    """Compute log-probabilities at temperature 1. At a low one they round to 0, whatever the pixels are."""
    temperature, trainer.temperature = trainer.temperature, 1.0
    try:
        yield
    finally:
        trainer.temperature = temperature


def _check_pixels_used(trainer: Any, batch: _Fields) -> None:
    """Check that the log-probabilities of the first sample with an image change when its pixels change sign.

    In unsloth#11031, log-probabilities of models without an image grid were silently computed from the text alone.

    Raises:
        TrainingError: The log-probabilities do not depend on the pixels.
    """
    found = _first_sample(trainer, batch)
    if found is None:
        return
    row, fields = found
    prompts, completions = batch["prompt_ids"][row], batch["completion_ids"][row]
    ids = torch.cat([prompts, completions], dim=1)
    # The completion mask of the batch is no use here: with mask_truncated it hides truncated completions.
    generated = completions != trainer.processing_class.tokenizer.pad_token_id
    mask = torch.cat([batch["prompt_mask"][row], generated.to(batch["prompt_mask"].dtype)], dim=1)

    def log_probs_T(fields: _Fields) -> torch.Tensor:
        with torch.no_grad(), _without_dropout(trainer.model), _at_temperature_1(trainer):
            logps_NT: torch.Tensor = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, completions.shape[1], 1, **fields
            )[0]
        return logps_NT[generated]

    # Sums on a GPU may differ in their last bits from call to call. Only a larger change is an effect of the pixels.
    first, repeated = log_probs_T(fields), log_probs_T(fields)
    changed = log_probs_T({**fields, "pixel_values": -fields["pixel_values"]})
    if (changed - first).abs().max() <= (repeated - first).abs().max():
        raise images_ignored_error("grpo, the first batch")


def _first_sample(trainer: Any, batch: _Fields) -> tuple[slice, _Fields] | None:
    """Return the row, pixels and token types of the first sample with images. None: no image."""
    counts = batch.get("num_images") or [0]
    number = next((number for number, count in enumerate(counts) if count), None)
    if number is None or "pixel_values" not in batch:
        return None
    row = slice(number, number + 1)
    layout = PixelLayout.of(batch, counts, batch.get("num_tiles") or trainer._blocks(counts))
    fields = {name: batch[name][row] for name in TOKEN_TYPES if name in batch} | layout.select(batch, row)
    fields["num_images"] = [counts[number]]
    if isinstance(trainer, PolicyTrainer):
        fields["num_tiles"] = list(layout.blocks[row])
    return row, fields


def _parts(
    prompt_ids: Sequence[Any], images: Any, fields: _Fields, size: int, blocks: Sequence[int] | None = None
) -> Iterator[_Turn]:
    """Split the rows of a rollout into parts of at most ``size`` rows, each with its own pixels.

    Raises:
        TrainingError: The layout does not say which pixels belong to a row.
    """
    rows = len(prompt_ids)
    if size >= rows:
        yield prompt_ids, images, dict(fields)
        return
    whole = as_tensors(fields)
    for name in whole.keys() - {*IMAGE_FIELDS, *TOKEN_TYPES}:
        raise inseparable(name)
    layout = PixelLayout.of(whole, [len(own or ()) for own in images or [()] * rows], blocks)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        own = None if images is None else images[part]
        by_row = {name: whole[name][part] for name in TOKEN_TYPES if name in whole}
        yield prompt_ids[part], own if own and any(own) else None, {**by_row, **layout.select(whole, part)}


def _image_parts(turn: Any) -> list[Any]:
    content = turn["content"]
    return [part for part in content if part["type"] == "image"] if isinstance(content, list) else []


def _types_with_answers(fields: dict[str, Any], completion: int, images: int) -> dict[str, torch.Tensor]:
    """Remove the token types from ``fields``. Return them with the type of generated tokens in the completions."""
    found = {}
    for name in TOKEN_TYPES:
        types = fields.pop(name, None)
        if types is not None:
            prompts, completions = types[:, :-completion], types[:, -completion:]
            found[name] = torch.cat([prompts, torch.full_like(completions, answer_type(prompts, images))], dim=1)
    return found


def _whole(value: Any) -> Any:
    """Return a field that TRL has left divided by sample as one tensor."""
    return torch.cat(list(value)) if isinstance(value, list | tuple) else value
