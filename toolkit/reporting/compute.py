"""The usage of runs: hours, memory, energy, CO2, FLOPs and tokens. It has no names of machines, users or paths."""

from collections.abc import Iterable
from typing import Any

from toolkit.reporting.blocks import Block, Table, Text
from toolkit.reporting.ledger import Ledger, RunUse
from toolkit.reporting.summaries import (
    energy_sources,
    figures,
    fractions,
    machines,
    model_name,
    per_thousand,
    task_name,
    training_of,
    versions_of,
)
from toolkit.runfolder.usage import HOUR, UNKNOWN, Counts, Usage, bypassed_savings, energy, figure

NOTES = (
    "Wall, CPU and GPU hours: CPU hours are those of the process and of its children that have ended. GPU hours "
    "are wall hours times the number of GPUs that the process held, including idle ones. A process that was killed "
    "loses at most its last half minute. If a run has several processes, the first one records. GPU hours are its own "
    "times the number of processes. In training, the same holds for CPU hours, tokens and FLOPs. Memory peaks are "
    "those of one process.",
    "Energy is that of the whole machine by codecarbon, including other work, without the overhead of the data "
    "center. The first five seconds of a session are not measured.",
    "FLOPs are 2 for each parameter and position in the forward pass, 2 in the backward pass, and 2 more if the "
    "parameter is trained. Gradient checkpointing adds one forward pass (Kaplan et al. 2020, arXiv 2001.08361). "
    "Language model, vocabulary and vision tower count with their own positions, including padding. The products of "
    "attention and the projector are left out.",
    "Counter / formula compares the FLOPs of training by torch.utils.flop_counter with the formula. The counter "
    "measures the first forward and backward pass of a training stage in each session, scaled by positions. It "
    "includes attention. It does not measure generation and evaluation.",
    "Tokens are positions of the language model, including padding. Read are prompts, and the log-probabilities "
    "of GRPO. Generated are one for each decoding step and row, including rows that have ended.",
)
"""Explanations of the figures, for readers of the report."""


def compute_blocks(ledger: Ledger) -> list[Block]:
    """Return the tables of the usage of runs, and how to read them."""
    used = ledger.sessions
    return [
        *(Text(line, "warning") for line in _warnings(ledger)),
        _purposes_table(ledger),
        _runs_table(ledger),
        _costs_table(ledger),
        *_optional(_work_table(ledger)),
        *_optional(_stages_table(ledger)),
        _listed("Hardware", machines(used)),
        _listed("Energy", energy_sources(used)),
        _listed("Versions", versions_of(used)),
        *(Text(note) for note in NOTES),
    ]


def compute_json(ledger: Ledger) -> dict[str, Any]:
    """Return the unrounded figures. Null: not measured."""
    whole = ledger.used
    return {
        "total": {"runs": len(ledger.runs), **figures(whole)},
        "purposes": {
            purpose: {"runs": runs, **figures(used), "fractions": fractions(used, whole)}
            for purpose, (runs, used) in ledger.by_purpose().items()
        },
        "runs": [_run_figures(run) for run in ledger.runs],
        "hardware": machines(ledger.sessions),
        "energy": energy_sources(ledger.sessions),
        "versions": versions_of(ledger.sessions),
        "bypassed_savings": bypassed_savings(ledger.sessions),
        "damaged_lines": ledger.damaged,
        "runs_without_record": ledger.unrecorded,
        "runs_with_copied_sessions": ledger.copies,
        "runs_of_other_versions": ledger.other_versions,
        "notes": list(NOTES),
    }


def _run_figures(run: RunUse) -> dict[str, Any]:
    return {
        "name": run.name,
        "purpose": run.purpose,
        "finished": run.finished,
        "sessions": [session.outcome for session in run.record.sessions],
        "task": task_name(run.recipe) if run.recipe else None,
        "rows": dict(run.rows) or None,
        "model": model_name(run.recipe),
        "training": training_of(run.recipe),
        **(figures(run.record.used) if run.record.sessions else {}),
        "stages": {name: figures(used) for name, used in run.record.stages().items()},
        "per_1000_predictions": per_thousand(run.evaluations),
        "damaged_lines": run.record.damaged,
    }


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


