"""The tiny recipes as a user runs them, with the figures of the documentation. See tests/long/run."""

import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.pipeline import read_results

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PAIRS = {
    "quickstart": (("sft", "baseline"), ("grpo", "sft")),
    "classify_tiny": (("sft", "baseline"),),
    "lesions_tiny": (("sft", "baseline"), ("grpo", "sft")),
    "detect_tiny": (("sft", "baseline"),),
    "steps_tiny": (("sft", "baseline"),),
    "chat_tiny": (("sft", "baseline"), ("sft", "before"), ("grpo", "sft")),
    "report_tiny": (("sft", "baseline"), ("sft", "before")),
}
"""Recipe -> evaluations whose paired difference must be above 0 (after, before)."""


@pytest.mark.parametrize("name", PAIRS)
def test_a_tiny_recipe_learns(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "toolkit", "run", str(RECIPES / f"{name}.toml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    sys.stdout.write(f"\n{done.stdout}\n")  # the tables, shown by pytest -s
    results = read_results(tmp_path / "runs" / name)
    for after, before in PAIRS[name]:
        difference = results.evaluations[after].primary.differences[before].difference
        assert difference.low is not None
        assert difference.low > 0, (after, before, difference)
    assert results.export
