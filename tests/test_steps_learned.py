"""The tiny model learns to use agent memory: it works with it and fails without it."""

from pathlib import Path

import pytest

from tests.helpers.recipes import load_recipe
from toolkit.pipeline import read_results, run_recipe
from toolkit.pipeline.stages import STAGES

ROOT = Path(__file__).parent.parent
SHORTER = (
    "sft.max_steps=70",
    "data.synthetic.train=1200",
    "data.synthetic.test=160",
    "evaluate.before=false",
    "export.to=['adapter']",
)


@pytest.mark.slow
def test_agent_memory_improves_the_score_on_held_out_tasks(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "steps_tiny.toml", [*SHORTER, f"run.folder='{tmp_path}'"])
    run_recipe(recipe, STAGES)
    result = read_results(tmp_path / "steps_tiny").evaluations["sft"]
    assert result.agent_memory is not None
    modes, differences = result.agent_memory.modes, result.agent_memory.differences
    # Each difference must be above 0.1. The full recipe has 0.57 between own agent memory and none.
    for other in (differences["own"]["off"], differences["reference"]["off"]):
        assert other["step"].clear
        assert (other["step"].difference.low or 0) > 0.1
    for score in (result.score, "step (own agent memory)", "action (reference agent memory)"):
        table = result.scores[score]
        assert table.differences["baseline"].clear
        assert (table.differences["baseline"].difference.low or 0) > 0
        assert (table.baseline.value or 0) > 0.1
    assert modes["own"].metrics["step"].n == modes["off"].metrics["step"].n >= 160
