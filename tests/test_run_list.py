"""`toolkit list`: finished, interrupted, failed, running and damaged runs, and their main score."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers.cli import call
from tests.helpers.recipes import load_recipe
from toolkit.errors import Interrupted, RunError, ToolkitError
from toolkit.pipeline.run_list import RunStatus, list_runs
from toolkit.recipe import Recipe
from toolkit.runfolder import start_run

TEXT = '[run]\nname = "one"\nfolder = "runs"\n[data]\ntask = "mcq"\ntrain = "train.json"\n[sft]\nmax_steps = 1\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.toml").write_text(TEXT)
    return load_recipe(tmp_path / "recipe.toml", [f"run.folder={tmp_path / 'runs'}"])


def stopped_by(recipe: Recipe, error: ToolkitError | None) -> RunStatus:
    """The status of a run that ended in this way."""
    try:
        with start_run(recipe):
            if error is not None:
                raise error
    except ToolkitError:
        pass
    (found,) = list_runs(recipe.run_folder.parent)
    assert (found.task, found.model, found.score) == ("mcq", recipe.model.name, None)
    assert found.started is not None
    return found.status


def test_a_run_that_ended_with_an_error_has_failed(recipe: Recipe) -> None:
    assert stopped_by(recipe, RunError("run.broken", "a rule of\ntwo lines")) is RunStatus.FAILED


def test_a_run_that_a_signal_ended_or_that_was_killed_is_interrupted(recipe: Recipe) -> None:
    assert stopped_by(recipe, Interrupted(15, "step 3 is saved")) is RunStatus.INTERRUPTED
    assert stopped_by(recipe, None) is RunStatus.INTERRUPTED  # a killed process logs nothing


def test_a_failed_run_that_was_started_again_and_killed_is_interrupted(recipe: Recipe) -> None:
    assert stopped_by(recipe, RunError("run.broken", "a rule")) is RunStatus.FAILED
    with start_run(recipe) as run:
        run.log_file.open("a").write("2026-01-01 00:00:00 sft: step 1\n")
    assert list_runs(recipe.run_folder.parent)[0].status is RunStatus.INTERRUPTED


def test_a_locked_run_is_running(recipe: Recipe) -> None:
    with start_run(recipe):
        pass
    lock = recipe.run_folder.parent / f".{recipe.run_folder.name}.lock"
    with FileLock(lock, timeout=0):
        assert list_runs(recipe.run_folder.parent)[0].status is RunStatus.RUNNING


@pytest.mark.parametrize("name", ["run.json", "recipe.toml"])
@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_damaged_run_is_listed_as_damaged(recipe: Recipe, name: str, content: str | None) -> None:
    with start_run(recipe) as run:
        pass
    file = run.path / name
    file.unlink()
    if content is not None:
        file.write_text(content)
    (found,) = list_runs(run.path.parent)
    assert (found.status, found.folder) == (RunStatus.DAMAGED, run.path)
    assert found.problem is not None
    assert found.problem.endswith("]")


def test_other_folders_are_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "notes").mkdir(parents=True)
    assert list_runs(tmp_path / "runs") == ()
    assert call(["list", str(tmp_path / "runs")]) == 0
    assert call(["list", str(tmp_path / "missing")]) == 1
    assert capsys.readouterr().err.endswith("[run.folder_missing]\n")


def test_the_list_as_json(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    with start_run(recipe) as run:
        pass
    assert call(["list", str(run.path.parent), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert [(one["folder"], one["status"], one["task"]) for one in found["runs"]] == [
        (str(run.path), "interrupted", "mcq")
    ]


def test_names_of_folders_are_neither_markup_nor_commands_of_the_terminal(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_run(recipe) as run:
        pass
    folder = run.path.parent.rename(run.path.parent.with_name("["))
    (folder / run.path.name).rename(folder / "[red]\x1b[2Ja\rb")
    assert call(["list", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "[red]\\x1b[2Ja\\rb" in out.replace("\n", "")
    assert "\x1b" not in out
    inside = folder / "[" / "x]"
    inside.mkdir(parents=True)
    (folder / "[red]\x1b[2Ja\rb").rename(inside / "one")
    assert call(["list", str(inside)]) == 0  # the title has a closing tag: [/x]


def test_the_code_of_a_custom_task_does_not_run(recipe: Recipe) -> None:
    with start_run(recipe) as run:
        pass
    (run.path / "own.py").write_text(f"open({str(run.path / 'ran')!r}, 'w')\n")
    text = run.recipe_file.read_text()
    run.recipe_file.write_text(text.replace('task = "mcq"', 'task = "own.py:TASK"'))
    (found,) = list_runs(run.path.parent)
    assert (found.status, found.task, found.problem) == (RunStatus.INTERRUPTED, "own.py:TASK", None)
    assert not (run.path / "ran").exists()
