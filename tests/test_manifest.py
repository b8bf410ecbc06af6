"""Manifests: damage of equal size and time is found, and an unchanged file is read once in a process."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.damage import change_one_byte, write_weights
from tests.helpers.problems import raises
from toolkit.errors import RunError
from toolkit.runfolder import manifest
from toolkit.runfolder.manifest import MANIFEST, check_weights, digest_file, find_damage, is_as_written, write_manifest

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_weights(tmp_path / "weights")
    return tmp_path / "weights"


def age(file: Path) -> None:
    """Let the time pass in which a file may change without a new time."""
    time.sleep(1.1 * manifest._RECENT_NS / 1e9)
    assert time.time_ns() - file.stat().st_ctime_ns > manifest._RECENT_NS


def test_an_unchanged_folder_has_no_damage_wherever_it_is_moved(folder: Path, tmp_path: Path) -> None:
    assert find_damage(folder) is None
    moved = folder.rename(tmp_path / "elsewhere")
    (moved / "README.md").write_text("the card of its owner")
    assert find_damage(moved) is None
    assert is_as_written(moved)
    (moved / "notes.txt").write_text("a file of its owner")
    assert find_damage(moved) is None
    assert not is_as_written(moved)


def test_a_changed_byte_is_found_although_size_and_time_are_the_same(folder: Path) -> None:
    file = folder / WEIGHTS
    for remembered in (False, True):
        if remembered:
            age(file)
        assert find_damage(folder) is None
        change_one_byte(file)
        damage = find_damage(folder)
        assert damage is not None
        assert damage.file == file
        change_one_byte(file)


def test_an_unchanged_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reads = folder / WEIGHTS, []
    age(file)
    real = hashlib.file_digest

    def counted(*given: Any) -> Any:
        reads.append(given)
        return real(*given)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    first = digest_file(file)
    assert digest_file(folder.rename(folder.with_name("final")) / WEIGHTS) == first
    assert len(reads) == 1


@pytest.mark.parametrize("kind", ["gone", "empty", "folder", "broken link", "loop", "pipe"])
def test_a_file_that_is_missing_irregular_or_of_another_size_is_damage(folder: Path, kind: str) -> None:
    file = folder / WEIGHTS
    file.unlink()
    if kind == "empty":
        file.touch()
    elif kind == "folder":
        file.mkdir()
    elif kind == "broken link":
        file.symlink_to("nowhere")
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "pipe":
        os.mkfifo(file)
    with raises(RunError, "run.weights_damaged") as caught:
        check_weights(folder)
    assert caught.problem.place == str(file)
    assert caught.problem.value == ("it has 0 bytes instead of 7" if kind == "empty" else "it is missing")


def test_weights_may_be_moved_to_another_disk_behind_a_link(folder: Path, tmp_path: Path) -> None:
    file = folder / WEIGHTS
    file.rename(tmp_path / "large")
    file.symlink_to(tmp_path / "large")
    check_weights(folder, own=True)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "\xff", "[" * 9999, '{"a": 7}', '{"../a": {"size": 1, "sha256": ""}}']
)
def test_a_damaged_manifest_is_damage(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    with raises(RunError, "run.weights_damaged") as caught:
        check_weights(folder, own=True)
    assert caught.problem.place == str(folder / MANIFEST)


@pytest.mark.parametrize("text", ["", "{", "[" * 9999, '{"../a": {"size": 1, "sha256": ""}}'])
def test_a_damaged_manifest_of_an_export_in_another_folder_is_damage(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    with raises(RunError, "run.weights_damaged"):
        check_weights(folder)


@pytest.mark.parametrize("text", ["[]", '{"name": "app", "icons": {"size": 7}}', '{"files": {"a": {"size": 7}}}'])
def test_a_file_of_this_name_by_another_program_is_ignored(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    check_weights(folder)


def test_weights_of_others_have_no_manifest_but_those_of_a_run_must_have_one(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    check_weights(folder)
    with raises(RunError, "run.weights_damaged") as caught:
        check_weights(folder, own=True)
    assert caught.problem.place == str(folder / MANIFEST)


def test_a_manifest_of_another_export_is_damage(folder: Path, tmp_path: Path) -> None:
    with raises(RunError, "run.weights_damaged") as caught:
        check_weights(folder, digest="other")
    assert caught.problem.place == str(folder / MANIFEST)


def test_of_gguf_files_only_the_named_one_and_its_projector_are_compared(tmp_path: Path) -> None:
    for name in ("run-Q8_0.gguf", "run-F16.gguf", "mmproj-run-f16.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path)
    change_one_byte(tmp_path / "run-F16.gguf")
    check_weights(tmp_path / "run-Q8_0.gguf", own=True)
    with raises(RunError, "run.weights_damaged"):
        check_weights(tmp_path / "run-F16.gguf")
    change_one_byte(tmp_path / "mmproj-run-f16.gguf")
    with raises(RunError, "run.weights_damaged") as caught:
        check_weights(tmp_path / "run-Q8_0.gguf")
    assert caught.problem.place == str(tmp_path / "mmproj-run-f16.gguf")
