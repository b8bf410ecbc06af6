"""Collect the results of a run: baseline, before, after SFT, after GRPO, with intervals and paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from toolkit.pipeline.gpu_peaks import gpu_peaks
from toolkit.runfolder import Record, RunFolder, read_json, write_json
from toolkit.runfolder.usage import summarise_compute

EVALUATE = "evaluate-"
"""Prefix of the stage of an evaluation."""

LABELS: Mapping[str, str] = {"before": "before", "sft": "after SFT", "grpo": "after GRPO"}
"""Evaluations of `toolkit run` in order -> their label in the table. Other evaluations are labelled by name."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One row of the table.

    Attributes:
        label: the label of the row.
        estimate: the score with n and interval.
        to_previous: paired difference to the row above. None: there is nothing to compare with.
        to_baseline: paired difference to the majority baseline. None: likewise.
    """

    label: str
    estimate: Mapping[str, Any]
    to_previous: Mapping[str, Any] | None = None
    to_baseline: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a run so far.

    Attributes:
        run: the run folder.
        score: name of the primary score. Empty if nothing is evaluated.
        split: the evaluated split.
        rows: rows of the primary score.
        also: further score, agent-memory mode or whole episodes -> rows.
        agent_memory: label of a row -> its comparison of agent-memory modes, if the task has agent memory.
    """

    run: RunFolder
    score: str
    split: str
    rows: tuple[ResultRow, ...]
    also: Mapping[str, tuple[ResultRow, ...]] = field(default_factory=dict)
    agent_memory: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def tables(self) -> Mapping[str, tuple[ResultRow, ...]]:
        """Score -> its rows, with the primary score first. Empty if nothing is evaluated."""
        return {self.score: self.rows, **self.also} if self.rows else {}


def evaluations(run: RunFolder) -> list[str]:
    """Return the finished evaluations of `toolkit run`, in order."""
    return [name for name in LABELS if run.is_done(EVALUATE + name)]


def read_results(run: RunFolder, names: Sequence[str] | None = None) -> Results:
    """Return the table of finished evaluations on the same samples. Default: those of `toolkit run`."""
    names = evaluations(run) if names is None else names
    if not names:
        return Results(run, "", "", ())
    records = [run.record(EVALUATE + name) for name in names]
    last = records[-1]
    shared = [score for score in last["also"] if all(score in record["also"] for record in records)]
    also = {score: _rows(names, [record["also"][score] for record in records]) for score in shared}
    agent_memory = {
        LABELS.get(name, name): record["agent_memory"]
        for name, record in zip(names, records, strict=True)
        if "agent_memory" in record
    }
    return Results(run, last["score"], last["split"], _rows(names, records), also, agent_memory)


def write_results(run: RunFolder) -> Results:
    """Write the table and the records of all finished stages to results.json, and return the table."""
    results = read_results(run)
    write_json(
        run.results_file,
        {
            "run": run.name,
            **{key: value for key, value in read_json(run.run_file).items() if key in ("seed", "fingerprints")},
            "score": results.score,
            "split": results.split,
            "table": [asdict(row) for row in results.rows],
            "also": {score: [asdict(row) for row in rows] for score, rows in results.also.items()},
            "compute": summarise_compute(run.compute_file),
            "gpu_memory": gpu_peaks(run),
            "stages": {stage: run.record(stage) for stage in run.finished_stages()},
        },
    )
    return results


def _rows(names: Sequence[str], records: Sequence[Record]) -> tuple[ResultRow, ...]:
    """Return the rows of the baselines, then one per evaluation."""
    last = records[-1]
    rows = [ResultRow("majority baseline", last["baseline"])]
    previous = "baseline"
    for label, record in last.get("baselines", {}).items():
        rows.append(_row(label, record, previous))
        previous = label
    above = [previous, *names]
    return *rows, *(_row(name, record, before) for name, record, before in zip(names, records, above, strict=False))


def _row(name: str, record: Record, previous: str) -> ResultRow:
    differences = record["differences"]
    return ResultRow(
        label=LABELS.get(name, name),
        estimate=record["value"],
        to_previous=differences.get(previous),
        to_baseline=differences.get("baseline"),
    )
