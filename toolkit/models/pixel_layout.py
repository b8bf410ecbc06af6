"""Which entries of a processor's image fields belong to which row of a batch.

A processor returns the images of all rows together. The first axis of ``pixel_values`` counts blocks. What a block is
depends on the family:

- an image: Gemma 3 and 4, LLaVA, PaliGemma, Mistral 3. LLaVA-NeXT and LLaVA-OneVision have the tiles of an image on the
  second axis.
- a tile, with the tiles of all images one after another: InternVL, Llama 4, LFM2-VL, Ovis2
- a patch, with the patches of all images one after another: Qwen-VL, GLM-4V
- a row, padded to the most images or tiles of a row: Idefics3, SmolVLM

The other image fields follow the images (``PER_IMAGE``) or the blocks (``PER_BLOCK``). This module names no family:
the numbers of images and blocks of each row are all that it needs.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from toolkit.errors import TrainingError

GRID = "image_grid_thw"
PER_IMAGE = (GRID, "image_position_ids", "image_sizes")
"""Fields with one entry per image."""
PER_BLOCK = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
"""Fields with one entry per block."""
IMAGES_OF_ROWS = "batch_num_images"
"""The number of images of each row that has one. LLaVA-OneVision cuts an image into tiles only if it is alone."""
IMAGE_FIELDS = (*PER_IMAGE, *PER_BLOCK, IMAGES_OF_ROWS)
"""Fields that only a row with images has."""
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Masks of the shape of the tokens, which mark image tokens."""
LABELS = "labels"
"""A field that PaliGemma's processor adds. The labels of training are our own."""
NOT_IN_TRL: Mapping[str, str] = {
    "llama4": "it reads aux_loss, the router's loss, which the model's output lacks (transformers 5.15, trl 1.9.2)",
}
"""Families (model_type) that TRL's GRPOTrainer cannot train for another reason than image fields."""
_OTHER_MEDIA = re.compile("video|audio|input_features|second_per_grid")
_Fields = Mapping[str, Any]
"""Fields of a batch by name: tensors, or lists of a processor."""


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """The numbers of images and of blocks of each row.

    Attributes:
        images: The number of images of each row.
        blocks: The number of entries in ``pixel_values`` of each row.
    """

    images: tuple[int, ...]
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, fields: _Fields, images: Sequence[int], blocks: Sequence[int] | None = None) -> "PixelLayout":
        """Return the layout of a batch.

        Args:
            fields: The fields. A grid of patches and positions of images imply the blocks.
            images: The number of images of each row.
            blocks: The number of blocks of each row, if it is known. None: each block is an image.

        Raises:
            TrainingError: The blocks do not add up to those in the fields.
        """
        if fields.get(GRID) is not None:
            first = [0, *accumulate(images)]
            patches = [int(count) for count in torch.as_tensor(fields[GRID]).prod(-1)]
            blocks = [sum(patches[start:stop]) for start, stop in pairwise(first)]
        elif blocks is None or fields.get("image_position_ids") is not None:
            blocks = images
        layout = cls(tuple(images), tuple(blocks))
        for name, counts in ((PER_IMAGE, layout.images), (PER_BLOCK, layout.blocks)):
            for field in name:
                value = fields.get(field)
                if value is not None and (len(value) != sum(counts) or len(counts) != len(images)):
                    raise inseparable(field, f"{len(value)} entries for {sum(images)} images")
        return layout

    def select(self, fields: _Fields, rows: slice) -> dict[str, torch.Tensor]:
        """Return the image fields of some rows, without those of other rows. Empty: these rows have no image."""
        images = self.images[rows]
        if not any(images):
            return {}
        found = {name: fields[name][part] for name, part in self._parts(rows) if fields.get(name) is not None}
        if fields.get(IMAGES_OF_ROWS) is not None:
            found[IMAGES_OF_ROWS] = torch.tensor([count for count in images if count])
        return found

    def split(self, fields: _Fields) -> dict[str, list[torch.Tensor]]:
        """Return the image fields with one entry for each row of the batch."""
        rows = [dict(self._parts(slice(row, row + 1))) for row in range(len(self.images))]
        return {
            name: [fields[name][parts[name]] for parts in rows]
            for name in (*PER_IMAGE, *PER_BLOCK)
            if fields.get(name) is not None
        }

    def _parts(self, rows: slice) -> Iterator[tuple[str, slice]]:
        start, stop, _ = rows.indices(len(self.images))
        for names, counts in ((PER_IMAGE, self.images), (PER_BLOCK, self.blocks)):
            part = slice(sum(counts[:start]), sum(counts[:stop]))
            yield from ((name, part) for name in names)


