"""The wheel: its name and version, the files it ships, recipes by name, and remedies that need no checkout."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import toolkit
from tests.helpers.cli import call
from tests.helpers.recipes import load_recipe
from toolkit.distribution import DISTRIBUTION, constraints_file, pip_install_extra, shipped_notebooks, shipped_recipes
from toolkit.errors import MissingExtraError
from toolkit.recipe.shipped import FOLDER, find_recipe

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RECIPES = sorted(file.stem for file in (ROOT / "recipes").glob("*.toml"))
TAKEN = re.compile(r"""pip3? install[^\n]*['" ]toolkit(\[|==|['"]?$)|['"]toolkit\[""", re.MULTILINE)
"""Installation of the distribution `toolkit`, which is another project's."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling is not installed (pip install .[test])")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, as pip unpacks it."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "TOOLKIT_CACHE": str(work / ".cache")}
    command = [sys.executable, "-m", "toolkit", *words]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)


def test_the_version_is_written_once(wheel: Path) -> None:
    assert "version" not in PROJECT["project"]
    assert wheel.name.startswith(f"{DISTRIBUTION.replace('-', '_')}-{toolkit.__version__}-")


def test_the_name_is_that_of_the_project_and_its_extras_exist() -> None:
    assert PROJECT["project"]["name"] == DISTRIBUTION
    extras = PROJECT["project"]["optional-dependencies"]
    named = re.findall(
        r"(?:MissingExtraError\(\s*\"[^\"]+\",\s*|pip_install_extra\()[\"'](\w[\w-]*)[\"']",
        "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "toolkit").rglob("*.py")),
    )
    assert len(named) >= 5
    assert set(named) <= set(extras)
    own = [line for lines in extras.values() for line in lines if "[" in line]
    assert own
    assert all(line.startswith(f"{DISTRIBUTION}[") for line in own)


def test_no_text_installs_the_package_of_another_project() -> None:
    files = [*(ROOT / "toolkit").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "Dockerfile"]
    files += [*(ROOT / "recipes").rglob("*.py"), *(ROOT / "recipes").glob("*.toml"), ROOT / "pyproject.toml"]
    found = [
        str(file) for file in files if TAKEN.search(file.read_text(encoding="utf-8")) and file.name != "CHANGELOG.md"
    ]
    assert found == []
    assert TAKEN.search("pip install 'toolkit[compute]'")
    assert TAKEN.search("pip install toolkit")
    assert not TAKEN.search("pip install 'medvlm-toolkit[compute]'")


def test_remedies_of_the_package_need_no_checkout() -> None:
    code = {file: file.read_text(encoding="utf-8") for file in (ROOT / "toolkit").rglob("*.py")}
    assert [str(file) for file, text in code.items() if "-c constraints.txt" in text or "install ." in text] == []
    assert MissingExtraError("gguf", "gguf", "GGUF").remedy == f"Install it with: {pip_install_extra('gguf')}"


def test_the_wheel_has_recipes_notebooks_and_constraints(installed: Path) -> None:
    package = installed / "toolkit"
    assert sorted(file.stem for file in (package / "recipes").glob("*.toml")) == RECIPES
    assert sorted(file.stem for file in (package / "recipes" / "notebooks").glob("*.ipynb")) == sorted(
        shipped_notebooks()
    )
    assert (package / "constraints.txt").read_bytes() == (ROOT / "constraints.txt").read_bytes()
    assert not (installed / "tests").exists()


def test_a_checkout_finds_the_same_files() -> None:
    assert sorted(shipped_recipes()) == RECIPES
    assert constraints_file().read_bytes() == (ROOT / "constraints.txt").read_bytes()


@pytest.mark.slow
def test_the_installed_package_lists_shows_and_copies_its_recipes(installed: Path, tmp_path: Path) -> None:
    listed = run_installed(installed, tmp_path, "recipes", "list")
    assert all(re.search(rf"^  {name} ", listed.stdout, re.MULTILINE) for name in (*RECIPES, *shipped_notebooks()))
    shown = run_installed(installed, tmp_path, "recipes", "show", "quickstart")
    assert shown.stdout == (ROOT / "recipes" / "quickstart.toml").read_text(encoding="utf-8")
    found = run_installed(installed, tmp_path, "constraints").stdout.strip()
    assert Path(found) == installed / "toolkit" / "constraints.txt"


@pytest.mark.slow
def test_a_plan_by_name_works_from_the_wheel_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = run_installed(installed, tmp_path, "plan", "quickstart")
    assert done.returncode == 0, done.stderr
    assert f"recipe: {installed / 'toolkit' / 'recipes' / 'quickstart.toml'}" in done.stderr


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_by_name_is_equal_to_its_copy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_name = load_recipe(name)
    assert find_recipe(Path(name)).shipped
    assert call(["recipes", "copy", name]) == 0
    assert not find_recipe(Path(name)).shipped
    assert load_recipe(f"recipes/{name}.toml") == by_name == load_recipe(name)
    paths = re.findall(r"/[^'\"]*", str(by_name.data.train)) if by_name.data and by_name.data.train else []
    assert all(path.startswith(str(tmp_path / FOLDER)) for path in paths)


def test_a_recipe_is_copied_with_the_one_whose_run_it_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["recipes", "copy", "skin_stage2_grpo", str(tmp_path / "mine")]) == 0
    names = ["skin_stage1_sft.toml", "skin_stage2_grpo.toml"]
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == names
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == names


def test_a_copy_replaces_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quickstart.toml").write_text("mine")
    assert call(["recipes", "copy", "quickstart", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("[recipes.file_exists]\n")
    assert (tmp_path / "quickstart.toml").read_text() == "mine"


def test_an_unknown_name_is_rejected_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["recipes", "show", "quikstart"]) == 2
    assert "Did you mean quickstart?" in capsys.readouterr().err
    assert call(["plan", "quikstart"]) == 2
    assert "Did you mean quickstart?" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["quickstart", "quickstart.toml", "recipes/quickstart.toml"])
def test_a_file_in_the_working_directory_takes_precedence(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text('[run]\nname = "mine"\n[data]\ntask = "mcq"\ntrain = "a.json"\n[evaluate]\n')
    assert load_recipe("quickstart").run.name == "mine"


def test_the_container_drops_the_pin_that_its_extras_exclude() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    extras = set(re.findall(r'"\.\[([a-z,]+)\]"', text)[0].split(","))
    assert extras <= set(PROJECT["project"]["optional-dependencies"])
    needs_older_pillow = any("grep -v" in pip_install_extra(extra) for extra in extras)
    assert needs_older_pillow == ('grep -v "^pillow==" constraints.txt' in text)


def test_notebooks_and_project_urls_name_one_repository() -> None:
    home = PROJECT["project"]["urls"]["Repository"]
    sources = [file.with_suffix(".py").read_text(encoding="utf-8") for file in shipped_notebooks().values()]
    assert all(f'SOURCE = "git+{home}.git"' in text for text in sources)
    assert all(url.startswith(home) for url in PROJECT["project"]["urls"].values())
    assert f"repository-code: {home}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_workflow_nox_and_classifiers_have_the_same_versions_of_python() -> None:
    known = {line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if "Python ::" in line}
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    nox = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    for text in (workflow, nox):
        assert set(re.findall(r'"(3\.\d+)"', text)) == known
