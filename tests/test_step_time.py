"""Seconds per optimizer step: training reports the plan's range until it has measured a step."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.helpers.training import context_of, small_recipe
from toolkit.evaluation.stage_context import Context
from toolkit.pipeline.plan import plan_language_model as make
from toolkit.planning import named_gpu
from toolkit.runfolder import write_json
from toolkit.training import callbacks
from toolkit.training.callbacks import StepTimes, planned_seconds
from toolkit.training.results import StepSeconds
from toolkit.training.sft import train_sft


def plan_for(context: Context, *, here: bool) -> dict[str, Any]:
    """The run's plan for a T4, written as plan.json."""
    gpu = named_gpu("T4")
    assert gpu is not None
    plan = make(context.recipe, replace(gpu, here=here)).to_json()
    write_json(context.run.plan_file, plan)
    return plan


def test_the_planned_range_is_that_of_this_machine(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context:
        assert planned_seconds(context.run, "sft") is None
        plan_for(context, here=False)
        assert planned_seconds(context.run, "sft") is None
        plan = plan_for(context, here=True)
        assert planned_seconds(context.run, "sft") == tuple(plan["time"]["gpus"]["T4"]["sft"]["seconds_per_step"])
        assert planned_seconds(context.run, "export") is None


@pytest.mark.slow
def test_the_record_of_a_stage_has_planned_and_measured_seconds(tmp_path: Path) -> None:
    reports: list[tuple[int, int, str]] = []
    with context_of(small_recipe(tmp_path)) as context:
        plan = plan_for(context, here=True)
        progress = lambda what, done, total, note="": reports.append((done, total, note))  # noqa: E731
        record = train_sft(replace(context, progress=progress)).training.seconds_per_step
    assert record.planned == tuple(plan["time"]["gpus"]["T4"]["sft"]["seconds_per_step"])
    assert record.preflight is None
    assert record.measured is not None
    assert 0 < record.measured < 60
    first = next(report for report in reports if "plan" in report[2])
    assert first[:2] == (0, 4)
    assert reports.index(first) < min(n for n, (done, *_) in enumerate(reports) if done == 1)


def test_without_a_plan_no_remaining_time_is_reported_before_the_first_step(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context:
        times = StepTimes(replace(context, progress=fail), "sft")
        begin(times, step=0, steps=10)
    assert times.result() == StepSeconds(planned=None, preflight=None, measured=None)


def test_the_preflight_step_replaces_the_plan_until_a_step_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    clock = iter([0.0, 0.0, 50.0, 60.0, 80.0, 580.0, 600.0])
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with context_of(small_recipe(tmp_path)) as context:
        times = StepTimes(replace(context, progress=lambda what, done, total, note="": notes.append(note)), "sft")
        times.note_preflight(20.0)
        begin(times, step=4, steps=10)
        assert len(notes) == 1
        assert "2 min 0 s" in notes[0]  # 6 steps of 20 s
        for _ in range(4):
            times.on_step_end(*given(4, 10))
        begin(times, step=4, steps=10)  # another trainer continues
    assert len(notes) == 1
    assert times.measured == 20.0  # of 10, 20 and 500: the first step, which took 50, may have compiled
    assert times.result() == StepSeconds(planned=None, preflight=20.0, measured=20.0)


def fail(what: str, done: int, total: int, note: str = "") -> None:
    raise AssertionError(note)


def given(step: int, steps: int) -> tuple[TrainingArguments, TrainerState, TrainerControl]:
    return TrainingArguments(), TrainerState(global_step=step, max_steps=steps), TrainerControl()


def begin(times: StepTimes, step: int, steps: int) -> None:
    times.on_train_begin(*given(step, steps))