def as_tensors(fields: _Fields) -> dict[str, Any]:
    """Return the fields without those that are None or labels, and with image fields as tensors."""
    return {
        name: torch.tensor(np.array(value)) if name in IMAGE_FIELDS and not torch.is_tensor(value) else value
        for name, value in fields.items()
        if value is not None and name != LABELS
    }


def match_dtype(fields: _Fields, dtype: torch.dtype) -> dict[str, Any]:
    """Return the fields with pixels of reduced precision in the model's dtype.

    Towers convert pixels in float32 themselves. Llama 4's processor returns bfloat16, which its tower does not convert.
    """
    pixels = fields.get("pixel_values")
    if not torch.is_tensor(pixels) or pixels.dtype not in (torch.bfloat16, torch.float16):
        return dict(fields)
    return {**fields, "pixel_values": pixels.to(dtype)}


def unknown_fields(processor: Any) -> list[str]:
    """Return the model's inputs beside tokens that GRPO cannot divide by row. Empty: it can train the model.

    TRL's trainer passes a fixed list of fields from the rollout to the update. A model that needs another one, such as
    the cross-attention mask of Llama 3.2 Vision, would be updated without it.
    """
    known = {"input_ids", "attention_mask", LABELS, *TOKEN_TYPES, *IMAGE_FIELDS}
    return sorted(name for name in {*processor.model_input_names} - known if not _OTHER_MEDIA.search(name))


def check_grpo_supports(processor: Any, model_type: str) -> None:
    """Check that GRPO can train a model.

    Args:
        processor: The model's processor.
        model_type: The family in config.json.

    Raises:
        TrainingError: The model needs fields that cannot be divided by row, or TRL cannot train its family.
    """
    remedy = "Remove [grpo] and train with [sft], or use a model of another family."
    if unknown := unknown_fields(processor):
        raise TrainingError(
            "training.image_fields_unsupported",
            "GRPO must pass all image fields of the model from the rollout to the update, and TRL drops these",
            place="[grpo]",
            value=", ".join(unknown),
            remedy=remedy,
        )
    if reason := NOT_IN_TRL.get(model_type):
        rule = f"TRL's GRPOTrainer cannot train this family: {reason}"
        raise TrainingError("training.family_unsupported", rule, place="[grpo]", value=model_type, remedy=remedy)


def answer_type(types: torch.Tensor, images: int) -> int:
    """Return the token type of generated tokens, each of which attends only to the tokens before it.

    In most families, image tokens have type 1 or more and text has 0. In PaliGemma, the prompt with its images has 0
    and attends to all of itself. An answer of type 0 would see its own later tokens.

    Args:
        types: Token types of prompts.
        images: The number of their images.
    """
    return int(images > 0 and not types.any())


def inseparable(name: str, found: object = None) -> TrainingError:
    """Return the error for a field whose entries cannot be assigned to rows."""
    return TrainingError(
        "training.rollout_not_separable",
        "a rollout can only be split if the pixels of each row are known",
        place=f"grpo, {name}",
        value=found,
        remedy="Use prompts of one image each, or a model of another family.",
    )
