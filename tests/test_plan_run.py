"""The command `toolkit plan`, and the plan at the start of a run."""

import json
import logging
from pathlib import Path

import pytest

from tests.helpers.cli import call
from tests.helpers.plans import record_of, write_xrays
from tests.helpers.problems import raises, warnings_in
from tests.helpers.training import Tables, recipe_on_files
from toolkit.errors import DataError, PlanError
from toolkit.pipeline import read_results, run_recipe
from toolkit.pipeline.plan import plan_language_model as make
from toolkit.pipeline.plan import plan_run
from toolkit.pipeline.stages import STAGES
from toolkit.planning import Gpu
from toolkit.planning.gpu import GIB
from toolkit.reporting.gpu_peaks import GpuPeak, describe_peaks, gpu_peaks
from toolkit.runfolder import append_line, find_run, read_json

A5000 = Gpu("RTX A5000", int(23.6 * GIB), bf16=True)


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xrays(tmp_path_factory.mktemp("xrays"))


def test_the_command_prints_the_plan_and_its_exit_code_has_the_result(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.toml"
    head = f'[run]\nname = "one"\nfolder = "{tmp_path}/runs"\n[data]\ntask = "mcq"\ntrain = "{xrays}/train.json"\n'
    file.write_text(f"{head}[images]\nmax_side = 112\n[grpo]\n[evaluate]\n")
    assert call(["plan", str(file), "--set", "model.max_tokens=300"]) == 0
    assert "[plan.training_prompt_too_long]" not in capsys.readouterr().out
    assert call(["plan", str(file), "--set", "model.max_tokens=150"]) == 1
    assert "[plan.training_prompt_too_long]" in capsys.readouterr().out
    in_four_bits = ["plan", str(file), "--set", "model.max_tokens=300", "--set", "model.precision=4bit"]
    assert call(in_four_bits) == 0
    assert "[model.quantized_on_cpu]" in capsys.readouterr().out
    assert call([*in_four_bits, "--json"]) == 0
    (warned,) = json.loads(capsys.readouterr().out)["warnings"]
    assert list(warned) == ["code", "place", "value", "rule", "remedy"]
    assert (warned["code"], warned["value"]) == ("model.quantized_on_cpu", "'4bit'")
    assert call([*in_four_bits, "--gpu", "16"]) == 0
    assert "[model.quantized_on_cpu]" not in capsys.readouterr().out
    assert call(["plan", str(file), "--set", "grpo.generations=1"]) == 2


def test_a_run_that_cannot_work_ends_before_anything_is_written(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.toml"
    head = f'[run]\nname = "one"\nfolder = "{tmp_path}/runs"\n[data]\ntask = "mcq"\ntrain = "{xrays}/train.json"\n'
    file.write_text(f"{head}[model]\nmax_tokens = 100\n[images]\nmax_side = 112\n[sft]\n")
    assert call(["run", str(file)]) == 1
    error = capsys.readouterr().err
    assert "[data.row_too_long]" in error
    assert error.endswith("[plan.run_cannot_work]\n")
    assert not (tmp_path / "runs").exists()


def test_a_plan_error_has_every_certain_problem_with_its_code(xrays: Path, tmp_path: Path) -> None:
    tables: Tables = {"model": {"max_tokens": 100}, "grpo": {"prompts_per_step": 100, "max_completion_tokens": 16}}
    recipe = recipe_on_files(tmp_path, xrays, tables)
    expected = ["training.too_few_prompts", "data.row_too_long", "plan.training_prompt_too_long"]
    with raises(PlanError, *expected, "plan.evaluation_prompt_too_long") as caught:
        plan_run(recipe, fresh=False)
    assert (caught.problem.place, caught.problem.value) == ("[grpo] prompts_per_step", 100)
    assert caught.error.code == "plan.run_cannot_work"


def test_an_estimate_above_the_gpu_memory_only_warns(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("toolkit.planning.find_gpu", lambda: Gpu("a small one", GIB // 2, bf16=True))
    with caplog.at_level(logging.INFO, "toolkit"):
        found = plan_run(recipe_on_files(tmp_path, xrays), fresh=False)
    assert found is not None
    assert not found["ok"]
    assert ("plan.gpu_memory_too_small", "memory of sft") in [(one.code, one.place) for one in warnings_in(caplog)]


def test_unreadable_rows_do_not_stop_the_plan_of_a_run(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays, {"data": {"columns": {"question": "nothing"}}})
    assert plan_run(recipe, fresh=False) is not None
    with raises(DataError, "data.column_missing"):
        run_recipe(recipe, STAGES)


@pytest.mark.slow
def test_the_plan_is_stored_and_compared_with_measured_peaks(
    xrays: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_on_files(tmp_path, xrays).model_copy(update={"grpo": None, "evaluate": None})
    plan = record_of(make(recipe, A5000))
    run = run_recipe(recipe, STAGES, plan=plan).run
    assert read_json(run.plan_file) == plan
    expected = plan["memory"]["sft"]["reserved_gb"]
    peaks = read_results(run.path).gpu_memory
    assert peaks == {"sft": GpuPeak(estimated_gb=expected, measured_gb=None)}  # torch reserved none here.
    assert describe_peaks(peaks) == "no GPU was used"
    with caplog.at_level(logging.INFO, "toolkit"):
        assert plan_run(recipe, fresh=False) is None
    assert "plan.json" in caplog.text


@pytest.mark.slow
def test_a_measured_peak_is_reported_with_its_estimate(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays).model_copy(update={"grpo": None, "evaluate": None})
    run = run_recipe(recipe, STAGES, plan=record_of(make(recipe, A5000))).run
    lines = [json.loads(line) for line in run.compute_file.read_text(encoding="utf-8").splitlines()]
    (last,) = (line for line in lines if line.get("event") == "stage" and line["stage"]["name"] == "sft")
    last["stage"]["used"]["gpu_memory"] = 7_500_000_000
    append_line(run.compute_file, last)
    estimated = read_json(run.plan_file)["memory"]["sft"]["reserved_gb"]
    assert gpu_peaks(find_run(run.path)) == {"sft": GpuPeak(estimated_gb=estimated, measured_gb=7.5)}
    assert describe_peaks(gpu_peaks(run)) == f"sft 7.5 GB (plan: {estimated:.1f} GB)"


@pytest.mark.slow
def test_without_a_gpu_there_is_no_estimate(xrays: Path, tmp_path: Path) -> None:
    recipe = recipe_on_files(tmp_path, xrays).model_copy(update={"grpo": None, "evaluate": None})
    run = run_recipe(recipe, STAGES, plan=record_of(make(recipe, None))).run
    assert gpu_peaks(run) == {"sft": GpuPeak(estimated_gb=None, measured_gb=None)}
