"""The protocol's tests and the recipes on Unsloth, in a process of its own: it rewrites transformers, trl and peft."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
    pytest.mark.skipif("TOOLKIT_TEST_BACKEND" in os.environ, reason="this is that process"),
]


@pytest.mark.parametrize("tests", ["tests/test_protocol.py", "tests/gpu/test_recipes.py"])
def test_unsloth_passes_the_same_tests(tests: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "TOOLKIT_TEST_BACKEND": "unsloth"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
