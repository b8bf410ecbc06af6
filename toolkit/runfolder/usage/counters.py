"""Counters of tokens, images and FLOPs in this process. They only increase.

To measure a piece of work, subtract the counters before it from those after it.

FLOPs follow the formula for matrix products. For each position, a matrix with n parameters takes 2 n FLOPs in the
forward pass and 2 n in the backward pass for the gradient of its input. A trained matrix takes 2 n more (Kaplan et al.
2020, arXiv 2001.08361, 2.1). Gradient checkpointing repeats the forward pass.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

log = logging.getLogger(__name__)


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
_bypasses: dict[str, int] = {}


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


def note_bypass(saving: str, reason: str) -> None:
    """Count a call that repeated work, because a saving could not be used. The first call of each reason is logged.

    Args:
        saving: What would have saved the work, such as "vision cache".
        reason: Why it was bypassed.
    """
    what = f"{saving}: {reason}"
    if what not in _bypasses:
        log.info("work is repeated without the %s", what)
    _bypasses[what] = _bypasses.get(what, 0) + 1


def bypasses() -> dict[str, int]:
    """Return the number of calls of each saving and reason of ``note_bypass``."""
    return dict(sorted(_bypasses.items()))


def forget_bypasses() -> None:
    """Start to count and log bypasses anew, for a new session."""
    _bypasses.clear()


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


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums and peaks. None: not measured.

    ``cpu`` is the time of the process and of its children that have ended. ``gpu`` is wall time times the number of
    GPUs that the process held. ``energy`` covers ``energy_wall`` seconds of ``wall``. ``co2`` covers ``co2_energy``
    kWh.
    """

    wall: float = 0.0
    """Seconds, as ``cpu`` and ``gpu``."""
    cpu: float = 0.0
    gpu: float = 0.0
    memory: int | None = None
    """Peak resident memory of the process since its start, in bytes."""
    gpu_memory: int | None = None
    """Peak memory that torch reserved on one GPU, in bytes. None: no CUDA device was used."""
    energy: float | None = None
    """kWh."""
    energy_wall: float = 0.0
    co2: float | None = None
    """kg of CO2 equivalents."""
    co2_energy: float = 0.0
    counts: Counts = field(default_factory=Counts)

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            wall=self.wall + other.wall,
            cpu=self.cpu + other.cpu,
            gpu=self.gpu + other.gpu,
            memory=largest_known(self.memory, other.memory),
            gpu_memory=largest_known(self.gpu_memory, other.gpu_memory),
            energy=_known(self.energy, other.energy),
            energy_wall=self.energy_wall + other.energy_wall,
            co2=_known(self.co2, other.co2),
            co2_energy=self.co2_energy + other.co2_energy,
            counts=self.counts + other.counts,
        )

    def since(self, before: "Usage") -> "Usage":
        """Return the difference to an earlier reading of the same clocks. Peaks are those of this reading."""
        measured = self.energy_wall > before.energy_wall
        return Usage(
            wall=self.wall - before.wall,
            cpu=self.cpu - before.cpu,
            gpu=self.gpu - before.gpu,
            memory=self.memory,
            gpu_memory=self.gpu_memory,
            energy=(self.energy or 0.0) - (before.energy or 0.0) if measured else None,
            energy_wall=self.energy_wall - before.energy_wall,
            co2=(self.co2 or 0.0) - (before.co2 or 0.0) if measured and self.co2 is not None else None,
            co2_energy=self.co2_energy - before.co2_energy,
            counts=self.counts - before.counts,
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values. Null: not measured."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {name: _short(value) for name, value in plain.items()} | {"counts": self.counts.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Usage":
        """Return the usage that ``to_json`` returned.

        Raises:
            KeyError, TypeError, ValueError: a field is missing, unknown, or not a finite number from 0.
        """
        counted = values["counts"]
        for value in (*(values[name] for name in _SUMS), *counted.values()):
            _check(value)
        for name in _PLAIN:
            if values[name] is not None:
                _check(values[name])
        return cls(**{**values, "counts": Counts.from_json(counted)})


_SUMS = ("wall", "cpu", "gpu", "energy_wall", "co2_energy")
_PLAIN = ("memory", "gpu_memory", "energy", "co2", *_SUMS)


def total(usages: Iterable[Usage]) -> Usage:
    """Return the sum of all usages."""
    return sum(usages, start=Usage())


def largest_known(one: int | None, other: int | None) -> int | None:
    """Return the larger of the known values."""
    known = [value for value in (one, other) if value is not None]
    return max(known) if known else None


def _known(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return sum(known) if known else None


def _short(value: float | None) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _check(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"not a number: {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"not a finite number from 0 up: {value!r}")
