"""What of a recipe, its rows and the card the memory of one stage depends on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Stage = Literal["sft", "grpo", "evaluate"]
Precision = Literal["4bit", "8bit", "16bit", "32bit"]

QUANTISED = ("4bit", "8bit")
SMALL = 256
"""Processors enlarge pictures with fewer pixels than a square of this side, or of a smaller one."""


@dataclass(frozen=True, slots=True)
class RowSize:
    """One row in tokens and patches; for a plan the longest row."""

    text: int
    """Tokens of the prompt without its pictures."""
    images: int
    """Tokens of the pictures."""
    answer: int
    """Tokens of the reference answer (SFT)."""
    pictures: int
    patches: int
    """Patches of all its pictures in the vision tower."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of its pictures as the model's processor gets them; empty: not known."""

    @property
    def prompt(self) -> int:
        """Text and pictures."""
        return self.text + self.images

    def limited(self, side: int, cell: int, merge: int) -> "RowSize":
        """The row with no picture longer than ``side``, where tokens follow from the size: at most so many of them.

        A token stands for ``cell`` x ``cell`` pixels and ``merge`` x ``merge`` patches.
        """
        tokens = 0
        for size in self.sizes:
            share = min(1.0, side / max(size))
            across, down = (-(-round(one * share) // cell) for one in size)
            tokens += max(across * down, (SMALL // cell) ** 2)
        images = min(self.images, tokens)
        return replace(self, images=images, patches=images * merge**2)


@dataclass(frozen=True, slots=True)
class Setting:
    """One stage on one kind of card."""

    stage: Stage
    row: RowSize
    precision: Precision
    bf16: bool
    """The card computes in bfloat16 (compute capability 8.0 and above); others take float32."""
    tuning: Literal["lora", "full"] = "lora"
    r: int = 16
    dropout: float = 0.0
    targets: Sequence[str] = ()
    lora_vision: bool = False
    optimizer: str = "adamw_torch"
    checkpointing: bool = True
    rows: int = 1
    """Rows that pass through the model at once in training."""
    concurrent: int = 0
    """Answers that are written at once."""
    answer_tokens: int = 0
    """Tokens at most of an answer that the model writes."""
    eager: bool = False
    """Attention holds its scores."""
    backend: Literal["hf", "unsloth"] = "hf"
    reference: Literal["none", "adapter", "model"] = "none"
    """What a KL term is measured against, as far as it takes memory of its own."""

    @property
    def trains(self) -> bool:
        """Whether weights change."""
        return self.stage != "evaluate"

    @property
    def mixed(self) -> bool:
        """Training computes in bfloat16 by autocast (``backends.settings.mixed_precision``)."""
        return self.bf16 and self.precision != "32bit"

    @property
    def value(self) -> int:
        """Bytes of an activation."""
        return 2 if self.mixed else 4

    @property
    def stored(self) -> int:
        """Bytes of a number outside of autocast: bfloat16, or float32 without it (``backends.loading``)."""
        return 2 if self.mixed else 4

    @property
    def held(self) -> int:
        """Bytes of a weight that is not quantised. Unsloth holds float16 where it computes in float32
        (``patch_model_and_tokenizer`` of unsloth_zoo 2026.10.7).
        """
        return 2 if self.backend == "unsloth" and self.precision != "32bit" else self.stored

    @property
    def tokens(self) -> int:
        """Tokens of a row in training: prompt and answer."""
        return self.row.prompt + (self.row.answer if self.stage == "sft" else self.answer_tokens)
