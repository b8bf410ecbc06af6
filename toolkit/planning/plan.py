"""The plan of a run, as `toolkit plan --json` prints it and plan.json stores it.

Keys are stable between versions. ``format`` is increased if a key changes its meaning. Unknown values are null, and
``unknown`` has the reasons.

::

    format          2
    run             run.name
    stages          the stages in their order
    ok              whether there are no problems
    problems        code, place, value, rule, remedy, certain (false: by an estimate)
    warnings        code, place, value, rule, remedy
    unknown         fact -> reason that it is unknown
    data            rows by split, dropped, leaks, announcements, practice (true: synthetic rows)
    tokens          rows, counted, exact, limit, too_long, and median, p95, max of total, text, images, answer
    work            stage -> steps, samples, completions, answers, answer_tokens, evaluations
    model           name, configuration (folder, cache, shipped), type, parameters, vision_parameters,
                    trained_parameters, precision, base (location of the weights), loaded (the repository that
                    Unsloth loads in place of the model. Null: the model itself)
    gpu             name, memory_gb, bf16, count, here. Null: no GPU
    memory          stage -> peak_gb, reserved_gb, precision, moment, peak_gb_without_bf16,
                    moments (moment -> part -> bytes), fits (nominal GB of a GPU -> fits, knobs)
    time            null, or assumptions, gpus (GPU -> stage -> seconds_per_step, steps, hours: both ends of a range. A
                    step of evaluate is one evaluation), here (the GPU of the plan. Null: none or several)
    disk            parts (bytes), needed_gb, free_gb, downloads (repository -> bytes), downloads_free_gb
    versions        package -> installed and tested version, if they differ

GB are 10^9 bytes, except for nominal sizes of GPUs. ``reserved_gb`` is the peak that torch would report, which does not
include the CUDA context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from toolkit.planning.architecture import Architecture
from toolkit.planning.disk import Disk
from toolkit.planning.duration import ASSUMPTIONS, StageTime
from toolkit.planning.findings import Finding, WithFindings
from toolkit.planning.gpu import Gpu
from toolkit.planning.memory import Estimate
from toolkit.planning.model_files import BaseWeights
from toolkit.planning.prequantised import Repository
from toolkit.planning.stages import Work
from toolkit.planning.tokens import Tokens

FORMAT = 2
GB = 1e9


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Memory estimate of a stage, and the settings that make it fit. Empty: it fits. None: no known setting is enough.

    ``knobs`` has the settings for each GPU size in GB, and ``here`` for the GPU of the plan. ``without_bf16`` is the
    estimate for a GPU without bfloat16 (T4, V100), on which unquantized parameters are float32.
    """

    estimate: Estimate
    without_bf16: Estimate
    knobs: Mapping[int, tuple[str, ...] | None]
    precision: str
    """Precision on a GPU. ``auto`` may be another precision on this machine."""
    here: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Plan(WithFindings):
    """The plan of a recipe, as the module describes it. None: unknown."""

    run: str
    stages: Sequence[str]
    findings: Sequence[Finding] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    tokens: Tokens | None = None
    work: Mapping[str, Work] | None = None
    model_name: str = ""
    configuration: str | None = None
    architecture: Architecture | None = None
    trained_parameters: int | None = None
    precision: str = ""
    base: BaseWeights | None = None
    repository: Repository | None = None
    """Repository that Unsloth loads in place of the model."""
    gpu: Gpu | None = None
    memory: Mapping[str, StageMemory] | None = None
    time: Mapping[str, Mapping[str, StageTime]] | None = None
    """GPU -> stage -> duration, for the plan's GPU, for all GPUs of a described size, or for common GPUs."""
    disk: Disk | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the module describes."""
        return {
            "format": FORMAT,
            "run": self.run,
            "stages": list(self.stages),
            **self.findings_json(),
            "unknown": dict(self.unknown),
            "data": self.data,
            "tokens": None if self.tokens is None else _tokens(self.tokens),
            "work": None if self.work is None else {name: asdict(work) for name, work in self.work.items()},
            "model": self._model(),
            "gpu": None if self.gpu is None else self.gpu.to_json(),
            "memory": None if self.memory is None else {name: _memory(one) for name, one in self.memory.items()},
            "time": None if self.time is None else self._time(),
            "disk": None if self.disk is None else self.disk.to_json(),
            "versions": dict(self.versions),
        }

    def _model(self) -> dict[str, Any]:
        known = self.architecture
        return {
            "name": self.model_name,
            "configuration": self.configuration,
            "type": None if known is None else known.model_type,
            "parameters": None if known is None else known.parameters,
            "vision_parameters": None if known is None else known.vision_parameters,
            "trained_parameters": self.trained_parameters,
            "precision": self.precision,
            "base": None if self.base is None else self.base.state,
            "loaded": None if self.repository is None else self.repository.name,
        }

    def _time(self) -> dict[str, Any]:
        figures = () if self.gpu is None else self.gpu.figures
        gpus = {
            name: {stage: one.to_json() for stage, one in found.items()} for name, found in (self.time or {}).items()
        }
        return {
            "assumptions": list(ASSUMPTIONS),
            "here": figures[0].name if len(figures) == 1 else None,
            "gpus": gpus,
        }


def _tokens(tokens: Tokens) -> dict[str, Any]:
    percentiles = {part: tokens.percentiles(part) for part in ("total", "text", "images", "answer")}
    facts = {"rows": tokens.rows, "counted": len(tokens.lengths), "exact": tokens.exact, "limit": tokens.limit}
    return {**facts, "too_long": list(tokens.too_long), **percentiles}


def _memory(one: StageMemory) -> dict[str, Any]:
    peak = one.estimate.peak
    return {
        "peak_gb": round(peak.total / GB, 3),
        "reserved_gb": round(peak.reserved / GB, 3),
        "precision": one.precision,
        "moment": peak.name,
        "peak_gb_without_bf16": round(one.without_bf16.peak.total / GB, 3),
        "moments": {moment.name: dict(moment.parts) for moment in one.estimate.moments},
        "fits": {
            str(size): {"fits": knobs == (), "knobs": None if knobs is None else list(knobs)}
            for size, knobs in one.knobs.items()
        },
    }
