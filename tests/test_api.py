"""The Python API: lazy imports, typed signatures, and the same results as the commands."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import toolkit
from tests.helpers.problems import raises
from toolkit.errors import DataError, PlanError, RecipeError, RunError, ToolkitError
from toolkit.pipeline import RunResults
from toolkit.recipe import load_recipe
from toolkit.runfolder import find_run, read_json, start_run
from toolkit.tasks import TASKS

HEAVY = ("torch", "transformers", "trl", "datasets", "numpy", "cv2", "pyarrow", "pydantic", "PIL", "typer", "rich")
FUNCTIONS = ["evaluate", "export", "load_predictor", "plan", "predict", "predict_rows", "run"]


def write_recipe(folder: Path, stages: str) -> Path:
    file = folder / "recipe.toml"
    data = '[data]\ntask = "mcq"\n[data.synthetic]\nkind = "chest"\ntrain = 4\ntest = 2\nsize = 64\n'
    file.write_text(f'[run]\nname = "one"\nfolder = "{folder}/runs"\n{data}{stages}')
    return file


def test_the_package_exports_its_functions() -> None:
    assert toolkit.__all__ == FUNCTIONS
    assert set(FUNCTIONS) <= set(dir(toolkit))
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = toolkit.train


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_typed_and_documented(name: str) -> None:
    function = getattr(toolkit, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    text = inspect.getdoc(function) or ""
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"\n    {parameter.name}: " in text
    assert all(f"\n{section}:\n" in text for section in ("Args", "Returns", "Raises"))


def test_importing_the_package_imports_no_library() -> None:
    code = f"import sys, toolkit; toolkit.run; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_a_recipe_is_run_evaluated_exported_and_predicted_with(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "[sft]\nmax_steps = 1\naccumulation = 1\n[evaluate]\n")
    results = toolkit.run(recipe, ["evaluate.max_completion_tokens=4"])
    assert isinstance(results, RunResults)
    assert [row.label for row in results.rows] == ["majority baseline", "before", "after SFT"]
    folder = tmp_path / "runs" / "one"
    assert read_json(folder / "plan.json")["ok"] is True
    again = toolkit.evaluate(folder, ["evaluate.limit=1"], name="small")
    assert [(row.label, row.estimate.n) for row in again.rows][-1] == ("small", 1)
    record = toolkit.export(folder, ["export.verify=0"], to=["adapter"])
    assert record.requested == ("adapter",)
    assert record.adapter is not None
    assert (folder / record.adapter.folder / "adapter_config.json").is_file()
    image = next((folder / "synthetic" / "images").glob("*.png"))
    answer = toolkit.predict(folder, "Which?", [image], options=["A. a", "B. b"], model="adapter")
    assert answer.values or answer.problem
    assert find_run(folder).is_done("evaluate-small")


def test_the_dry_run_has_its_own_folder(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "[evaluate]\nmax_completion_tokens = 4\n")
    results = toolkit.run(recipe, dry_run=True)
    assert isinstance(results, RunResults)
    assert results.run.path == tmp_path / "runs" / "one.dry-run"
    assert not (tmp_path / "runs" / "one").exists()


def test_a_plan_is_for_the_named_gpu(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "[sft]\nmax_steps = 3\n")
    for gpu, size in (("T4", 16), (24, 24)):
        plan = toolkit.plan(recipe, gpu=gpu)
        assert plan.gpu is not None
        assert 0.8 * size < plan.gpu.memory / 2**30 < size
    with raises(PlanError, "plan.gpu_unknown"):
        toolkit.plan(recipe, gpu="T5")
    with raises(PlanError, "plan.gpu_memory_out_of_range"):
        toolkit.plan(recipe, gpu=0)


def test_a_single_text_counts_as_one_entry(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "[sft]\nmax_steps = 1\n[export]\n")
    assert toolkit.plan(recipe, "run.name=two").run == "two"
    with raises(RecipeError, "recipe.choice_unknown") as caught:
        toolkit.run(recipe, 'export.to=["onnx"]')
    assert caught.problem.value == "onnx"
    folder = start_only(recipe)
    with raises(RecipeError, "recipe.choice_unknown") as caught:
        toolkit.export(folder, to="onnx")
    assert caught.problem.value == "onnx"
    image = tmp_path / "image.png"
    Image.new("L", (64, 64)).save(image)
    with raises(DataError, "predict.too_few_options") as few:
        toolkit.predict(folder, "Which?", str(image), options="ab")
    assert few.problem.value == ["ab"]


def start_only(recipe: Path) -> Path:
    with start_run(load_recipe(recipe, tasks=TASKS)) as run:
        return run.path


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run", {"recipe": 5}),
        ("run", {"recipe": "recipe.toml", "settings": 5}),
        ("run", {"recipe": "recipe.toml", "settings": {"sft.epochs": 1}}),
        ("run", {"recipe": "recipe.toml", "fresh": "no"}),
        ("plan", {"recipe": None}),
        ("plan", {"recipe": "recipe.toml", "gpu": True}),
        ("predict", {"run_folder": "one", "question": "?", "images": 3}),
        ("predict", {"run_folder": "one", "question": "?", "images": [3]}),
        ("predict", {"run_folder": "one", "question": 3, "images": []}),
        ("predict", {"run_folder": "one", "question": "?", "images": [], "context": ["Indication"]}),
        ("export", {"run_folder": "one", "out": 3}),
        ("load_predictor", {"model_path": b"one"}),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error(name: str, arguments: dict[str, object]) -> None:
    with raises(ToolkitError, "api.argument_type") as caught:
        getattr(toolkit, name)(**arguments)
    assert caught.problem.place == f"toolkit.{name}({list(arguments)[-1]})" or name == "predict"
    with pytest.raises(TypeError, match=rf"{name}\(\).*'limit'"):
        getattr(toolkit, name)(**arguments, limit="x")


@pytest.mark.parametrize("path", ["a" * 300, "~no-such-user/run", "a\0b"])
def test_an_impossible_path_is_an_error(tmp_path: Path, path: str) -> None:
    for name in ("plan", "evaluate", "export", "load_predictor"):
        with pytest.raises(ToolkitError):
            getattr(toolkit, name)(path)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with raises(RunError, "run.not_a_run_folder"):
        toolkit.evaluate(tmp_path)
    with pytest.raises(RunError):
        toolkit.load_predictor(tmp_path)
