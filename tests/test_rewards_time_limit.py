"""The time limit of custom rewards: what is interrupted, where the error points, and what is restored."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.problems import raises
from tests.helpers.recipes import make_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit.data.sample import Answer
from toolkit.errors import RewardError
from toolkit.recipe.user_code import TimeLimitExceeded, call_within
from toolkit.runfolder.start import HARMLESS
from toolkit.tasks import TASKS
from toolkit.tasks.mcq import rewards as mcq
from toolkit.training.grpo import train_grpo
from toolkit.training.rewards import RewardTable, recipe_rewards

SLEEPS = "import time\ndef slow(sample, answer):\n    time.sleep(60)\n"
LOOPS = "def slow(sample, answer):\n    while True:\n        pass\n"
BACKTRACKS = "import re\ndef slow(sample, answer):\n    return float(bool(re.match('(a+)+$', 'a' * 60 + 'b')))\n"
CATCHES = """import time
def slow(sample, answer):
    try:
        time.sleep(60)
    except BaseException:
        return 0.0
"""
CATCHES_EXCEPTIONS = """import time
def slow(sample, answer):
    for _ in range(100):
        try:
            time.sleep(60)
        except Exception:
            pass
    return 0.0
"""


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def table_of(folder: Path, code: str, limit: float = 0.2) -> RewardTable:
    file = folder / "mine.py"
    file.write_text(code, encoding="utf-8")
    rewards = {"custom": (f"{file}:slow",), "time_limit": limit}
    data = {"task": "mcq", "train": "x.json"}
    return recipe_rewards(make_recipe({"run": {"name": "r"}, "data": data, "grpo": {}, "rewards": rewards}))


@pytest.mark.parametrize("code", [SLEEPS, LOOPS, BACKTRACKS, CATCHES, CATCHES_EXCEPTIONS])
def test_a_reward_that_hangs_is_an_error_with_the_row_and_the_line(tmp_path: Path, code: str) -> None:
    table, begun = table_of(tmp_path, code), time.monotonic()
    with raises(RewardError, "rewards.time_limit_exceeded") as caught:
        table.score(mcq.EXAMPLE, Answer("B"))
    assert time.monotonic() - begun < 5
    assert caught.problem.place == f"reward slow, {mcq.EXAMPLE.shown}"
    assert "0.2 seconds" in caught.problem.rule
    assert re.search(r"mine\.py:\d+", str(caught.problem.value))


def in_another_thread(work: Any) -> list[Any]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 (the test asserts its type)
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    return found


def test_outside_of_the_main_thread_a_hanging_reward_is_left_behind(tmp_path: Path) -> None:
    table = table_of(tmp_path, "import time\ndef slow(sample, answer):\n    time.sleep(3)\n")
    (error,) = in_another_thread(lambda: table.score(mcq.EXAMPLE, Answer("B")))
    assert isinstance(error, RewardError)
    assert error.code == "rewards.time_limit_exceeded"
    assert "mine.py:3" in str(error.problem.value)
    assert [one for one in threading.enumerate() if one.name == "slow" and one.daemon]


def test_in_either_thread_values_and_exceptions_pass_through() -> None:
    def fails() -> None:
        raise KeyError("mine")

    assert call_within(5, max, 3, 7) == 7
    assert in_another_thread(lambda: call_within(5, max, 3, 7)) == [7]
    with pytest.raises(KeyError, match="mine"):
        call_within(5, fails)
    assert isinstance(in_another_thread(lambda: call_within(5, fails))[0], KeyError)


def test_a_timer_that_the_program_uses_is_left_alone() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(TimeLimitExceeded):
            call_within(0.1, time.sleep, 1.0)
        assert not rung
        time.sleep(0.6)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_rewards_of_the_task_have_no_limit_and_a_fast_one_keeps_its_value(tmp_path: Path) -> None:
    """The task's rewards run without a timer, which would cost more than they do."""
    table = table_of(tmp_path, "def slow(sample, answer):\n    return 0.25\n", limit=1e-9 + 30)
    own = TASKS["mcq"]
    assert set(table.rewards) - set(own.rewards) == {"slow"}
    assert table.score(mcq.EXAMPLE, Answer("B")).components["slow"] == 0.25


def test_a_run_may_resume_with_another_limit() -> None:
    assert "rewards.time_limit" in HARMLESS


@pytest.mark.slow
def test_training_stops_at_a_reward_that_hangs(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(LOOPS, encoding="utf-8")
    tables = {"rewards": {"custom": (f"{file}:slow",), "time_limit": 0.5}}
    with (
        context_of(small_recipe(tmp_path, tables).model_copy(update={"sft": None})) as context,
        raises(RewardError, "rewards.time_limit_exceeded") as caught,
    ):
        train_grpo(context)
    assert re.fullmatch(r"reward slow, .*/train\.json, row \d+", caught.problem.place)
