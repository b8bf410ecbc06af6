"""The cache folder: sizes, removal of its own files only, the size limit, and files of killed processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.cli import call
from tests.helpers.problems import raises
from toolkit.errors import ToolkitError
from toolkit.runfolder.cache import DAY, HOUR, LIMIT, cache_files, cache_limit, tidy_cache

IMAGE = "images/0123456789abcdef/ab/ab" + "0" * 30
RUN = '[run]\nname = "one"\n[data]\ntask = "mcq"\n'
INDEX = "rows/0123456789abcdef-0123456789abcdef"


def put(folder: Path, name: str, size: int, age: float = 0.0) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"0" * size)
    os.utime(file, (time.time() - age,) * 2)
    return file


def names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def dead() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_every_file_that_a_command_stores_is_recognized(
    tmp_path: Path, private_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["data", "synthetic", "chest", "--out", str(tmp_path / "chest"), "--train", "6", "--test", "4"]) == 0
    for file in (tmp_path / "chest").rglob("*.png"):
        os.utime(file, (1e9, 1e9))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'{RUN}train = "chest/train.json"\ntest = "chest/test.json"\n[sft]\n')
    assert call(["data", "inspect", str(recipe)]) == 0
    assert call(["plan", str(recipe)]) == 0
    stored = {name for name in names(private_cache) if name != ".tidied"}
    found = {one.path.relative_to(private_cache).as_posix() for one in cache_files(private_cache)}
    assert stored == found
    assert {name.partition("/")[0] for name in found} == {"images", "rows", "plans"}
    capsys.readouterr()
    assert call(["cache", "info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["folder"] == str(private_cache)
    assert sum(kind["files"] for kind in info["kinds"]) == len(found)
    assert sum(kind["size"] for kind in info["kinds"]) == sum((private_cache / name).stat().st_size for name in found)
    assert call(["cache", "clear", "rows"]) == 0
    assert {name.partition("/")[0] for name in names(private_cache)} == {"images", "plans", ".tidied"}
    assert call(["cache", "clear"]) == 0
    assert names(private_cache) == [".tidied"]


def test_clear_keeps_other_files_and_does_not_follow_links(tmp_path: Path, private_cache: Path) -> None:
    outside = put(tmp_path / "elsewhere", "ab" + "0" * 30 + "-0", 5)
    (private_cache / "images/0123456789abcdef/ab").mkdir(parents=True)
    (private_cache / "images/0123456789abcdef/ab" / outside.name).symlink_to(outside)
    others = ["images/chest.png", "images/00/scan.dcm", "rows/train.json", "rows/images/a.png", "plans/mine.json", "a"]
    for name in others:
        put(private_cache, name, 5)
    put(private_cache, f"{IMAGE}-1", 5)
    assert call(["cache", "clear"]) == 0
    assert [name for name in names(private_cache) if outside.name not in name] == sorted(others)
    assert outside.is_file()


def test_the_least_recently_used_files_above_the_limit_are_removed(tmp_path: Path) -> None:
    put(tmp_path, f"{IMAGE}-0", 400, 4 * DAY)
    put(tmp_path, f"{IMAGE}-1", 400, 3 * DAY)
    put(tmp_path, f"{IMAGE}-2", 400, 2 * DAY)
    put(tmp_path, f"{IMAGE}-3", 400, HOUR)
    put(tmp_path, f"{INDEX}.arrow", 400, 9 * DAY)
    index = put(tmp_path, f"{INDEX}.json", 0, 9 * DAY)
    index.write_text('{"has_embedded_images": true}')
    tidy_cache(tmp_path, {LIMIT: "0.0000013"})
    kept = [f"{IMAGE}-2", f"{IMAGE}-3", f"{INDEX}.arrow", f"{INDEX}.json"]
    assert names(tmp_path) == [".tidied", *kept]
    index.write_text('{"has_embedded_images": false}')
    os.utime(index, (0, 0))
    tidy_cache(tmp_path, {LIMIT: "0.0000001"})
    assert names(tmp_path) == [".tidied", f"{IMAGE}-3"]  # used today


def test_temporary_files_of_dead_processes_are_removed(tmp_path: Path, dead: int) -> None:
    shapes = [
        "images/0123456789abcdef/ab/.new-{}-x_1",
        INDEX + ".arrow.{}",
        INDEX + "-0123456789abcdef.npz.{}",
        "rows/images/ab/" + "a" * 40 + ".png.{}",
        "rows/." + INDEX.removeprefix("rows/") + ".json.{}.partial",
        "rows/." + INDEX.removeprefix("rows/") + ".arrow.{}.partial",
        "plans/.counts-" + "a" * 32 + ".json.{}.partial",
    ]
    for shape in shapes:
        put(tmp_path, shape.format(dead), 1, 2 * HOUR)
        put(tmp_path, shape.format(os.getppid()), 1, 2 * HOUR)
    new = put(tmp_path, f"{INDEX}.json.{dead}", 1)
    tidy_cache(tmp_path, {})
    kept = [shape.format(os.getppid()) for shape in shapes] + [new.relative_to(tmp_path).as_posix(), ".tidied"]
    assert names(tmp_path) == sorted(kept)


@pytest.mark.parametrize("text", ["0", "-1", "ten", "1e3", "inf"])
def test_an_invalid_limit_is_an_error(text: str) -> None:
    with raises(ToolkitError, "run.cache_limit_invalid") as caught:
        cache_limit({LIMIT: text})
    assert (caught.problem.place, caught.problem.value) == (LIMIT, text)
    assert cache_limit({LIMIT: "1.5"}) == 1_500_000_000
    assert cache_limit({}) is None


def test_plans_of_synthetic_data_do_not_grow_the_cache(tmp_path: Path, private_cache: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'{RUN}[data.synthetic]\nkind = "chest"\ntrain = 6\ntest = 4\n[sft]\n')
    for command in (["plan"], ["data", "inspect"]):
        assert call([*command, str(recipe)]) == 0
    before = names(private_cache)
    for command in (["plan"], ["data", "inspect"]):
        assert call([*command, str(recipe)]) == 0
    assert names(private_cache) == before
    assert not [name for name in before if name.startswith("rows/")]
