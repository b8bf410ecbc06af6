"""Exports in unusual orders: what an earlier one left, what was changed in between, what cannot be made at all."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit.cli import tables as show
from toolkit.cli.tables import _verification, gguf_table
from toolkit.errors import DataError, RunError
from toolkit.exporting import _job
from toolkit.models.hf import HfBackend
from toolkit.models.lengths import PROMPT_TOO_LONG
from toolkit.pipeline import run_recipe
from toolkit.pipeline.rerun import Delivery, export_again
from toolkit.pipeline.results import read_results
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Export, dump_recipe
from toolkit.runfolder import RunFolder, find_exported, write_text
from toolkit.tasks import TASKS

FEW = {"sft": {"max_steps": 1}, "evaluate": {"max_completion_tokens": 4, "before": False}}


def test_an_optional_gguf_that_the_base_does_not_support_is_skipped_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "toolkit.models.llamacpp.require_for", lambda quant, verify: None
    )  # as if the extra were installed
    tables = {**FEW, "export": {"to": ("adapter",), "optional": ("gguf",), "verify": 1}}
    recipe = small_recipe(tmp_path, tables).model_copy(update={"grpo": None})
    for module in ("models.loading", "exporting"):
        monkeypatch.setattr(f"toolkit.{module}.stored_quantised", lambda source, model: "bitsandbytes")
    with caplog.at_level(logging.INFO, "toolkit"):
        record = run_recipe(recipe, STAGES).run.record("export")
        assert (record["asked"], record["left_out"]) == (["adapter"], ["gguf"])
        (warned,) = (problem for problem in warnings_in(caplog) if problem.code == "export.gguf_left_out")
        assert warned.value == "bitsandbytes"
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
    with pytest.raises(RunError) as caught:
        find_exported(run, "merged")
    assert (caught.value.code, caught.value.value) == ("run.exported_weights_outdated", "made from stages/sft/weights")
    show.results(read_results(run.path))
    told = capsys.readouterr().out
    assert "weights from before the last training (stages/sft/weights)" in told
    assert "vllm serve" not in told
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


def card(run: RunFolder, form: str) -> str:
    return (run.path / "stages/export" / form / "README.md").read_text(encoding="utf-8")


def test_a_card_names_the_stages_that_these_weights_went_through_and_no_other(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, FEW)
    run = run_recipe(recipe.model_copy(update={"grpo": None, "export": None}), STAGES).run
    write_text(run.recipe_file, dump_recipe(recipe))  # as if the run had been interrupted in GRPO
    export_again(run.path, STAGES, ['export.to=["adapter"]', "export.verify=1"])
    told = card(run, "adapter")
    assert "Stages: SFT. " in told
    assert "**The recipe names GRPO too, which these weights did not go through.**" in told
    assert ModelCard(told).data.tags == [
        "medical",
        "vision-language",
        "mcq",
        "sft",
        "lora",
        "adapter",
        "generated-data",
    ]


def test_a_card_has_the_results_of_the_records_whatever_results_json_says(trained: RunFolder) -> None:
    for text in ("{ torn", None):
        trained.results_file.unlink()
        if text is not None:
            trained.results_file.write_text(text, encoding="utf-8")
        export_again(trained.path, STAGES, ['export.to=["adapter"]', "export.verify=1"])
        told = card(trained, "adapter")
        assert "| after SFT | 12 |" in told
        assert "The last row is that of these weights." in told


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    recipe = small_recipe(tmp_path_factory.mktemp("orders"), FEW)
    return run_recipe(recipe.model_copy(update={"grpo": None}), STAGES).run


def test_a_quantization_without_gguf_is_rejected(trained: RunFolder) -> None:
    with raises(RunError, "export.quant_without_gguf") as caught:
        export_again(trained.path, STAGES, ['export.quant=["q8_0"]'])
    assert caught.problem.place == "--quant"


def test_the_runs_own_folder_of_exports_is_no_place_elsewhere(trained: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(trained.path)
    for out in (trained.path / "stages/export", tmp_path / "link/stages/export/x"):
        with raises(RunError, "export.out_in_run_folder") as caught:
            export_again(trained.path, STAGES, ['export.to=["adapter"]'], Delivery(out))
        assert (caught.problem.place, caught.problem.value) == ("--out", str(out))


@pytest.mark.parametrize("held_out", [True, False])
def test_the_summary_of_a_verification_names_its_split(held_out: bool) -> None:
    score = {"name": "accuracy", "n": 8, "value": 0.5}
    file = {"file": "x.gguf", "megabytes": 1.0, "bits": 8, "questions": 8, "differing": 0, "gap": 0.0, "score": score}
    record = {"questions": 8, "differing": 0, "held_out": held_out, "files": {"q8_0": file}}
    table = gguf_table({**record, "mmproj": "m.gguf", "mmproj_megabytes": 1.0})
    for text in (str(table.title), _verification(record)):
        assert ("held-out" in text, "training" in text) == (held_out, not held_out)


def test_verification_skips_samples_that_do_not_fit_and_warns_about_training_samples(
    trained: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = trained.recipe(TASKS)
    section = Export(to=("adapter",), verify=3)
    with context_of(recipe) as context:
        rows = list(context.data.train)
        rows[0] = replace(rows[0], fields={**rows[0].fields, "question": "How long is this? " * 100})
        data = replace(context.data, train=rows, test=rows[:0])
        asked = replace(context, data=data, recipe=recipe.model_copy(update={"evaluate": None, "export": section}))
        with caplog.at_level(logging.WARNING, "toolkit"):
            questions = _job(asked, HfBackend(), trained.weights_folder("sft")).questions
        assert not questions.held_out
        assert [sample.id for sample in questions.samples] == [sample.id for sample in rows[1:4]]
        warned = {problem.code: problem for problem in warnings_in(caplog)}
        assert "export.verified_on_training_rows" in warned
        assert warned["export.questions_replaced"].value == 1
        assert PROMPT_TOO_LONG in warned["export.questions_replaced"].rule
        endless = replace(asked, data=replace(data, train=rows[:1]))
        with raises(DataError, "export.no_question_fits"):
            _job(endless, HfBackend(), trained.weights_folder("sft"))
