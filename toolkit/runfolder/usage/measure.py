"""Usage of a piece of work: time, memory, energy, and counts of tokens, images and FLOPs."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.runfolder.usage.counters import Counts


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
