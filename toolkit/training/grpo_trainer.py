"""The private methods of TRL's GRPOTrainer that are overridden, each with its reason. No other file has any.

Run with TRL 1.9.2. Signatures compared with TRL 1.13.0, and with 1.16.0, which has more for ``_generate_single_turn``.

``_get_train_sampler``: a run resumed in a later epoch would get the order of the first epoch again.

``_generate_and_score_completions``: TRL samples with the adapter's dropout switched on; a model whose images are lost
would be trained without a word; and pixels have to be shuffled and split by sample, as the texts are.

``_generate_single_turn``: after an out-of-memory error, fewer completions per ``generate`` call.

``_get_per_token_logps_and_entropies``: TRL cuts the pixels of models without an image grid, such as Gemma 3, as if each
sample had one image.

``RolloutTrainer`` has what is needed whoever trains: if unsloth was imported first, ``trl.GRPOTrainer`` is Unsloth's
own rewriting of it, which cuts pixels by sample itself. ``PolicyTrainer`` adds the last method for TRL as it is.
``rollout_processor`` is no override, but cures a fault of the same kind: TRL tokenizes rendered prompts a second time
with the tokenizer's own BOS before them, so that the mask of image tokens is one position off.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from toolkit.errors import TrainingError, warn
from toolkit.models.chat_template import adds_bos, conversation, render_prompt
from toolkit.models.image_ablation import images_ignored_error
from toolkit.models.oom import BatchLimit, attempt
from toolkit.training.image_processor_cache import with_image_cache
from toolkit.training.random_state import RandomState

_OWN_LAYOUT = frozenset({"image_grid_thw", "image_position_ids", "spatial_shapes"})
"""Fields with which TRL finds a sample's pixels itself."""
_BY_IMAGE = ("image_grid_thw", "image_position_ids")
"""Fields with one entry per image."""
_NOT_KNOWN = frozenset({"spatial_shapes", "num_tiles", "pixel_values_videos", "video_grid_thw"})
"""Fields by which a rollout cannot be cut."""


def rollout_processor(processor: Any, pictures: int) -> Any:
    """A copy that remembers the last ``pictures`` pictures, and adds no BOS where the template writes one."""
    twin = with_image_cache(processor, pictures)
    if not adds_bos(processor, render_prompt(processor, conversation("", 0))):
        twin.tokenizer = copy.deepcopy(processor.tokenizer)
        twin.tokenizer.add_bos_token = False
    return twin


def _refuse_tiles(pixels: torch.Tensor, counts: list[int]) -> None:
    """Pixels must be one block a picture; processors that cut a picture into tiles have more."""
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
    """The policy answers, and is measured against its reference, as it is asked later; only its update has dropout.

    The model as a whole stays in training mode, which TRL tells training from evaluation by.
    """
    active = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


def _check_pixels_used(trainer: Any, batch: dict[str, Any]) -> None:
    """The first sample's log-probabilities must change with its pixels' signs.

    unsloth#11031: log-probabilities of models without an image grid were computed from the text alone, in silence.
    """
    own = _first_sample(batch)
    if own is None:
        return
    prompts, completions = batch["prompt_ids"][:1], batch["completion_ids"][:1]
    ids = torch.cat([prompts, completions], dim=1)
    # Not the batch's own mask: it hides answers that were cut off where the recipe says mask_truncated.
    written = completions != trainer.processing_class.tokenizer.pad_token_id
    mask = torch.cat([batch["prompt_mask"][:1], written.to(batch["prompt_mask"].dtype)], dim=1)

    def ask(fields: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad(), _without_dropout(trainer.model):
            found = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, completions.shape[1], 1, **fields
            )[0]
        logps: torch.Tensor = found[written]
        return logps

    seen, again = ask(own), ask(own)
    other = ask({**own, "pixel_values": -own["pixel_values"]})
    if (other - seen).abs().max() <= (again - seen).abs().max():
        raise images_ignored_error("grpo, the first batch")


