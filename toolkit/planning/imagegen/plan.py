"""The plan of a recipe with [imagegen] as one object: what `toolkit plan --json` prints and plan.json keeps.

Keys stay as they are from version to version. ``schema_version`` is increased if one changes its meaning. Unknown
values are null, and ``unknown`` says why.

::

    schema_version  2
    kind            "imagegen"
    run             run.name
    stages          the stages in their order
    ok              no problem was found
    problems        code, place, value, rule, remedy, certain (false: by an estimate)
    warnings        code, place, value, rule, remedy
    unknown         what -> why it was not tried or cannot be estimated
    ratings         rows, images, prompts, synthetic, dropped, splits (split -> images, ratings, levels)
    work            stage -> steps, images_per_step, rounds, evaluations, generated, updated, encoded
    generator       name, state, parameters, trained_parameters, precision, size
    gpu             name, memory_gb, bf16, count, here; null: none
    memory          stage -> peak_gb, reserved_gb, moment, moments (moment -> part -> bytes), fits (GB of a GPU -> bool)
    largest         recipe key -> the largest value that fits the plan's GPU, by the estimate
    ram_gb          part -> GB of RAM
    time            null, or assumptions and gpus (GPU -> stage -> hours: two ends)
    disk            parts (bytes), needed_gb, free_gb, downloads (repository -> bytes), downloads_free_gb
    versions        package -> installed and tested version, where they differ

GB are 10^9 bytes, but for the GPUs' nominal sizes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from toolkit.planning.disk import Disk
from toolkit.planning.duration import Range
from toolkit.planning.findings import PlanFinding, WithFindings
from toolkit.planning.gpu import Gpu
from toolkit.planning.imagegen.duration import ASSUMPTIONS, StageWork
from toolkit.planning.imagegen.ratings import RatingsFacts
from toolkit.planning.memory import Moment

SCHEMA_VERSION = 2
GB = 1e9


@dataclass(frozen=True, slots=True)
class GeneratorFacts:
    """The generator: name, where it is, parameters (None: not known), trained parameters, and number format."""

    name: str
    state: str
    parameters: int | None
    trained_parameters: int | None
    precision: str
    size: int


@dataclass(frozen=True, slots=True)
class ImagegenStageMemory:
    """The moments of one stage that could be its peak, and the nominal sizes of GPUs that it fits."""

    moments: tuple[Moment, ...]
    fits: Mapping[int, bool]

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)


@dataclass(frozen=True, slots=True)
class ImagegenPlan(WithFindings):
    """See the module. None: not known."""

    run: str
    stages: tuple[str, ...]
    generator: GeneratorFacts
    work: Mapping[str, StageWork]
    findings: tuple[PlanFinding, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)
    ratings: RatingsFacts | None = None
    gpu: Gpu | None = None
    memory: Mapping[str, ImagegenStageMemory] | None = None
    largest: Mapping[str, int] = field(default_factory=dict)
    ram: Mapping[str, int] = field(default_factory=dict)
    time: Mapping[str, Mapping[str, Range]] | None = None
    disk: Disk | None = None
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the object that the module describes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "imagegen",
            "run": self.run,
            "stages": list(self.stages),
            **self.findings_json(),
            "unknown": dict(self.unknown),
            "ratings": None if self.ratings is None else _ratings(self.ratings),
            "work": {name: asdict(one) for name, one in self.work.items()},
            "generator": asdict(self.generator),
            "gpu": None if self.gpu is None else self.gpu.to_json(),
            "memory": None if self.memory is None else {name: _memory(one) for name, one in self.memory.items()},
            "largest": dict(self.largest),
            "ram_gb": {part: round(size / GB, 3) for part, size in self.ram.items()},
            "time": None if self.time is None else _time(self.time),
            "disk": None if self.disk is None else self.disk.to_json(),
            "versions": {name: dict(one) for name, one in self.versions.items()},
        }


def _ratings(one: RatingsFacts) -> dict[str, object]:
    counts = {"rows": one.rows, "images": one.images, "prompts": len(one.prompts), "synthetic": one.synthetic}
    splits = {name: asdict(split) for name, split in one.splits.items()}
    return {**counts, "dropped": [asdict(dropped) for dropped in one.dropped], "splits": splits}


def _memory(one: ImagegenStageMemory) -> dict[str, object]:
    peak = one.peak
    return {
        "peak_gb": round(peak.total / GB, 3),
        "reserved_gb": round(peak.reserved / GB, 3),
        "moment": peak.name,
        "moments": {moment.name: dict(moment.parts) for moment in one.moments},
        "fits": {str(size): fits for size, fits in one.fits.items()},
    }


def _time(time: Mapping[str, Mapping[str, Range]]) -> dict[str, object]:
    gpus = {gpu: {stage: list(one.hours) for stage, one in found.items()} for gpu, found in time.items()}
    return {"assumptions": list(ASSUMPTIONS), "gpus": gpus}
