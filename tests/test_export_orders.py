"""Exports in unusual orders: what an earlier one left, what was changed in between, what cannot be made at all."""

import logging
from pathlib import Path

import pytest
from training import small_recipe

from toolkit.cli import show
from toolkit.errors import RunError
from toolkit.pipeline import run_recipe
from toolkit.pipeline.again import export_again
from toolkit.pipeline.results import read_results
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import dump_recipe, load_recipe
from toolkit.run import RunFolder, find_exported, write_text

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


def exported_too_early(tmp_path: Path) -> RunFolder:
    """A run that exported after SFT and then went through GRPO."""
    recipe = small_recipe(tmp_path, {**FEW, "grpo": {"max_steps": 1}, "export": {"to": ("adapter",), "verify": 1}})
    run = run_recipe(recipe.model_copy(update={"grpo": None, "export": None}), STAGES).run
    export_again(run.path, STAGES, ['export.to=["adapter","merged"]', "export.verify=1"])
    write_text(run.recipe_file, dump_recipe(recipe.model_copy(update={"export": None})))
    run_recipe(load_recipe(run.recipe_file), STAGES)
    return run


def test_what_was_exported_before_the_last_training_is_not_taken_for_the_runs_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = exported_too_early(tmp_path)
    with pytest.raises(RunError, match=r"trained on since \(found 'made from stages/sft/weights'\)"):
        find_exported(run, "merged")
    show.results(read_results(run))
    told = capsys.readouterr().out
    assert "weights from before the last training (stages/sft/weights)" in told
    assert "vllm serve" not in told
    with caplog.at_level(logging.WARNING, "toolkit"):
        export_again(run.path, STAGES, ['export.to=["adapter"]', "export.verify=1"])
    assert "merged was not made from these weights, or not finished; it is merged.old-1 now" in caplog.text
    assert find_exported(run, "adapter").name == "adapter"
    with pytest.raises(RunError, match="Exported are: adapter "):
        find_exported(run, "merged")
