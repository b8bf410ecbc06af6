"""A new folder is complete or absent, and no file is replaced."""

from pathlib import Path

import pytest

from toolkit.runfolder import new_folder


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_folder_is_complete_and_may_have_been_empty(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "a" / "b"
    if exists:
        target.mkdir(parents=True)
    with new_folder(target) as partial:
        (partial / "file").touch()
        assert not (target / "file").exists()
    assert [path.name for path in target.parent.iterdir()] == ["b"]
    assert [path.name for path in target.iterdir()] == ["file"]


def test_after_an_error_nothing_is_left_also_of_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / ".b.partial").mkdir()
    (tmp_path / ".b.partial" / "old").touch()

    def interrupted() -> None:
        with new_folder(tmp_path / "b") as partial:
            assert not list(partial.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_an_error_and_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(OSError), new_folder(tmp_path / "b"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "mine"]