def _first_sample(batch: dict[str, Any]) -> dict[str, Any] | None:
    """The first sample's pixels and token kinds; None where it has no picture, or pixels in a layout of their own."""
    count = (batch.get("num_images") or [0])[0]
    if not count or "pixel_values" not in batch or {"spatial_shapes", "num_tiles", "pixel_attention_mask"} & set(batch):
        return None
    own: dict[str, Any] = {name: batch[name][:1] for name in ("token_type_ids", "mm_token_type_ids") if name in batch}
    blocks = count
    for name in ("image_grid_thw", "image_position_ids"):
        if name in batch:
            own[name] = batch[name][:count]
    if "image_grid_thw" in batch:
        blocks = int(own["image_grid_thw"].prod(-1).sum())
    return {**own, "pixel_values": batch["pixel_values"][:blocks], "num_images": [count]}


class _EpochSampler(RepeatSampler):  # type: ignore[misc]
    """An order of its own for each epoch, whether or not those before were walked through."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer's data loader when an epoch begins; epoch 0 has the order of TRL's sampler."""
        self.generator.manual_seed((self.seed or 0) + epoch)


class RolloutTrainer(GRPOTrainer):  # type: ignore[misc]
    """See the module. Its first batch shows whether images count in the log-probabilities that are trained on.

    Attributes:
        rollout: completions per ``generate`` call.
    """

    rollout: BatchLimit
    _looked = False

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        plain = super()._get_train_sampler(dataset)
        return _EpochSampler(
            plain.data_source,
            mini_repeat_count=plain.mini_repeat_count,
            batch_size=plain.batch_size,
            repeat_count=plain.repeat_count,
            shuffle=plain.shuffle,
            seed=plain.seed,
        )

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with _without_dropout(self.model):
            batch = super()._generate_and_score_completions(inputs)
            if not self._looked:
                self._check_token_kinds(torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1), batch)
                _check_pixels_used(self, batch)
                self._looked = True  # not where memory ended: the step is made again, and looked at again
        if "num_images" in batch and "pixel_values" in batch and not _OWN_LAYOUT & batch.keys():
            _refuse_tiles(batch["pixel_values"], batch["num_images"])
            # A list is cut and shuffled by sample, as the texts are.
            batch["pixel_values"] = list(torch.split(batch["pixel_values"], batch["num_images"]))
        return batch

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, *more: Any, **options: Any
    ) -> Any:
        """Generate in parts; after an out-of-memory error all over again, in parts of half the size.

        The random state is put back first, so that the completions are those of a run that began with the smaller size.

        Raises:
            torch.OutOfMemoryError: one completion does not fit.
        """
        generate = super()._generate_single_turn
        if self.use_vllm:
            return generate(prompt_ids, images, multimodal_fields, *more, **options)

        def in_parts(size: int) -> list[list[int]]:
            completion_ids: list[list[int]] = []
            for part in _parts(prompt_ids, images, multimodal_fields, size):
                completion_ids += generate(*part, *more, **options)[0]
            return completion_ids

        rows, begun = len(prompt_ids), RandomState.now()
        while (found := attempt(functools.partial(in_parts, self.rollout.size_for(rows)))) is None:
            size = self.rollout.size_for(rows)
            if not self.rollout.halve(size):
                raise torch.OutOfMemoryError("one completion does not fit")
            warn(
                "training.rollout_halved",
                f"out of memory with {size} completions per generate call. Calls have {self.rollout.limit} from now on",
                place=f"grpo, step {self.state.global_step + 1}",
            )
            begun.restore()
        return found, None  # TRL has no log-probabilities of its own from transformers' generate

    def _check_token_kinds(self, input_ids: Any, fields: dict[str, Any]) -> None:
        for name in ("token_type_ids", "mm_token_type_ids"):
            kinds = fields.get(name)
            if kinds is not None and kinds.shape != input_ids.shape:
                raise TrainingError(
                    "training.token_types_misaligned",
                    f"the mask of image tokens must have the shape of the tokens, {tuple(input_ids.shape)}",
                    place=f"grpo, {name}",
                    value=tuple(kinds.shape),
                    remedy="Report this with the model's name: its processor is at fault.",
                )


