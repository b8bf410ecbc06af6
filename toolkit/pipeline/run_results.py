"""The results of a run: the tables of scores, and the result of every finished stage, in memory and in results.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.data.result import DataResult
from toolkit.errors import RunError
from toolkit.evaluation.results import (
    BASELINE,
    EVALUATE,
    LABELS,
    AgentMemoryResult,
    BaselineResult,
    EvaluationResult,
    ResultRow,
    ScoreResult,
    evaluation_stage,
)
from toolkit.exporting.results import ExportResult
from toolkit.reporting.gpu_peaks import GpuPeak, gpu_peaks
from toolkit.runfolder import (
    EXPORT,
    SCHEMA_VERSION,
    RunFolder,
    find_run,
    from_json,
    read_json,
    read_state,
    write_json,
)
from toolkit.runfolder.files import Value
from toolkit.runfolder.usage import ComputeSummary, summarise_compute
from toolkit.training.results import DpoResult, GrpoResult, SftResult


@dataclass(frozen=True, slots=True)
class RunResults:
    """The results of a run so far.

    Attributes:
        schema_version: ``SCHEMA_VERSION``.
        name: the name of the run.
        seed: the seed of the run.
        fingerprints: input (``data``, ``rewards``) -> digest of its content.
        score: name of the primary score. Empty if nothing is evaluated.
        split: the evaluated split.
        rows: table of the primary score: baselines, before training, after SFT, after DPO, after GRPO.
        also: further score, agent-memory mode or whole episodes -> its table.
        compute: usage of all sessions. None: nothing was recorded.
        gpu_memory: training stage -> planned and measured peak.
        data: result of the data stage.
        evaluations: name -> result of a finished evaluation.
        sft: result of SFT.
        dpo: result of DPO.
        grpo: result of GRPO.
        export: result of the export. Results of stages that have not finished are None.
        folder: the run folder. It is not in results.json, so that a run can be moved.
    """

    schema_version: int
    name: str
    seed: int
    fingerprints: Mapping[str, str]
    score: str
    split: str
    rows: tuple[ResultRow, ...]
    also: Mapping[str, tuple[ResultRow, ...]]
    compute: ComputeSummary | None
    gpu_memory: Mapping[str, GpuPeak]
    data: DataResult | None
    evaluations: Mapping[str, EvaluationResult]
    sft: SftResult | None
    dpo: DpoResult | None = field(default=None, kw_only=True)
    grpo: GrpoResult | None
    export: ExportResult | None
    folder: Path

    @property
    def run(self) -> RunFolder:
        """Return the run folder."""
        return RunFolder(self.folder)

    @property
    def tables(self) -> Mapping[str, tuple[ResultRow, ...]]:
        """Return score -> its table, with the primary score first. Empty if nothing is evaluated."""
        return {self.score: self.rows, **self.also} if self.rows else {}

    @property
    def agent_memory(self) -> Mapping[str, AgentMemoryResult]:
        """Return label of a row -> its comparison of agent-memory modes, for the evaluations in the tables."""
        labels = {row.label for row in self.rows}
        return {
            label: found.agent_memory
            for name, found in self.evaluations.items()
            if found.agent_memory is not None and (label := LABELS.get(name, name)) in labels
        }

    @property
    def last(self) -> tuple[str, EvaluationResult] | None:
        """Return the label and the evaluation of the last row of the tables. None: nothing is evaluated."""
        label = self.rows[-1].label if self.rows else ""
        return next(((label, one) for name, one in self.evaluations.items() if LABELS.get(name, name) == label), None)


def read_results(path: Path | str) -> RunResults:
    """Return the content of results.json.

    Args:
        path: a run folder, or its results.json.

    Raises:
        RunError: the folder is not a run or one of another version of the toolkit, or the file is missing or corrupt.
    """
    path = Path(path)
    run = find_run(path.parent if path.name == "results.json" else path)
    try:
        return from_json(RunResults, {**read_json(run.results_file), "folder": run.path})
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            "run.results_damaged",
            "results.json must be complete and of this version of the toolkit",
            place=run.results_file,
            value=str(error),
            remedy="Run the recipe again, which skips finished stages and writes the file.",
        ) from error


def write_results(run: RunFolder) -> RunResults:
    """Write results.json from the results of the finished stages, and return its content."""
    results = collect_results(run)
    content: dict[str, Any] = asdict(results)
    del content["folder"]
    write_json(run.results_file, content)
    return results


def collect_results(run: RunFolder, names: Sequence[str] | None = None) -> RunResults:
    """Return the results of the finished stages.

    Args:
        run: the run.
        names: the evaluations in the tables, which have the same samples. Default: those of `toolkit run`.

    Raises:
        RunError: the result of a stage is damaged.
    """
    finished = run.finished_stages()
    prefixed = [stage for stage in finished if stage.startswith(EVALUATE)]
    found = {stage.removeprefix(EVALUATE): run.result(stage, EvaluationResult) for stage in prefixed}
    shown = {name: found[name] for name in (evaluations(run) if names is None else names)}
    last = list(shown.values())[-1] if shown else None
    scores = [score for score in last.also if all(score in one.also for one in shown.values())] if last else []
    state = read_state(run)
    return RunResults(
        schema_version=SCHEMA_VERSION,
        name=run.name,
        seed=state.seed,
        fingerprints=state.fingerprints,
        score=last.score if last else "",
        split=last.split if last else "",
        rows=_rows({name: one.primary for name, one in shown.items()}),
        also={score: _rows({name: one.also[score] for name, one in shown.items()}) for score in scores},
        compute=summarise_compute(run.compute_file),
        gpu_memory=gpu_peaks(run),
        data=_result(run, "data", DataResult),
        evaluations=found,
        sft=_result(run, "sft", SftResult),
        dpo=_result(run, "dpo", DpoResult),
        grpo=_result(run, "grpo", GrpoResult),
        export=_result(run, EXPORT, ExportResult),
        folder=run.path,
    )


def evaluations(run: RunFolder) -> list[str]:
    """Return the finished evaluations of `toolkit run`, in order."""
    return [name for name in LABELS if run.is_done(evaluation_stage(name))]


def _result(run: RunFolder, stage: str, kind: type[Value]) -> Value | None:
    return run.result(stage, kind) if run.is_done(stage) else None


def _rows(found: Mapping[str, ScoreResult]) -> tuple[ResultRow, ...]:
    """Return the rows of the baselines, then one per evaluation."""
    if not found:
        return ()
    last = list(found.values())[-1]
    rows = [ResultRow("majority baseline", last.baseline)]
    previous = BASELINE
    entries: list[tuple[str, BaselineResult | ScoreResult]] = [*last.baselines.items(), *found.items()]
    for name, result in entries:
        differences = result.differences
        label = LABELS.get(name, name)
        rows.append(ResultRow(label, result.value, differences.get(previous), differences.get(BASELINE)))
        previous = name
    return tuple(rows)
