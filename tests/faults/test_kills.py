"""Some trials of the kills. `python -m tests.faults --only kills` runs more."""

import signal
from pathlib import Path

import pytest

from tests.faults.children import run_command, run_real
from tests.faults.kills import Kill, check, differences, trial
from tests.faults.part import Outcome
from tests.faults.scenarios import SCENARIOS, undisturbed, undisturbed_folder

pytestmark = pytest.mark.slow


def assert_identical(outcome: Outcome) -> None:
    assert (outcome.result, outcome.detail.splitlines()[0]) == ("identical", ""), outcome.detail


def test_a_forked_command_has_the_results_of_the_real_command(tmp_path: Path) -> None:
    scenario, whole = SCENARIOS["chest"], undisturbed("chest")
    ended = run_real(scenario.argv, tmp_path, 0, 600)
    assert ended.status == 0, ended.stderr
    assert list(differences(scenario, whole.digests, ended, tmp_path)) == []


def test_a_run_that_is_killed_and_stopped_in_its_stages_has_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    written, checkpoint, export = (
        first_event(text) for text in ("run.json", "sft/checkpoints/step-00000004", "export")
    )
    assert written < checkpoint < export
    kills = [
        Kill(signal.SIGKILL, event=written),
        Kill(signal.SIGTERM, event=checkpoint),
        Kill(signal.SIGKILL, event=(export - checkpoint) // 2),  # a resumed run begins to count again
        Kill(signal.SIGHUP, event=30),
    ]
    assert_identical(check(SCENARIOS["chest"], kills, tmp_path))


def first_event(text: str) -> int:
    """Return the number of the first change of a file whose path has the text."""
    events = undisturbed("chest").events
    return next(number for number, event in enumerate(events, 1) if text in event.partition("runs/chest")[2])


@pytest.mark.parametrize("name", ["index", "prepare", "synthetic", "report", "evaluate"])
def test_a_killed_command_has_the_results_of_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    assert_identical(trial(name, 3, 1, 0, tmp_path))


def test_a_comparison_finds_one_changed_byte(tmp_path: Path) -> None:
    scenario, whole = SCENARIOS["report"], undisturbed("report")
    scenario.prepare(tmp_path)
    ended = run_command(scenario.argv, tmp_path)
    assert list(differences(scenario, whole.digests, ended, tmp_path)) == []
    weights = "runs/chest/stages/sft/weights/adapter_model.safetensors"
    assert (undisturbed_folder("report") / weights).is_file()
    content = bytearray((tmp_path / weights).read_bytes())
    content[-1] ^= 1
    (tmp_path / weights).write_bytes(content)
    (tmp_path / "runs/chest/.results.json.1.partial").touch()
    found = list(differences(scenario, whole.digests, ended, tmp_path))
    assert [result for result, _ in found] == ["different", "leftover"]
    assert weights in found[0][1]
