"""The gguf backend: prompts are rendered here, and llama.cpp does the inference."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from PIL import Image

from toolkit.data.task import Decision
from toolkit.errors import ModelError, warn
from toolkit.models.backend import GGUF, Completion, Policy, Row, Sampling, TrainerTraits
from toolkit.models.chat_template import encode_answer, render_prompt
from toolkit.models.collate import encode_prompts
from toolkit.models.hf import load_processor, make_policy
from toolkit.models.llamacpp import Child, find_gguf_pair
from toolkit.models.llamacpp.worker import IMAGE_TOKEN, MARKER
from toolkit.recipe import Recipe
from toolkit.runfolder.usage import count

FRAMED = "<|vision_start|><|image_pad|><|vision_end|>"
"""The image placeholder in prompts of Qwen's models. llama.cpp adds the delimiters itself."""


class GgufBackend:
    """The inference part of ``Backend``. A GGUF cannot be trained."""

    name = GGUF

    def __init__(self) -> None:
        self.mismatched_prompts = 0
        """Number of prompts that llama.cpp tokenized differently from the processor."""

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        """Load the files in ``weights`` (the text model, or its folder) with the recipe's processor.

        ``Policy.model`` is the process that runs llama.cpp.

        Raises:
            ModelError: The files are missing, cannot be loaded, or would not stop at the end of turn, or training was
                requested.
            MissingExtraError: llama.cpp is not installed.
        """
        if trainable or weights is None:
            _reject("trained")
        model, mmproj = find_gguf_pair(weights)
        policy = make_policy(None, load_processor(recipe), weights)
        child = Child()
        ends = child.load(model, mmproj, recipe.model.max_tokens + recipe.evaluation.max_completion_tokens)
        if policy.turn_end.id not in ends:
            raise ModelError(
                "model.gguf_misses_turn_end",
                f"a GGUF file must stop at {policy.turn_end.text!r} (token {policy.turn_end.id}), which ends an answer",
                place=model,
                value=ends,
                remedy="Convert the model again with its own tokenizer.",
            )
        return replace(policy, model=child, bits=16)

    def load_without_model(self, recipe: Recipe) -> Policy:
        """See ``Backend.load_without_model``."""
        return make_policy(None, load_processor(recipe), None)

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        """Return one greedy completion per row, row by row.

        Raises:
            ModelError: The sampling is not greedy, or llama.cpp fails.
        """
        if sampling.temperature or sampling.count != 1:
            _reject("sampled")
        completions = [self._complete(policy, row, sampling.max_tokens) for row in rows]
        count(answers=len(completions))
        return [[completion] for completion in completions]

    def log_probs(self, policy: Policy, rows: Sequence[Row], answers: Sequence[str]) -> list[list[float]]:
        """See ``Backend.log_probs``."""
        return [self._score(policy, row, answer) for row, answer in zip(rows, answers, strict=True)]

    def choice_log_probs(
        self, policy: Policy, rows: Sequence[Row], decisions: Sequence[Sequence[Decision]]
    ) -> list[list[dict[str, float]]]:
        """Raise ModelError: llama.cpp would encode the image again for every option."""
        raise ModelError(
            "model.gguf_without_probabilities",
            "class probabilities need a model that is not a GGUF file",
            place="[evaluate] probabilities",
            value=policy.trained_from,
            remedy="Evaluate the merged weights, or set evaluate.probabilities = false.",
        )

    def answer_loss(self, policy: Policy, row: Row) -> float:
        """See ``Backend.answer_loss``."""
        found = self._score(policy, row, row.answer or "")
        return -sum(found) / len(found)

    def supervised_loss(self, policy: Policy, row: Row) -> tuple[float, int]:
        """Raise ModelError."""
        _reject("trained")

    def prepare_training(self, policy: Policy, recipe: Recipe, stage: Literal["sft", "dpo", "grpo"]) -> TrainerTraits:
        """Raise ModelError."""
        _reject("trained")

    def restore(self, policy: Policy, checkpoint: Path) -> None:
        """Raise ModelError."""
        _reject("trained")

    def save(self, policy: Policy, folder: Path) -> None:
        """Raise ModelError."""
        _reject("saved")

    def save_merged(self, policy: Policy, folder: Path) -> None:
        """Raise ModelError."""
        _reject("merged")

    def _complete(self, policy: Policy, row: Row, max_tokens: int) -> Completion:
        prompt, images, expected = _llama_prompt(policy, row)
        tokens, _, read = policy.model.generate(prompt, images, max_tokens, policy.turn_end.id, policy.forbidden)
        if read != expected:
            self._warn_mismatch(policy, read, expected)
        ended = tokens[-1] == policy.turn_end.id
        text = policy.processor.tokenizer.decode(tokens[: len(tokens) - ended], skip_special_tokens=True)
        return Completion(policy.turn_end.completed(text), len(tokens), not ended)

    def _score(self, policy: Policy, row: Row, answer: str) -> list[float]:
        prompt, images, _ = _llama_prompt(policy, row)
        found: list[float] = policy.model.score(
            prompt, images, encode_answer(policy.processor, answer, policy.turn_end)
        )
        return found

    def _warn_mismatch(self, policy: Policy, read: Sequence[int], expected: Sequence[int]) -> None:
        if not self.mismatched_prompts:
            start = next((i for i, (a, b) in enumerate(zip(read, expected, strict=False)) if a != b), len(expected))
            tokenizer = policy.processor.tokenizer
            ours, theirs = (
                tokenizer.convert_ids_to_tokens([token for token in ids[start : start + 4] if token != IMAGE_TOKEN])
                for ids in (expected, read)
            )
            counts = [f"{ids.count(IMAGE_TOKEN)} image tokens" for ids in (read, expected)]
            warn(
                "model.gguf_prompt_differs",
                f"llama.cpp must tokenize a prompt like the processor: {counts[1]} and {ours}",
                place="gguf",
                value=f"{counts[0]} and {theirs}",
            )
        self.mismatched_prompts += 1


