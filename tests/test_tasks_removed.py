"""A task is one folder: without the folders of some tasks and their registration, all else works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.tasks import TASKS

ROOT = Path(__file__).parent.parent
REMOVED = {"lesion": "LESION", "steps": "STEPS", "chat": "CHAT", "report_generation": "REPORT_GENERATION"}


def without_tasks(folder: Path) -> Path:
    """Copy the package and its recipes, and remove the tasks in ``REMOVED`` and their registration."""
    shutil.copytree(ROOT / "toolkit", folder / "toolkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    registration = folder / "toolkit" / "tasks" / "__init__.py"
    text = registration.read_text(encoding="utf-8")
    for name, constant in REMOVED.items():
        shutil.rmtree(folder / "toolkit" / "tasks" / name)
        text = text.replace(f"from toolkit.tasks.{name} import {constant}\n", "")
        text = re.sub(rf", {constant}\b", "", text)
        assert constant not in text
    registration.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_quickstart_works_without_the_folders_of_other_tasks(tmp_path: Path) -> None:
    copy = without_tasks(tmp_path / "copy")

    def toolkit(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(copy), "TOOLKIT_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "toolkit", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = "import toolkit.tasks as t; print(t.__file__, *t.TASKS)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        stdout=subprocess.PIPE,
        text=True,
    )
    others = [name for name in TASKS if name not in REMOVED]
    assert found.stdout.split() == [str(copy / "toolkit/tasks/__init__.py"), *others]
    assert "--help" in toolkit("--help")
    recipe = str(copy / "recipes" / "quickstart.toml")
    assert "no problem found" in toolkit("plan", recipe)
    toolkit("run", recipe, "--dry-run")
    assert "quickstart.dry-run" in toolkit("evaluate", "runs/quickstart.dry-run")
