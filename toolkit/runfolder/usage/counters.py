"""What models have worked through in this process: counters that only go up, as the system's clock of CPU time does.

Whoever wants to know what a piece of work took reads them before and after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Counts:
    """Positions, pictures and floating-point operations; every field adds up.

    A position is one place of a batch in the language model, padding included. *Trained* is what gradients were
    computed for; *read* what was read without (prompts, GRPO's probabilities, the look whether pictures count);
    *generated* one a step of writing, and so also those of an answer that ended before the longest of its batch.
    """

    trained_tokens: int = 0
    read_tokens: int = 0
    generated_tokens: int = 0
    trained_images: int = 0
    """Pictures (or tiles of one) that went through the vision tower while gradients were computed."""
    read_images: int = 0
    trained_patches: int = 0
    read_patches: int = 0
    answers: int = 0
    """Completions that evaluation, prediction, the probe and the check of an export asked for."""
    language_training: float = 0.0
    """FLOPs by formula, with a backward pass: see ``backends.register_usage_hooks``."""
    language_inference: float = 0.0
    vision_training: float = 0.0
    vision_inference: float = 0.0
    counted_tokens: int = 0
    """Positions of the passes that torch's counter watched."""
    counted_formula: float = 0.0
    """FLOPs of those passes by formula."""
    counted_flops: float = 0.0
    """FLOPs of those passes by torch's counter."""

    @property
    def training(self) -> float:
        """FLOPs of training by formula."""
        return self.language_training + self.vision_training

    @property
    def inference(self) -> float:
        """FLOPs of everything without gradients by formula."""
        return self.language_inference + self.vision_inference

    @property
    def counter_training(self) -> float | None:
        """FLOPs of training by torch's counter: its passes, scaled by positions; None: it watched none."""
        if not self.counted_tokens or not self.counted_flops:
            return None
        return self.counted_flops * self.trained_tokens / self.counted_tokens

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) + getattr(other, name) for name in NAMES))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) - getattr(other, name) for name in NAMES))

    def times(self, factor: int) -> "Counts":
        """Every field ``factor`` times."""
        return Counts(*(getattr(self, name) * factor for name in NAMES))

    def to_json(self) -> dict[str, float]:
        """The fields that are not 0."""
        return {name: getattr(self, name) for name in NAMES if getattr(self, name)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Counts":
        """What ``to_json`` gave.

        Raises:
            TypeError: it has a field that is none of these.
        """
        return cls(**values)


NAMES = tuple(field.name for field in fields(Counts))

_so_far = Counts()
_unseen: set[str] = set()


def count(**more: float) -> None:
    """Add to the fields that are named."""
    global _so_far
    _so_far = _so_far + Counts(**more)  # type: ignore[arg-type]  # ints stay ints


def note_unseen(what: str) -> None:
    """Keep in words what neither formula nor counter sees in this process."""
    _unseen.add(what)


def counts() -> Counts:
    """Everything so far."""
    return _so_far


def unseen() -> tuple[str, ...]:
    """What ``note_unseen`` was told."""
    return tuple(sorted(_unseen))
