"""OOM recovery through Unsloth's trainers: tests of test_oom_recovery.py in the harness of tests/unsloth_cpu.

Errors in forward and backward passes, an optimizer step, a rollout and an evaluation.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CASES = (
    "test_errors_of_every_kind_in_one_stage_of_sft",
    "test_errors_of_every_kind_in_one_stage_of_grpo",
    "test_greedy_completions_are_the_same_in_smaller_batches",
)


@pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed")
def test_unsloths_trainers_recover_like_those_of_trl() -> None:
    cases = [f"tests/test_oom_recovery.py::{case}" for case in CASES]
    command = [sys.executable, "tests/unsloth_cpu/run.py", "-m", "pytest", "-q", "-p", "no:cacheprovider", *cases]
    environment = {**os.environ, "TOOLKIT_TEST_BACKEND": "unsloth"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert f"{len(cases)} passed" in done.stdout
