"""Some trials of missing resources. `python -m tests.faults --only resources` runs more."""

from pathlib import Path

import pytest

from tests.faults.resources import PARTS

pytestmark = pytest.mark.slow

TRIALS = {"fills-runs": 1, "file-size": 1, "in-use": 1, "together": 1}
"""Part -> number of its trial."""


@pytest.mark.parametrize("name", TRIALS)
def test_a_command_without_a_resource_fails_clearly_and_recovers(name: str, tmp_path: Path) -> None:
    (part,) = (part for part in PARTS if part.name == name)
    outcome = part.trial(1, TRIALS[name], tmp_path)
    if outcome.result == "skipped":
        pytest.skip(outcome.detail)
    assert outcome.result == "identical", outcome.detail
