"""Trackers of an image generation run: the logged values, and the error of a tracker that cannot start."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.imagegen_runs import RECIPE
from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from toolkit.errors import MissingExtraError
from toolkit.evaluation.trackers import tracking
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.runfolder import RunFolder, start_run

FIGURES = {"selector_loss": 0.5, "selector_learning_rate": 1e-3}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with start_run(load_recipe(RECIPE, ["run.name=tracked", f"run.folder={tmp_path / 'runs'}"])) as run:
        yield run


def test_wandb_offline_gets_the_figures(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = load_recipe(RECIPE, ['run.report_to=["wandb"]'])
    for step in (1, 2):  # the second start resumes the first one's curves
        time.sleep(1.1)  # wandb names its folders by the second
        with tracking(recipe.run.report_to, run) as trackers:
            trackers.figures("scorers", step, FIGURES)
    files = sorted((run.path / "wandb").rglob("run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    for file in files:
        content = file.read_bytes()
        assert all(f"scorers/{name}".encode() in content for name in FIGURES)


def test_runs_of_one_name_have_curves_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = load_recipe(RECIPE, ['run.report_to=["wandb"]', "run.name=tracked", f"run.folder={tmp_path / 'runs'}"])
    for _ in range(2):
        with start_run(recipe, fresh=True) as run, tracking(recipe.run.report_to, run):
            pass
    files = list((tmp_path / "runs").rglob("run-*.wandb"))
    assert len({file.name for file in files}) == 2


def test_wandb_without_a_login_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    # In a process of its own, because wandb reads its environment once.
    program = """
from toolkit.recipe import load_recipe
from toolkit.runfolder import start_run
from toolkit.evaluation.trackers import tracking
import sys
recipe = load_recipe(sys.argv[1], ['run.report_to=["wandb"]', f"run.folder={sys.argv[2]}"], tasks={})
with start_run(recipe) as run, tracking(recipe.run.report_to, run):
    pass
"""
    hidden = {"WANDB_MODE", "WANDB_API_KEY"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(RECIPE), str(tmp_path / "runs")],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "RunError: run.report_to: " in ended.stderr
    assert "WANDB_MODE=offline" in ended.stderr


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_an_error_before_the_first_stage(
    tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    recipe = load_recipe(RECIPE, [f'run.report_to=["{tracker}"]', "run.name=lost", f"run.folder={tmp_path / 'runs'}"])
    with raises(MissingExtraError, "install.extra_missing") as caught:
        run_imagegen(recipe)
    assert caught.problem.place == tracker
    assert "tracking" in caught.problem.remedy
    assert not (tmp_path / "runs" / "lost" / "stages").exists()
