"""A few trials of each fuzzer with a fixed seed, and a check that a fuzzer finds a planted defect."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults import (
    attacks,
    fuzz_answers,
    fuzz_command_lines,
    fuzz_images,
    fuzz_own_files,
    fuzz_recipes,
    fuzz_rows,
    identifiers,
)
from tests.faults.fuzz_outcomes import Case, attempt, judge
from tests.faults.part import GOOD, Part

pytestmark = pytest.mark.slow
SEED = 15

TRIALS: tuple[tuple[Part, tuple[int, ...]], ...] = (
    (fuzz_recipes.PART, (0,)),
    (fuzz_rows.ROWS, (0,)),
    (fuzz_rows.CELLS, (0,)),
    (fuzz_images.IMAGES, (1, 2)),
    (fuzz_images.DICOM, (1, 2)),
    (fuzz_answers.ANSWERS, (3, 6)),
    (fuzz_answers.REWARD_TEST, (0,)),
    (fuzz_command_lines.PART, (0,)),
    (fuzz_own_files.PART, (7,)),
    (attacks.PART, (0, 5, 9)),
    (identifiers.PART, (1, 2)),
)
"""Part -> numbers of its trials. The others, with other seeds, are run by `python -m tests.faults`."""


@pytest.mark.parametrize(("part", "numbers"), TRIALS, ids=[part.name for part, _ in TRIALS])
def test_bad_input_has_no_wrong_outcome(part: Part, numbers: tuple[int, ...], tmp_path: Path) -> None:
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = part.trial(SEED, number, folder)
        assert outcome.result in GOOD, f"{part.name}:{SEED}:{number} {outcome}"


def raise_an_error(place: Path) -> None:
    raise ValueError("planted")


def write_into_input(place: Path) -> None:
    (place / "in" / "rows.json").write_text("changed")


def wait_for_ever(place: Path) -> None:
    time.sleep(1_000)


def leave_without_an_error(place: Path) -> None:
    sys.exit(3)


@pytest.mark.parametrize(
    ("defect", "result"),
    [
        (None, "accepted"),
        (raise_an_error, "traceback"),
        (write_into_input, "file_changed"),
        (wait_for_ever, "hang"),
        (leave_without_an_error, "unclear"),
    ],
)
def test_a_planted_defect_is_seen(tmp_path: Path, defect: Any, result: str) -> None:
    for part in ("in", "work"):
        (tmp_path / part).mkdir()
    (tmp_path / "in" / "rows.json").write_text("[]")
    found = attempt(Case(("--version",), tmp_path, defect), limit_s=2)
    assert judge(found).result == result
