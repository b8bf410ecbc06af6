"""A run of [imagegen], killed at 20 random moments and resumed, ends as an undisturbed one. See tests/long/run."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.imagegen_runs import RECIPE, SMALL, numbers, results
from tests.helpers.recipes import load_recipe
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.runfolder import find_run

KILLS = 20
FEWEST_HITS = 17
"""Kills that must hit a run at work: on a busy machine the last runs can end before their kill."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(folder: Path, name: str) -> multiprocessing.process.BaseProcess:
    """Start the shortened recipe in a process of its own."""
    recipe = load_recipe(RECIPE, [*SMALL, f"run.name={name}", f"run.folder={folder / 'runs'}"])
    child = multiprocessing.get_context("fork").Process(target=run_imagegen, args=(recipe,))
    child.start()
    return child


def finish(folder: Path, name: str) -> float:
    """Run the recipe to its end, and return the seconds that it took."""
    began = time.monotonic()
    child = start(folder, name)
    child.join(600)
    assert child.exitcode == 0
    return time.monotonic() - began


def kill(folder: Path, name: str, seconds: float) -> tuple[bool, list[str]]:
    """Kill a run after some seconds. Return whether it was at work, and the stages that it had finished."""
    child = start(folder, name)
    child.join(seconds)
    if child.is_alive():
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
    return child.exitcode == -signal.SIGKILL, sorted(
        path.parent.name for path in (folder / "runs" / name).glob("stages/*/done.json")
    )


def steps(folder: Path, name: str) -> list[tuple[str, int]]:
    """The epochs and rounds of metrics.jsonl."""
    return sorted((line["stage"], line["step"]) for line in find_run(folder / "runs" / name).metrics())


def leftovers(folder: Path, name: str) -> list[Path]:
    """Files and folders of an unfinished write."""
    found = (folder / "runs" / name).rglob("*")
    return [path for path in found if path.name.endswith((".partial", ".old")) or path.name.startswith(".epoch_")]


def test_a_run_killed_at_20_random_moments_ends_with_the_table_of_an_undisturbed_one(tmp_path: Path) -> None:
    import diffusers  # noqa: F401  # before the forks, so that no run spends its time on imports
    import peft  # noqa: F401

    import toolkit.imagegen.stages  # noqa: F401

    finish(tmp_path, "warm-up")
    seconds = finish(tmp_path, "whole")
    undisturbed, moments, hits = results(tmp_path, "whole"), random.Random(0), 0
    print(f"\nan undisturbed run takes {seconds:.1f} s")
    for number in range(KILLS):
        name = f"killed{number}"
        moment = moments.uniform(number, number + 1) / KILLS * seconds  # in each twentieth of the run
        hit, done = kill(tmp_path, name, moment)
        hits += hit
        what = "killed" if hit else "finished"
        print(f"{name}: {what} after {moment:.1f} s, finished: {', '.join(done)}", flush=True)
        finish(tmp_path, name)
        resumed = results(tmp_path, name)
        assert numbers(resumed) == pytest.approx(numbers(undisturbed), abs=1e-6)
        assert [row["arm"] for row in resumed["rows"]] == ["base", "control", "sft", "ddpo"]
        assert steps(tmp_path, name) == steps(tmp_path, "whole")
        assert leftovers(tmp_path, name) == []
        assert len(list((tmp_path / "runs" / name / "checkpoints").iterdir())) == 1
    assert hits >= FEWEST_HITS