class PolicyTrainer(RolloutTrainer):
    """See the module."""

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        batch_size: Any = None,
        **fields: Any,
    ) -> Any:
        self._check_token_kinds(input_ids, fields)
        ask = functools.partial(super()._get_per_token_logps_and_entropies, logits_to_keep=logits_to_keep)
        pixels, counts = fields.get("pixel_values"), fields.get("num_images")
        if pixels is None or counts is None or any(fields.get(name) is not None for name in _OWN_LAYOUT):
            return ask(model, input_ids, attention_mask, batch_size=batch_size, **fields)
        samples = pixels if isinstance(pixels, list | tuple) else torch.split(pixels, counts)
        rest = {name: value for name, value in fields.items() if name not in ("pixel_values", "num_images")}
        size, parts = batch_size or len(input_ids), []
        for start in range(0, len(input_ids), size):
            cut = slice(start, start + size)
            parts.append(
                ask(
                    functools.partial(model, pixel_values=torch.cat(list(samples[cut]))),
                    input_ids[cut],
                    attention_mask[cut],
                    batch_size=size,
                    **{name: value[cut] if torch.is_tensor(value) else value for name, value in rest.items()},
                )
            )
        logps, entropies, losses = zip(*parts, strict=True)
        return torch.cat(logps), None if entropies[0] is None else torch.cat(entropies), losses[0]


_Turn = tuple[Any, Any, dict[str, Any]]
"""Token ids of prompts, their images, and what the processor made of both: arguments of ``_generate_single_turn``."""


def _parts(prompt_ids: Sequence[Any], images: Any, fields: Mapping[str, Any], size: int) -> Iterator[_Turn]:
    """Cut the rows of a rollout into parts of at most ``size`` rows, each with its own pixels."""
    rows = len(prompt_ids)
    if size >= rows:
        yield prompt_ids, images, dict(fields)
        return
    counts = [len(own or ()) for own in images] if images is not None else [0] * rows
    first_image = [0, *accumulate(counts)]
    split = _splitter(fields, first_image, rows)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        own = None if images is None else images[part]
        yield prompt_ids[part], own if own and any(own) else None, split(part)


def _splitter(fields: Mapping[str, Any], first_image: Sequence[int], rows: int) -> Callable[[slice], dict[str, Any]]:
    """Return a function from a slice of rows to their fields, which families lay out by row, by image or by patch.

    Raises:
        TrainingError: the pixels of a row cannot be told apart.
    """
    whole = {name: value for name, value in fields.items() if value is not None}
    for name in _NOT_KNOWN & whole.keys():
        raise _inseparable(name)
    for name in (*_BY_IMAGE, "pixel_values"):
        if isinstance(whole.get(name), list):
            whole[name] = torch.tensor(np.array(whole[name]))
    first_block = _first_blocks(whole, first_image[-1])

    def split(part: slice) -> dict[str, Any]:
        start, stop, _ = part.indices(rows)
        pictured = slice(first_image[start], first_image[stop])
        found = {}
        for name, value in whole.items():
            if name == "pixel_values":
                found[name] = value[first_block[pictured.start] : first_block[pictured.stop]]
            elif name in _BY_IMAGE:
                found[name] = value[pictured]
            elif len(value) != rows:
                raise _inseparable(name)
            else:
                found[name] = value[part]
        empty = pictured.start == pictured.stop
        return {name: value for name, value in found.items() if not (empty and name in (*_BY_IMAGE, "pixel_values"))}

    return split


def _first_blocks(fields: Mapping[str, Any], images: int) -> list[int]:
    """Where the pixels of each image begin: Qwen's patches follow each other without an axis for images."""
    pixels, grid = fields.get("pixel_values"), fields.get("image_grid_thw")
    blocks = [1] * images if grid is None else grid.prod(-1).tolist()
    first = [0, *accumulate(blocks)]
    if pixels is not None and first[-1] != len(pixels):
        raise _inseparable("pixel_values")
    return first


def _inseparable(name: str) -> TrainingError:
    return TrainingError(
        "training.rollout_not_separable",
        "a rollout can only be split if the pixels of each row are known",
        place=f"grpo, {name}",
        remedy="Lower prompts_per_step, generations or images.max_side.",
    )
