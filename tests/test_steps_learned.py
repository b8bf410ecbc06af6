"""The tiny model learns to use agent memory: it works with it and fails without it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from tests.helpers.recipes import load_recipe
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.runfolder import read_json

SHORTER = (
    "sft.max_steps=70",
    "data.synthetic.train=1200",
    "data.synthetic.test=160",
    "evaluate.before=false",
    "export.to=['adapter']",
)


@pytest.mark.slow
def test_memory_is_learned_and_worth_much_on_held_out_tasks(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "steps_tiny.toml", [*SHORTER, f"run.folder='{tmp_path}'"])
    run_recipe(recipe, STAGES)
    record: dict[str, Any] = read_json(tmp_path / "steps_tiny" / "stages" / "evaluate-sft" / "metrics.json")
    ways, differences = record["agent_memory"]["ways"], record["agent_memory"]["differences"]
    # A fraction of 0.1 is what is asked of each. The full recipe has 0.57 between own memory and none.
    for other in (differences["own"]["off"], differences["reference"]["off"]):
        assert other["step"]["clear"]
        assert other["step"]["difference"]["low"] > 0.1
    for table in (record, record["also"]["step (own memory)"], record["also"]["action (reference memory)"]):
        assert table["differences"]["baseline"]["clear"]
        assert table["differences"]["baseline"]["difference"]["low"] > 0
        assert table["baseline"]["value"] > 0.1
    assert ways["own"]["measures"]["step"]["n"] == ways["off"]["measures"]["step"]["n"] >= 160
