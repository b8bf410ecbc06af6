"""Counters of tokens, images and FLOPs in this process. They only increase.

To measure a piece of work, subtract the counters before it from those after it.

FLOPs follow the formula for matrix products. For each position, a matrix with n parameters takes 2 n FLOPs in the
forward pass and 2 n in the backward pass for the gradient of its input. A trained matrix takes 2 n more (Kaplan et al.
2020, arXiv 2001.08361, 2.1). Gradient checkpointing repeats the forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Counts:
    """Positions, images and FLOPs. Every field is a sum.

    A position is one place of a batch in the language model, padding included. *Trained* positions have gradients.
    *Read* positions have none: prompts, log-probabilities in GRPO, and the check that images matter. *Generated*
    positions are one for each decoding step and row, including rows whose completion has ended.
    """

    trained_tokens: int = 0
    read_tokens: int = 0
    generated_tokens: int = 0
    trained_images: int = 0
    """Images, or tiles of an image, that passed through the vision tower in training."""
    read_images: int = 0
    trained_patches: int = 0
    read_patches: int = 0
    answers: int = 0
    """Completions of evaluation, prediction, the preflight checks and the verification of an export."""
    language_training: float = 0.0
    """FLOPs by formula, with a backward pass: see ``toolkit.models.flops``."""
    language_inference: float = 0.0
    vision_training: float = 0.0
    vision_inference: float = 0.0
    counted_tokens: int = 0
    """Positions of the passes that torch's counter measured."""
    counted_formula: float = 0.0
    """FLOPs of these passes by formula."""
    counted_flops: float = 0.0
    """FLOPs of these passes by torch's counter."""

    @property
    def training(self) -> float:
        """Return the FLOPs of training by formula."""
        return self.language_training + self.vision_training

    @property
    def inference(self) -> float:
        """Return the FLOPs of passes without gradients by formula."""
        return self.language_inference + self.vision_inference

    @property
    def counter_training(self) -> float | None:
        """Return the FLOPs of training by torch's counter, scaled by positions. None: the counter measured no pass."""
        if not self.counted_tokens or not self.counted_flops:
            return None
        return self.counted_flops * self.trained_tokens / self.counted_tokens

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) + getattr(other, name) for name in NAMES))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) - getattr(other, name) for name in NAMES))

    def times(self, factor: int) -> "Counts":
        """Return every field multiplied by ``factor``."""
        return Counts(*(getattr(self, name) * factor for name in NAMES))

    def to_json(self) -> dict[str, float]:
        """Return the fields that are not 0."""
        return {name: getattr(self, name) for name in NAMES if getattr(self, name)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Counts":
        """Return the counts that ``to_json`` returned.

        Raises:
            TypeError: a field is unknown.
        """
        return cls(**values)


NAMES = tuple(field.name for field in fields(Counts))

_so_far = Counts()
_unseen: set[str] = set()


def count(**more: float) -> None:
    """Add to the named fields."""
    global _so_far
    _so_far = _so_far + Counts(**more)  # type: ignore[arg-type]  # Integers stay integers.


def note_unmeasured(what: str) -> None:
    """Note work of this process that neither the formula nor torch's counter measures."""
    _unseen.add(what)


def counts() -> Counts:
    """Return the counts of this process so far."""
    return _so_far


def unseen() -> tuple[str, ...]:
    """Return the notes of ``note_unmeasured``."""
    return tuple(sorted(_unseen))


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters that every position is multiplied with, and the number of them that is trained."""

    all: int
    trained: int = 0

    def forward(self, positions: float) -> float:
        """Return the FLOPs of a forward pass."""
        return 2.0 * self.all * positions

    def backward(self, positions: float) -> float:
        """Return the FLOPs of a backward pass."""
        return 2.0 * (self.all + self.trained) * positions

    def forward_backward(self, positions: float, *, checkpointing: bool) -> float:
        """Return the FLOPs of a forward and a backward pass."""
        again = self.forward(positions) if checkpointing else 0.0
        return self.forward(positions) + again + self.backward(positions)
