"""OOM recovery through Unsloth's trainers: tests of test_oom_recovery.py in the harness of tests/unsloth_cpu.

Errors in a forward pass, a backward pass, an optimizer step, a rollout and an evaluation.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASES = (
    "in_a_later_step_ends_in_the_adapter_of_a_run_resumed_from_there_with_the_smaller_sizes[sft-backward]",
    "in_a_later_step_ends_in_the_adapter_of_a_run_resumed_from_there_with_the_smaller_sizes[grpo-forward]",
    "in_the_optimizer_step_falls_back_to_what_is_on_disk",
)
OTHERS = (
    "test_a_rollout_is_generated_again_in_parts_and_ends_in_the_adapter_of_a_run_that_began_so",
    "test_greedy_answers_are_the_same_in_smaller_batches",
)


@pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed")
def test_unsloths_trainers_recover_as_those_of_trl() -> None:
    file = "tests/test_oom_recovery.py"
    cases = [f"{file}::test_out_of_memory_{case}" for case in CASES] + [f"{file}::{case}" for case in OTHERS]
    command = [sys.executable, "tests/unsloth_cpu/run.py", "-m", "pytest", "-q", "-p", "no:cacheprovider", *cases]
    environment = {**os.environ, "TOOLKIT_TEST_BACKEND": "unsloth"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert f"{len(cases)} passed" in done.stdout
