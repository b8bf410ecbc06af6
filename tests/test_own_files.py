"""Files of a run that were damaged or replaced: a command continues, or ends with an error that has place and remedy.

Nothing of the user's is written or removed: neither the target of a link nor a folder in a file's place.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.test_pipeline import FakeStages, make_recipe
from toolkit.errors import ToolkitError
from toolkit.pipeline import read_results, run_recipe
from toolkit.pipeline.existing_run import evaluate_again, export_again
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder

pytestmark = pytest.mark.slow

RECORDS = (
    "recipe.toml",
    "run.json",
    "stages/evaluate-before/done.json",
    "stages/sft/done.json",
    "stages/grpo/done.json",
    "stages/export/done.json",
)
"""Files whose wrong content is an error of `toolkit run`."""
INFORMATION = ("log.txt", "compute.jsonl", "plan.json", "results.json")
"""Files that are written again, or whose wrong lines are left out."""
FILES = (*RECORDS, *INFORMATION, "metrics.jsonl")

CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "bytes": lambda content: bytes(range(256)),
    "null": lambda content: b"null\n",
    "list": lambda content: b"[]\n",
    "object": lambda content: b"{}\n",
    "types": lambda content: b'{"stage": [1], "step": {}, "schema_version": "2", "finished": 5, "result": 3}\n',
    "deep": lambda content: b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"\n",
    "integer": lambda content: b'{"stage": ' + b"9" * 5000 + b"}\n",
}

Place = Callable[[Path, Path], object]


def put_link(file: Path, target: Path) -> None:
    shutil.copy(file, target)
    file.unlink()
    file.symlink_to(target)


def put_broken_link(file: Path, target: Path) -> None:
    file.unlink()
    file.symlink_to(target)


def put_loop(file: Path, target: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def put_folder(file: Path, target: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "mine.txt").write_text("mine")


PLACES: dict[str, Place] = {"link": put_link, "broken link": put_broken_link, "loop": put_loop, "folder": put_folder}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("own"))
    run_recipe(recipe, FakeStages().table(), plan={"figures": {}})
    return recipe


@pytest.fixture
def copied(finished: Recipe, tmp_path: Path) -> tuple[Recipe, Path]:
    shutil.copytree(finished.run_folder.parent.parent, tmp_path / "copy")
    recipe = make_recipe(tmp_path / "copy")
    return recipe, recipe.run_folder


def interrupt(run: Path) -> None:
    """Let the run end after SFT."""
    for stage in ("evaluate-sft", "grpo", "evaluate-grpo", "export"):
        shutil.rmtree(run / "stages" / stage)


def commands(recipe: Recipe, run: Path) -> dict[str, Callable[[], object]]:
    return {
        "run": lambda: run_recipe(recipe, FakeStages().table(), plan={"figures": {}}),
        "evaluate": lambda: evaluate_again(run, FakeStages().table()),
        "export": lambda: export_again(run, FakeStages().table()),
        "results": lambda: read_results(run),
        "plan": lambda: RunFolder(run).plan(),
        "metrics": lambda: RunFolder(run).metrics(),
    }


def errors_of(recipe: Recipe, run: Path, *, is_finished: bool) -> dict[str, ToolkitError]:
    """Run each command, or `toolkit run` alone. Anything but a ToolkitError is a bug and ends the test."""
    found = {}
    for name, command in commands(recipe, run).items():
        try:
            if is_finished or name == "run":
                command()
        except ToolkitError as error:
            found[name] = error
    return found


def check_complete(errors: Mapping[str, ToolkitError]) -> None:
    for problem in (problem for one in errors.values() for problem in one.problems):
        assert problem.place, problem
        assert problem.remedy, problem


@pytest.mark.parametrize(
    ("kind", "is_finished"), [*((kind, True) for kind in CONTENTS), ("cut", False), ("deep", False)]
)
def test_damaged_content_is_an_error_or_is_written_again(
    copied: tuple[Recipe, Path], kind: str, is_finished: bool, tmp_path: Path
) -> None:
    recipe, run = copied
    whole = tmp_path / "whole"
    if not is_finished:
        interrupt(run)
    run.rename(whole)
    for name in FILES:
        if not (whole / name).is_file():
            continue
        shutil.copytree(whole, run)
        (run / name).write_bytes(CONTENTS[kind]((run / name).read_bytes()))
        found = errors_of(recipe, run, is_finished=is_finished)
        check_complete(found)
        assert name not in RECORDS or "run" in found, name
        assert name not in INFORMATION or not found, name
        shutil.rmtree(run)


@pytest.mark.parametrize(
    ("kind", "is_finished"), [*((kind, True) for kind in PLACES), ("link", False), ("folder", False)]
)
def test_a_link_or_folder_in_the_place_of_a_file_stays_as_it_is(
    copied: tuple[Recipe, Path], kind: str, is_finished: bool, tmp_path: Path
) -> None:
    recipe, run = copied
    whole, target = tmp_path / "whole", tmp_path / "target"
    if not is_finished:
        interrupt(run)
    run.rename(whole)
    for name in FILES:
        if not (whole / name).is_file():
            continue
        shutil.copytree(whole, run)
        content = (run / name).read_bytes()
        PLACES[kind](run / name, target)
        check_complete(errors_of(recipe, run, is_finished=is_finished))
        if kind == "link":
            assert target.read_bytes() == content, name
            target.unlink()
        assert not os.path.lexists(target), name
        assert kind != "folder" or (run / name / "mine.txt").read_text() == "mine", name
        shutil.rmtree(run)
