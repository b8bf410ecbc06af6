"""Results of stages: every dataclass is equal after a round trip through its file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.problems import warnings_in
from tests.helpers.results import FIGURES, difference, estimate, evaluation_result, grpo_result, sft_result
from toolkit.data import RowCount
from toolkit.data.result import DataResult, ImageScan, UnusableImage
from toolkit.data.splits import Leak
from toolkit.evaluation.results import AgentMemoryResult, BaselineResult, EvaluationResult, ModeResult, ScoreResult
from toolkit.reporting.gpu_peaks import GpuPeak
from toolkit.runfolder import RunFolder, RunSession, RunState, write_json
from toolkit.runfolder.usage import ComputeSummary
from toolkit.scoring.statistics import EpisodeMetrics
from toolkit.training.grpo import saved_probe
from toolkit.training.results import OutOfMemory, PreflightResult, ProbeResult, RewardSummary


def evaluation() -> EvaluationResult:
    """Return an evaluation with every part."""
    plain = evaluation_result("sft", 0.6, 0.25, {"baseline": 0.25, "before": 0.2})
    one = estimate(0.5)
    episodes = EpisodeMetrics(4, 1, one, one, estimate(2.5), {2: 1, 3: 1}, {1: one, 2: one}, {"app": {"a": one}})
    mode = ModeResult(
        "own agent memory", {"step": one}, episodes, {"action": {"CLICK": one}}, {"too long": 2}, plain.summary
    )
    memory = AgentMemoryResult(("step",), {"own": mode}, {"own": {"off": {"step": difference(0.3)}}}, 1)
    baselines = {"repeat-last": BaselineResult(one, {"baseline": difference(-0.1)})}
    also = {"action": ScoreResult(one, one, {"baseline": difference(0.1)}, baselines)}
    return replace(plain, primary=replace(plain.primary, baselines=baselines), also=also, agent_memory=memory)


def data() -> DataResult:
    dropped = RowCount("train.json", "no answer", 1, ("7",), "tasks.mcq.answer_missing")
    leak = Leak("group", "train", "test", 1, (2, 3), ((0, 1),))
    scan = ImageScan("full", 8, {"PNG": 8}, {16: 8}, 8, 1, 0.01, (UnusableImage("a.png", 0, "truncated"),))
    return DataResult(
        {"train": 8, "validation": 0, "test": 4},
        (dropped,),
        (leak,),
        ("1 row is dropped",),
        scan,
        {"labels": ["a", "b"]},
    )


def grpo() -> Any:
    event = OutOfMemory(2, "pass", 1, 8, 4, "step-00000001")
    memory = replace(FIGURES.gpu_memory, recoveries=(event,), out_of_memory=1, preflight=PreflightResult(1.5, 10, 20))
    summary = RewardSummary(8, 0.5, 0.1, 0.25)
    probe = ProbeResult(summary, {"letter": RewardSummary(0, None, None, None)}, 0.1, 0.2, {"no answer": 1}, None)
    return replace(grpo_result(), training=replace(FIGURES, gpu_memory=memory), probe=probe)


@pytest.mark.parametrize(
    "result",
    [
        evaluation(),
        sft_result(),
        grpo(),
        data(),
        RunState(1, 3407, {"data": "abc"}, (RunSession("now", {"torch": "2"}),)),
        ComputeSummary(1, 0.5, 0.4, 0.0, 2.5, None, None, 0.0, None, 1e15, 0),
        GpuPeak(None, 7.5),
    ],
    ids=lambda result: type(result).__name__,
)
def test_a_result_is_equal_after_a_round_trip_through_its_file(tmp_path: Path, result: Any) -> None:
    run = RunFolder(tmp_path)
    run.mark_done("stage", result)
    assert run.result("stage", type(result)) == result


def test_a_corrupt_probe_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, summary = tmp_path / "probe.json", RewardSummary(3, 0.5, 0.2, 0.1)
    assert saved_probe(file) is None
    assert not warnings_in(caplog)
    found = ProbeResult(summary, {"letter": summary}, 0.1, 0.2, {}, None)
    write_json(file, found)
    assert saved_probe(file) == found
    for content in ("", "[]", '{"total": '):
        file.write_text(content, encoding="utf-8")
        caplog.clear()
        assert saved_probe(file) is None
        assert [problem.code for problem in warnings_in(caplog)] == ["training.probe_damaged"]
