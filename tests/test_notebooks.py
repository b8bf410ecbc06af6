"""The notebooks match their sources, have no outputs, and run to the end on a machine without a GPU."""

import ast
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.notebooks import FOLDER, sources, text_of
from tests.helpers.recipes import load_recipe
from toolkit.pipeline import read_results

ROOT = Path(__file__).parent.parent
NAMES = ["ham10000_kaggle", "medgemma_grpo_colab", "medgemma_grpo_kaggle", "tour"]


def read_notebook(name: str) -> nbformat.NotebookNode:
    made: nbformat.NotebookNode = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    return made


def code_of(source: Path) -> str:
    return source.read_text(encoding="utf-8")


def cells(source: Path) -> list[str]:
    return re.split(r"^# %%.*\n", code_of(source), flags=re.MULTILINE)[1:]


def test_every_notebook_has_a_source_and_every_source_a_notebook() -> None:
    assert [source.stem for source in sources()] == NAMES
    assert sorted(file.stem for file in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_a_notebook_is_what_its_source_makes(source: Path) -> None:
    """If this fails, run ``python tests/helpers/notebooks.py``."""
    assert source.with_suffix(".ipynb").read_text(encoding="utf-8") == text_of(source)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_no_outputs(name: str) -> None:
    made = read_notebook(name)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_all_notebooks_are_set_up_alike() -> None:
    assert len({next(cell for cell in cells(source) if "SOURCE = " in cell) for source in sources()}) == 1


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_every_recipe_and_key_that_a_notebook_names_exists(source: Path) -> None:
    names = re.findall(r'RECIPES / "([^"]+)"', code_of(source))
    assert names
    strings = [node.value for node in ast.walk(ast.parse(code_of(source))) if isinstance(node, ast.Constant)]
    settings = [text for text in strings if isinstance(text, str) and re.fullmatch(r"[a-z]+\.[a-z_.]+=.+", text)]
    for name in names:
        load_recipe(ROOT / "recipes" / name, [s for s in settings if not s.startswith(("sft.", "grpo."))])
    for section in ("sft", "grpo"):
        named = [s for s in settings if s.startswith(f"{section}.")]
        recipe = next((name for name in names if getattr(load_recipe(ROOT / "recipes" / name), section)), None)
        assert recipe or not named
        if recipe:
            load_recipe(ROOT / "recipes" / recipe, named)


def execute(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a notebook from its first cell to its last in an empty folder, and return everything that it printed."""
    monkeypatch.setenv("TOOLKIT_DRY_RUN", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    made = read_notebook(name)
    NotebookClient(made, timeout=3000, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [out for cell in made.cells if cell.cell_type == "code" for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error"]
    shown = [out.data.get("text/html", "") for out in outputs if out.output_type == "display_data"]
    assert any("<iframe" in html and "majority baseline" in html for html in shown)  # the report, with its table
    return "".join(out.text for out in outputs if out.output_type == "stream")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medgemma_grpo_colab", "medgemma_grpo_kaggle"])
def test_the_dry_run_of_a_medgemma_notebook_finishes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = execute(name, tmp_path, monkeypatch)
    assert "a dry run with the recipes in" in printed
    assert "the dry run passed in" in printed
    assert "after GRPO" in printed
    assert (tmp_path / "runs" / "medgemma_grpo.dry-run" / "results.json").is_file()


@pytest.mark.slow
def test_the_ham10000_notebook_prepares_data_and_runs_both_dry_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = execute("ham10000_kaggle", tmp_path, monkeypatch)
    assert printed.count("the dry run passed in") == 2
    assert printed.count("some of the recipe's own rows") == 2
    assert {run.name for run in (tmp_path / "runs").iterdir() if not run.name.startswith(".")} == {
        "ham10000_sft.dry-run",
        "ham10000_grpo.dry-run",
    }


@pytest.mark.slow
def test_the_tour_runs_as_it_is_and_the_model_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = execute("tour", tmp_path, monkeypatch)
    learned = read_results(tmp_path / "runs" / "tour").evaluations["sft"].primary.differences["before"]
    assert learned.difference.low is not None
    assert learned.difference.low > 0
    assert "reference: " in printed