def processed_images(processor: Any, inputs: Any) -> list[Image.Image]:
    """Return the images as the model's processor resized them, before normalisation.

    llama.cpp gets the images at this size, so that its own resizing changes nothing.

    Raises:
        ModelError: The pixel layout of the processor is unknown.
    """
    if "pixel_values" not in inputs:
        return []
    pixels = inputs["pixel_values"]
    if "image_grid_thw" in inputs:
        sizes = [int(grid.prod()) for grid in inputs["image_grid_thw"]]
        patches = pixels.split(sizes)
        planes = [
            _join_patches(processor.image_processor, part, grid)
            for part, grid in zip(patches, inputs["image_grid_thw"].tolist(), strict=True)
        ]
    elif pixels.ndim == 4:
        planes = list(pixels)
    else:
        raise ModelError(
            "model.pixel_layout_unknown",
            "the processor must arrange pixels like Gemma's or Qwen's, for llama.cpp to see the same images",
            value=type(processor).__name__,
            remedy="Evaluate the merged weights instead of the GGUF files.",
        )
    return [_denormalise(processor.image_processor, plane) for plane in planes]


def _reject(what: str) -> NoReturn:
    raise ModelError("model.gguf_only_greedy", f"a GGUF file can only generate greedily. It cannot be {what}")


def _llama_prompt(policy: Policy, row: Row) -> tuple[str, list[Image.Image], list[int]]:
    """Return the prompt with markers, the images, and the tokens that llama.cpp must read."""
    inputs = encode_prompts(policy, [row], "left")
    processor = policy.processor
    # ``image_token_id`` of Gemma 3's processor is the delimiter before an image. Its tokenizer has the image token.
    holder = processor.tokenizer if hasattr(processor, "full_image_sequence") else processor
    image_token = holder.image_token_id
    expected = [IMAGE_TOKEN if token == image_token else token for token in inputs["input_ids"][0].tolist()]
    prompt = _with_markers(processor, render_prompt(processor, row.messages))
    return prompt, processed_images(processor, inputs), expected


def _with_markers(processor: Any, text: str) -> str:
    """Return the rendered prompt with llama.cpp's marker for each image. llama.cpp adds the delimiters."""
    if hasattr(processor, "full_image_sequence"):  # Gemma 3 also has line ends around an image
        whole, begin, end = processor.full_image_sequence, processor.boi_token, processor.tokenizer.eoi_token
        head, tail = whole.partition(begin)[0], whole.rpartition(end)[2]
        return text.replace(begin, f"{head}{MARKER}{tail}")
    return text.replace(FRAMED if FRAMED in text else processor.image_token, MARKER)


def _join_patches(image_processor: Any, patches: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Return Qwen's patches of an image, (patches, channels * time * side * side), as (channels, height, width)."""
    merge, side = image_processor.merge_size, image_processor.patch_size
    time = image_processor.temporal_patch_size
    _, rows, columns = grid
    blocks = patches.reshape(rows // merge, columns // merge, merge, merge, -1, time, side, side)[..., 0, :, :]
    # block row, block column, row, column, channel, y, x -> channel, block row, row, y, block column, column, x
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, rows * side, columns * side)


def _denormalise(image_processor: Any, plane: torch.Tensor) -> Image.Image:
    """Undo the normalisation of (channels, height, width). Return an 8-bit RGB image."""
    mean, std = (torch.tensor(getattr(image_processor, name))[:, None, None] for name in ("image_mean", "image_std"))
    pixels = (plane.float() * std + mean) / image_processor.rescale_factor
    return Image.fromarray(pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy(), "RGB")
