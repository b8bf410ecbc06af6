"""Exports after other exports, after changes of their files, and of formats that a base does not support."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from huggingface_hub import ModelCard

from tests.helpers.exports import export_of, make_gguf, make_verification
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit.cli import tables as show
from toolkit.cli.tables import describe_verification, gguf_table
from toolkit.data.sample_set import SampleSet
from toolkit.errors import DataError, RunError
from toolkit.exporting.export import prepare_job
from toolkit.exporting.exported import find_exported
from toolkit.exporting.results import GgufFile
from toolkit.models.hf import HfBackend
from toolkit.models.lengths import PROMPT_TOO_LONG
from toolkit.pipeline import run_recipe
from toolkit.pipeline.existing_run import Delivery, export_again
from toolkit.pipeline.run_results import read_results
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Export, dump_recipe
from toolkit.runfolder import RunFolder, write_text
from toolkit.tasks import TASKS

FEW: Mapping[str, Mapping[str, Any]] = {
    "sft": {"max_steps": 1},
    "evaluate": {"max_completion_tokens": 4, "before": False},
}


@pytest.mark.slow
def test_an_optional_gguf_that_the_base_does_not_support_is_skipped_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "toolkit.models.llamacpp.require_for", lambda quant, verify: None
    )  # as if the extra were installed
    tables: dict[str, Mapping[str, Any]] = {**FEW, "export": {"to": ("adapter",), "optional": ("gguf",), "verify": 1}}
    recipe = small_recipe(tmp_path, tables).model_copy(update={"grpo": None})
    for module in ("models.loading", "exporting.export"):
        monkeypatch.setattr(f"toolkit.{module}.stored_quantized", lambda source, model: "bitsandbytes")
    with caplog.at_level(logging.INFO, "toolkit"):
        result = export_of(run_recipe(recipe, STAGES).run)
        assert (result.requested, result.skipped) == (("adapter",), ("gguf",))
        (warned,) = (problem for problem in warnings_in(caplog) if problem.code == "export.gguf_left_out")
        assert warned.value == "bitsandbytes"
        run_recipe(recipe, STAGES)
    assert "export: finished before, skipped" in caplog.text


def exported_too_early(tmp_path: Path) -> RunFolder:
    """Return a run that exported after SFT, and then trained with GRPO."""
    recipe = small_recipe(tmp_path, {**FEW, "grpo": {"max_steps": 1}, "export": {"to": ("adapter",), "verify": 1}})
    run = run_recipe(recipe.model_copy(update={"grpo": None, "export": None}), STAGES).run
    export_again(run.path, STAGES, ['export.to=["adapter","merged"]', "export.verify=1"])
    write_text(run.recipe_file, dump_recipe(recipe.model_copy(update={"export": None})))
    run_recipe(load_recipe(run.recipe_file), STAGES)
    return run


@pytest.mark.slow
def test_an_export_from_before_the_last_training_is_outdated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = exported_too_early(tmp_path)
    with pytest.raises(RunError) as caught:
        find_exported(run, "merged")
    assert (caught.value.code, caught.value.value) == ("run.exported_weights_outdated", "made from stages/sft/weights")
    show.results(read_results(run.path))
    printed = capsys.readouterr().out
    assert "weights from before the last training (stages/sft/weights)" in printed
    assert "vllm serve" not in printed
    (run.path / "stages/export/gguf.comparison.jsonl").touch()
    with caplog.at_level(logging.WARNING, "toolkit"):
        export_again(run.path, STAGES, ['export.to=["adapter"]', "export.verify=1"])
    assert (run.path / "stages/export/gguf.comparison.jsonl.old-1").is_file()
    warned = [problem for problem in warnings_in(caplog) if problem.code == "export.outdated_renamed"]
    assert str(run.path / "stages/export/merged") in [problem.place for problem in warned]
    assert (run.path / "stages/export/merged.old-1").is_dir()
    assert find_exported(run, "adapter").name == "adapter"
    with pytest.raises(RunError) as caught:
        find_exported(run, "merged")
    assert caught.value.code == "run.exported_weights_missing"
    assert "(adapter)" in caught.value.remedy


def card(run: RunFolder, name: str) -> str:
    return (run.path / "stages/export" / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_card_names_only_the_stages_that_trained_these_weights(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, FEW)
    run = run_recipe(recipe.model_copy(update={"grpo": None, "export": None}), STAGES).run
    write_text(run.recipe_file, dump_recipe(recipe))  # as if the run had been interrupted in GRPO
    export_again(run.path, STAGES, ['export.to=["adapter"]', "export.verify=1"])
    text = card(run, "adapter")
    assert "Stages: SFT. " in text
    assert "**The recipe names GRPO too, which these weights did not go through.**" in text
    assert ModelCard(text).data["tags"] == [
        "medical",
        "vision-language",
        "mcq",
        "sft",
        "lora",
        "adapter",
        "generated-data",
    ]


@pytest.mark.slow
def test_a_card_has_the_results_even_if_results_json_is_damaged(trained: RunFolder) -> None:
    for text in ("{ torn", None):
        trained.results_file.unlink()
        if text is not None:
            trained.results_file.write_text(text, encoding="utf-8")
        export_again(trained.path, STAGES, ['export.to=["adapter"]', "export.verify=1"])
        text = card(trained, "adapter")
        assert "| after SFT | 12 |" in text
        assert "The last row is that of these weights." in text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    recipe = small_recipe(tmp_path_factory.mktemp("orders"), FEW)
    return run_recipe(recipe.model_copy(update={"grpo": None}), STAGES).run


def test_a_quantization_without_gguf_is_rejected(trained: RunFolder) -> None:
    with raises(RunError, "export.quant_without_gguf") as caught:
        export_again(trained.path, STAGES, ['export.quant=["q8_0"]'])
    assert caught.problem.place == "--quant"


def test_the_export_folder_of_the_run_is_rejected_as_out(trained: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(trained.path)
    for out in (trained.path / "stages/export", tmp_path / "link/stages/export/x"):
        with raises(RunError, "export.out_in_run_folder") as caught:
            export_again(trained.path, STAGES, ['export.to=["adapter"]'], Delivery(out))
        assert (caught.problem.place, caught.problem.value) == ("--out", str(out))


@pytest.mark.parametrize("held_out", [True, False])
def test_the_summary_of_a_verification_names_its_split(held_out: bool) -> None:
    verification = make_verification(8, held_out=held_out)
    table = gguf_table(make_gguf({"q8_0": GgufFile("x.gguf", 1.0, 8, verification)}))
    for text in (str(table.title), describe_verification(verification)):
        assert ("held-out" in text, "training" in text) == (held_out, not held_out)


def test_verification_skips_samples_that_do_not_fit_and_warns_about_training_samples(
    trained: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = trained.recipe(TASKS)
    section = Export(to=("adapter",), verify=3)
    with context_of(recipe) as context:
        rows = list(context.data.train)
        rows[0] = replace(rows[0], fields={**rows[0].fields, "question": "How long is this? " * 100})
        data = replace(context.data, train=cast(SampleSet, rows), test=cast(SampleSet, []))
        unusual = replace(context, data=data, recipe=recipe.model_copy(update={"evaluate": None, "export": section}))
        with caplog.at_level(logging.WARNING, "toolkit"):
            chosen = prepare_job(unusual, HfBackend(), trained.weights_folder("sft")).verification_set
        assert not chosen.held_out
        assert [sample.id for sample in chosen.samples] == [sample.id for sample in rows[1:4]]
        warned = {problem.code: problem for problem in warnings_in(caplog)}
        assert "export.verified_on_training_rows" in warned
        assert warned["export.questions_replaced"].value == 1
        assert PROMPT_TOO_LONG in warned["export.questions_replaced"].rule
        endless = replace(unusual, data=replace(data, train=cast(SampleSet, rows[:1])))
        with raises(DataError, "export.no_question_fits"):
            prepare_job(endless, HfBackend(), trained.weights_folder("sft"))
