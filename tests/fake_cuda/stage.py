"""One stage of the toolkit on the simulated device: rollout, loss, backward pass and optimizer state."""

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import DynamicCache, StaticCache

from tests.fake_cuda.growth import END, FAR, JUMP, NEAR
from tests.fake_cuda.log import DEVICE, AllocationLog, known_tensor
from tests.fake_cuda.model import grid_of
from toolkit.models.hf import disable_input_gradients
from toolkit.planning.stages import Setting


@dataclass(slots=True)
class Batch:
    """Inputs of some rows."""

    texts: dict[str, torch.Tensor]
    """input_ids, attention_mask and token types."""
    pixels: dict[str, torch.Tensor]


class Stage:
    """A traced stage. ``run`` makes two optimizer steps and measures the second one."""

    def __init__(self, model: Any, setting: Setting, log: AllocationLog) -> None:
        self.model, self.setting, self.log = model, setting, log
        self.config = model.get_base_model().config
        self.state: list[torch.Tensor] = []
        """State of the optimizer."""
        self.cache_bytes = 0
        """Keys and values at the end of a rollout."""
        self.usable = 0
        """GPU memory that a program can have, in bytes."""
        self._held: Any = None

    def run(self, loss: Callable[["Stage", Batch], torch.Tensor] | None) -> None:
        """Trace an optimizer step with two micro-batches, the second one with the gradients of the first allocated.

        The optimizer state exists from the beginning, as in every step except the first.

        ``loss`` computes the loss of a micro-batch. None: nothing is trained.
        """
        if loss is not None:
            with self.log.during("optimizer"):
                self._optimizer_state()
        if self.setting.concurrent:
            with self.log.during("inputs"):
                batch = self._batch(self.setting.concurrent, 0)
            self._sample()
            self.rollout(batch)
            del batch
            gc.collect()
        if loss is None:
            return
        self._train()
        for suffix in (" of the first micro-batch", ""):
            with self.log.during("inputs"):
                batch = self._training_batch()
            with self.log.during(f"loss{suffix}"):
                value = loss(self, batch)
            with self.log.during(f"backward{suffix}"):
                value.backward()
            del value, batch

    def autocast(self) -> Any:
        """Return mixed precision as the trainers use it."""
        return torch.autocast(DEVICE, torch.bfloat16, enabled=self.setting.mixed)

    def call(self, batch: Batch, **more: Any) -> Any:
        """Call the model on a batch."""
        return self.model(**batch.texts, **batch.pixels, **more)

    def wrapped(self) -> Callable[..., Any]:
        """Return the model as accelerate prepares it: under autocast, with float32 outputs."""

        def forward(**inputs: Any) -> Any:
            with self.autocast():
                return self.model(**inputs)

        return convert_outputs_to_fp32(forward) if self.setting.mixed else forward

    @torch.no_grad()
    def rollout(self, batch: Batch) -> None:
        """Prefill and decode as transformers' sampling does. Unsloth samples under autocast, and of models whose images
        need no mask of their own into a static cache (``unsloth_base_fast_generate``).
        """
        length, end = self.setting.row.prompt, self.setting.row.prompt + self.setting.answer_tokens
        text, by_unsloth = self.config.get_text_config(), self.setting.backend == "unsloth"
        static = by_unsloth and not self.config.model_type.startswith("gemma")
        cache = StaticCache(config=text, max_cache_len=end) if static else DynamicCache(config=text)
        with self.autocast() if by_unsloth else contextlib.nullcontext():
            with self.log.during("prefill"):
                output = self.call(batch, past_key_values=cache, use_cache=True, logits_to_keep=1)
                token = self._draw(output.logits)
                del output
            for offset, phase in enumerate(NEAR):
                with self.log.during(phase):
                    token = self._decode(batch, cache, token, length + offset)
            with self.log.during(JUMP):
                torch.empty(1, device=DEVICE)
                if not static:
                    self._lengthen(cache, end - len(FAR))
            first = length + len(NEAR) if static else end - len(FAR)
            for offset, phase in enumerate(FAR):
                with self.log.during(phase):
                    token = self._decode(batch, cache, token, first + offset)
        with self.log.during(END):
            torch.empty(1, device=DEVICE)
        layers: Any = cache.layers
        self.cache_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    def _sample(self) -> None:
        """Ready for a rollout: without checkpointing (TRL's ``unwrap_model_for_generation``) and dropout."""
        self.model.gradient_checkpointing_disable()
        self.model.eval()

    def _train(self) -> None:
        """Ready for a training pass, as the backends load a model and the trainers switch checkpointing on."""
        self.model.config.use_cache = False
        if self.setting.backend == "hf":
            disable_input_gradients(self.model)
        if self.setting.checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.setting.backend == "unsloth":
                self.model.enable_input_require_grads()
        self.model.train()

    def _training_batch(self) -> Batch:
        """A micro-batch. GRPO holds the pixels of all completions of a step beside it."""
        setting = self.setting
        answer = setting.row.answer if setting.stage == "sft" else setting.answer_tokens
        batch = self._batch(setting.rows, answer)
        others = setting.concurrent - setting.rows
        self._held = self._pixels(others) if others > 0 else None
        return batch

    def _batch(self, rows: int, answer: int) -> Batch:
        row = self.setting.row
        gemma = hasattr(self.config, "image_token_index")
        token = self.config.image_token_index if gemma else self.config.image_token_id
        with unset_fake_temporarily():
            ids = torch.full((rows, row.prompt + answer), 10)
            if not gemma:
                ids[:, 4] = self.config.vision_start_token_id
            ids[:, 5 : 5 + row.images] = token
            mask = torch.ones_like(ids)
            if rows > 1:
                mask[1:, :3] = 0  # prompts of different lengths, so that a mask is needed
            kinds = (ids == token).long()
        texts = {"input_ids": ids, "attention_mask": mask, self._kinds: kinds}
        return Batch({name: known_tensor(value) for name, value in texts.items()}, self._pixels(rows))

    @property
    def _kinds(self) -> str:
        return "token_type_ids" if self.config.model_type.startswith("gemma") else "mm_token_type_ids"

    def _pixels(self, rows: int) -> dict[str, torch.Tensor]:
        vision, row = self.config.vision_config, self.setting.row
        if not row.image_count or not rows:
            return {}
        if getattr(vision, "spatial_merge_size", None) is None:
            side = vision.image_size
            return {"pixel_values": torch.empty(rows * row.image_count, 3, side, side, device=DEVICE)}
        one = row.patches // row.image_count
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        with unset_fake_temporarily():
            grids = torch.tensor([[1, *grid_of(one, vision.spatial_merge_size)]] * (rows * row.image_count))
        pixels = torch.empty(rows * row.patches, width, device=DEVICE)
        return {"pixel_values": pixels, "image_grid_thw": known_tensor(grids)}

    def _decode(self, batch: Batch, cache: Any, token: torch.Tensor, length: int) -> torch.Tensor:
        rows = token.shape[0]
        with unset_fake_temporarily():
            mask = torch.ones((rows, length + 1), dtype=torch.long)
            if rows > 1:
                mask[1:, :3] = 0
        positions = torch.full((rows, 1), length, dtype=torch.long, device=DEVICE)
        if self._kinds == "mm_token_type_ids":
            positions = positions.unsqueeze(0).expand(3, -1, -1)
        output = self.model(
            input_ids=token,
            attention_mask=known_tensor(mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            position_ids=positions,
        )
        return self._draw(output.logits)

    @staticmethod
    def _draw(logits: torch.Tensor) -> torch.Tensor:
        """Suppressed tokens, softmax and draw, as ``GenerationMixin._sample``."""
        scores = logits[:, -1, :].to(copy=True, dtype=torch.float32)
        forbidden = torch.zeros(scores.shape[-1], dtype=torch.bool, device=DEVICE)
        scores = torch.where(forbidden, -float("inf"), scores)
        return torch.multinomial(torch.softmax(scores, -1), 1)

    @staticmethod
    def _lengthen(cache: Any, length: int) -> None:
        """Replace the KV cache of the beginning of a rollout with that of its end."""
        for layer in cache.layers:
            rows, heads, _, width = layer.keys.shape
            kept = min(length, layer.sliding_window - 1) if layer.is_sliding else length
            for name in ("keys", "values"):
                setattr(layer, name, None)
                setattr(layer, name, torch.empty(rows, heads, kept, width, dtype=layer.dtype, device=DEVICE))
            if layer.is_sliding:
                layer.cumulative_length = length

    def _optimizer_state(self) -> None:
        """AdamW's state: bitsandbytes keeps that of tensors of under 4096 numbers in float32 (``Optimizer8bit``)."""
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                continue
            small = "8bit" in self.setting.optimizer and parameter.numel() >= 4096
            for _ in range(2):
                self.state.append(torch.zeros_like(parameter, dtype=torch.uint8 if small else torch.float32))
                if small:
                    self.state.append(torch.zeros(-(-parameter.numel() // 256), device=DEVICE))