def _warnings(ledger: Ledger) -> list[str]:
    lines = []
    if ledger.unrecorded:
        lines.append(f"Not counted: {', '.join(ledger.unrecorded)}: no usage record.")
    if ledger.copies:
        lines.append(
            f"Counted more than once: {', '.join(ledger.copies)} have common sessions, because one is a copy of "
            "another."
        )
    if names := ledger.other_versions:
        lines.append(
            f"Of another version of the toolkit: {_count(len(names), 'run')} with usage records only: "
            f"{', '.join(names)}."
        )
    if ledger.damaged:
        runs = ", ".join(f"{run.name} ({run.record.damaged})" for run in ledger.runs if run.record.damaged)
        lines.append(f"Corrupt: {_count(ledger.damaged, 'line')} of the usage records skipped: {runs}.")
    unseen = {what for session in ledger.sessions for what in session.machine.get("unseen", ())}
    lines += [f"Not measured: {what}." for what in sorted(unseen)]
    bypassed = bypassed_savings(ledger.sessions)
    lines += [f"Repeated work, without the {what} ({_count(calls, 'call')})." for what, calls in bypassed.items()]
    return lines


def _listed(title: str, lines: Iterable[str]) -> Table:
    return Table.of((title,), [(line,) for line in lines] or [(UNKNOWN,)])


def _optional(table: Table) -> list[Table]:
    return [table] if table.rows else []


def _purposes_table(ledger: Ledger) -> Table:
    """Return the table of purposes: hours with fractions of the total, energy, CO2 and FLOPs."""
    whole, found = ledger.used, ledger.by_purpose()
    found["total"] = sum(number for number, _ in found.values()), whole
    rows = []
    for purpose, (number, used) in found.items():
        parts = fractions(used, whole)
        cells = [f"{figure(value / HOUR)}{_fraction(parts[name])}" for name, value in _hours(used).items()]
        rest = [energy(used), _co2(used), *_flops(used)] if number else [""] * 4
        rows.append([purpose, str(number), *cells, *rest])
    head = ["purpose", "runs", "wall h", "CPU h", "GPU h", "energy", "CO2", "training FLOPs", "inference FLOPs"]
    return Table.of(head, rows, "By purpose")


def _hours(used: Usage) -> dict[str, float]:
    return {"wall": used.wall, "cpu": used.cpu, "gpu": used.gpu}


def _fraction(value: float | None) -> str:
    return "" if value is None else f" ({value:.0%})"


def _co2(used: Usage) -> str:
    if used.co2 is None:
        return UNKNOWN
    part = used.co2_energy / used.energy if used.energy else 0.0
    return f"{figure(used.co2)} kg" + ("" if part > 0.99 else f" (of {part:.0%} of the energy)")


def _flops(used: Usage) -> list[str]:
    found = used.counts
    return [_big(found.training), _big(found.inference)]


def _runs_table(ledger: Ledger) -> Table:
    """Return the table of runs: training, outcomes of the sessions, hours, memory and energy."""
    head = [
        "run",
        "purpose",
        "task, rows",
        "model",
        "training",
        "sessions",
        "wall h",
        "CPU h",
        "GPU h",
        "RAM",
        "GPU memory",
    ]
    return Table.of([*head, "energy", "CO2"], [_run_row(run) for run in ledger.runs], "Runs", 5)


