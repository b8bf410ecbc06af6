"""The plan as one object: what `toolkit plan --json` prints and plan.json keeps.

Keys stay as they are from version to version; ``format`` is raised where one changes its meaning. What is not known is
null, and ``unknown`` says why.

::

    format          2
    run             run.name
    stages          the stages in their order
    ok              no problem was found
    problems        code, place, value, rule, remedy, certain (false: by an estimate)
    warnings        code, place, value, rule, remedy
    unknown         what -> why it cannot be told
    data            rows by split, dropped, leaks, announcements, practice (the rows are generated when the run begins)
    tokens          rows, counted, exact, limit, too_long, and median, p95, max of total, text, images, answer
    work            stage -> steps, samples, completions, answers, answer_tokens, evaluations
    model           name, configuration (folder, cache, shipped), type, parameters, vision_parameters,
                    trained_parameters, precision, base (where the weights are), loaded (the repository that
                    Unsloth loads in the model's place; null: the model itself)
    gpu             name, memory_gb, bf16, count, here; null: none
    memory          stage -> peak_gb, reserved_gb, precision, moment, peak_gb_without_bf16,
                    moments (moment -> part -> bytes), fits (card's GB -> fits, knobs)
    time            null, or assumptions; gpus (GPU -> stage -> seconds_per_step, steps, hours: two ends each; a step of
                    evaluate is one evaluation); here (the plan's GPU as gpus names it; null: none, or several)
    disk            parts (bytes), needed_gb, free_gb, downloads (repository -> bytes), downloads_free_gb
    versions        package -> installed and tested version, where they differ

GB are 10^9 bytes, but for the cards' nominal sizes. ``reserved_gb`` is what torch would report as its peak: the
estimate without CUDA's own context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from toolkit.planning.architecture import Architecture
from toolkit.planning.base import BaseWeights
from toolkit.planning.disk import Disk
from toolkit.planning.duration import ASSUMPTIONS, StageTime
from toolkit.planning.findings import Finding
from toolkit.planning.gpu import Gpu
from toolkit.planning.memory import Estimate
from toolkit.planning.prequantised import Repository
from toolkit.planning.tokens import Tokens
from toolkit.planning.work import Work

FORMAT = 2
GB = 1e9


@dataclass(frozen=True, slots=True)
class StageMemory:
    """A stage's estimate, and what would make it fit: empty: as it is; None: nothing that is known.

    ``knobs`` has that for each size of card in GB, ``here`` for the card of the plan. ``without_bf16`` is the stage on
    a card without bfloat16 (T4, V100), where what is not quantised is float32.
    """

    estimate: Estimate
    without_bf16: Estimate
    knobs: Mapping[int, tuple[str, ...] | None]
    precision: str
    """On a card: ``auto`` may be another on this machine."""
    here: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module. None: not known."""

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
    """What Unsloth loads in the model's place."""
    gpu: Gpu | None = None
    memory: Mapping[str, StageMemory] | None = None
    time: Mapping[str, Mapping[str, StageTime]] | None = None
    """GPU -> stage -> duration: of the plan's GPU, of all GPUs of a described size, or of common ones."""
    disk: Disk | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def problems(self) -> list[Finding]:
        """What the run cannot work with."""
        return [finding for finding in self.findings if finding.problem]

    @property
    def warnings(self) -> list[Finding]:
        """What must be known."""
        return [finding for finding in self.findings if not finding.problem]

    def to_json(self) -> dict[str, Any]:
        """The object that the module describes."""
        return {
            "format": FORMAT,
            "run": self.run,
            "stages": list(self.stages),
            "ok": not self.problems,
            "problems": [one.to_json() for one in self.problems],
            "warnings": [one.to_json() for one in self.warnings],
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
    spreads = {part: tokens.spread(part) for part in ("total", "text", "images", "answer")}
    facts = {"rows": tokens.rows, "counted": len(tokens.lengths), "exact": tokens.exact, "limit": tokens.limit}
    return {**facts, "too_long": list(tokens.too_long), **spreads}


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
