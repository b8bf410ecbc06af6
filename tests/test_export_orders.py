"""Exports in unusual orders: what an earlier one left, what was changed in between, what cannot be made at all."""

import logging
from pathlib import Path

import pytest
from training import small_recipe

from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES

FEW = {"sft": {"max_steps": 1}, "evaluate": {"max_completion_tokens": 4, "before": False}}


def test_an_optional_gguf_that_the_base_does_not_give_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("toolkit.llamacpp.require_for", lambda quant, verify: None)  # as if the extra were installed
    tables = {**FEW, "export": {"to": ("adapter",), "optional": ("gguf",), "verify": 1}}
    recipe = small_recipe(tmp_path, tables).model_copy(update={"grpo": None})
    for room in ("backends.loading", "stages.export"):
        monkeypatch.setattr(f"toolkit.{room}.stored_quantised", lambda source, model: "bitsandbytes")
    with caplog.at_level(logging.INFO, "toolkit"):
        record = run_recipe(recipe, STAGES).run.record("export")
        assert (record["asked"], record["left_out"]) == (["adapter"], ["gguf"])
        assert "no GGUF is written: the base is stored quantised (bitsandbytes)" in caplog.text
        run_recipe(recipe, STAGES)
    assert "export: finished before, skipped" in caplog.text