def _run_row(run: RunUse) -> list[str]:
    used, recipe = run.record.used, run.recipe
    rows = ", ".join(f"{name} {number:,}" for name, number in run.rows.items() if number)
    about = [f"{task_name(recipe)}; {rows or 'rows not read'}" if recipe else UNKNOWN, model_name(recipe) or UNKNOWN]
    about.append(training_of(recipe) or "none")
    if not run.record.sessions:
        return [run.name, run.purpose, *about, UNKNOWN, *[UNKNOWN] * 7]
    outcomes = [session.outcome for session in run.record.sessions]
    sessions = ", ".join(f"{outcomes.count(one)} {one}" for one in dict.fromkeys(outcomes))
    hours = [figure(value / HOUR) for value in _hours(used).values()]
    memory = [_bytes(used.memory), _bytes(used.gpu_memory) if used.gpu else "no GPU"]
    return [run.name, run.purpose, *about, sessions, *hours, *memory, energy(used), _co2(used)]


def _costs_table(ledger: Ledger) -> Table:
    """Return the cost of 1,000 completions in the evaluations of each run."""
    rows = []
    for run in ledger.runs:
        cost = per_thousand(run.evaluations)
        if cost is None:
            rows.append([run.name, "0", *[UNKNOWN] * 5])
            continue
        hours = [figure(cost[name]) for name in ("wall_hours", "cpu_hours", "gpu_hours")]
        kwh = UNKNOWN if cost["energy_kwh"] is None else f"{figure(cost['energy_kwh'])} kWh"
        rows.append([run.name, f"{cost['answers']:,}", *hours, kwh, _big(cost["flops_formula"])])
    source = "From the evaluations of the trained models, or of the base model if there are none. "
    source += "Loading and scoring are included."
    head = ["run", "answers", "wall h", "CPU h", "GPU h", "energy", "FLOPs"]
    return Table.of(head, rows, f"Cost of 1,000 predictions. {source}")


def _work_table(ledger: Ledger) -> Table:
    """Return tokens, images and FLOPs of each stage that used a model.

    A stage has one FLOP count, that of the formula. torch's counter is shown relative to the formula.
    """
    rows = []
    for run in ledger.runs:
        for name, used in run.record.stages().items():
            found = used.counts
            tokens = (found.trained_tokens, found.read_tokens, found.generated_tokens)
            if any(tokens):
                cells = [f"{number:,}" for number in (*tokens, found.trained_images, found.read_images)]
                rows.append([run.name, name, *cells, _stage_flops(found), _counter_ratio(found)])
    head = ["run", "stage", "tokens trained", "tokens read", "tokens generated", "images trained", "images read"]
    return Table.of([*head, "FLOPs", "counter / formula"], rows, "Tokens, images, FLOPs", 2)


def _stage_flops(counts: Counts) -> str:
    """Return the FLOPs of training and inference by formula, with the fraction of the vision tower."""
    whole = counts.training + counts.inference
    vision = counts.vision_training + counts.vision_inference
    return f"{_big(whole)} (vision {vision / whole:.0%})" if whole else UNKNOWN


def _counter_ratio(counts: Counts) -> str:
    """Return torch's counter relative to the formula, for the FLOPs of training."""
    if not counts.trained_tokens:
        return ""
    measured = counts.counter_training
    return UNKNOWN if measured is None or not counts.training else f"{measured / counts.training:.2f}"


def _stages_table(ledger: Ledger) -> Table:
    """Return hours, peak GPU memory and energy of each stage."""
    rows = []
    for run in ledger.runs:
        stages = run.record.stages()
        for name, used in stages.items():
            hours = [figure(value / HOUR) for value in _hours(used).values()]
            rows.append([run.name, name, *hours, _bytes(used.gpu_memory) if used.gpu else "no GPU", energy(used)])
    return Table.of(["run", "stage", "wall h", "CPU h", "GPU h", "GPU memory", "energy"], rows, "Stages", 2)


def _bytes(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value / 1e9:.1f} GB"


def _big(value: float | None) -> str:
    return f"{value:.3g}" if value else UNKNOWN
