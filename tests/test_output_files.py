"""Output folders are complete, and files that no command wrote are never replaced."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import call
from tests.helpers.problems import raises
from toolkit.errors import RunError
from toolkit.runfolder import add_output, check_output, claim_file, output_files


def write(folder: Path, *, force: bool = False, **files: str) -> None:
    with output_files(folder, force=force) as staging:
        for name, text in files.items():
            file = staging / name.replace("__", "/")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".written.json")
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


@pytest.mark.parametrize("exists", [False, True])
def test_files_of_the_last_call_are_replaced_and_others_are_kept(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "a" / "out"
    if exists:
        out.mkdir(parents=True)
    write(out, train="1", test="1", images__0="1", images__1="1", old__0="1")
    (out / "notes").write_text("mine")
    write(out, train="2", images__0="2")
    assert contents(out) == {"train": "2", "images/0": "2", "notes": "mine"}
    assert sorted(path.name for path in out.iterdir()) == [".written.json", "images", "notes", "train"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_changed_file_is_an_error_and_force_renames_it(tmp_path: Path) -> None:
    write(tmp_path, train="1", test="1")
    (tmp_path / "train").write_text("mine")
    before = contents(tmp_path)
    for name in ("train", "test"):  # a call without train would remove it
        with raises(RunError, "output.files_exist") as caught:
            write(tmp_path, **{name: "2"})  # type: ignore[arg-type]
        assert (caught.problem.place, caught.problem.value) == (str(tmp_path), "train")
        assert contents(tmp_path) == before
    write(tmp_path, force=True, train="2")
    (tmp_path / "train").write_text("mine too")
    write(tmp_path, force=True, train="3")
    assert contents(tmp_path) == {"train": "3", "train.old-1": "mine", "train.old-2": "mine too"}


def test_a_file_or_link_of_the_user_in_the_way_of_a_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("mine")
    (tmp_path / "train").symlink_to(tmp_path / "elsewhere")
    with raises(RunError, "output.files_exist") as caught:
        write(tmp_path, images__0="1", train="1")
    assert caught.problem.value == "images, train"
    write(tmp_path, force=True, images__0="1", train="1")
    assert contents(tmp_path) == {"images.old-1": "mine", "images/0": "1", "train": "1"}
    assert (tmp_path / "train.old-1").is_symlink()


@pytest.mark.parametrize("manifest", ["not JSON", "[1]", '{"../mine": ["x"], "train": "x"}'])
def test_a_damaged_manifest_owns_no_file(tmp_path: Path, manifest: str) -> None:
    out = tmp_path / "out"
    write(out, train="1")
    (tmp_path / "mine").write_text("mine")
    (out / ".written.json").write_text(manifest)
    with raises(RunError, "output.files_exist"):
        write(out, train="2")
    assert (contents(out), (tmp_path / "mine").read_text()) == ({"train": "1"}, "mine")


def test_an_error_in_the_block_leaves_everything_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "out", train="1")

    def interrupted(out: Path) -> None:
        with output_files(out) as staging:
            (staging / "train").write_text("2")
            raise KeyboardInterrupt

    for name in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path / name)
    assert contents(tmp_path) == {"out/train": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_can_be_added_and_is_removed_by_the_next_call(tmp_path: Path) -> None:
    write(tmp_path, train="1")
    add_output(tmp_path, "problems", "a problem")
    assert contents(tmp_path) == {"train": "1", "problems": "a problem"}
    write(tmp_path, train="2")
    assert contents(tmp_path) == {"train": "2"}
    (tmp_path / "problems").write_text("mine")
    with raises(RunError, "output.files_exist"):
        add_output(tmp_path, "problems", "a problem")


KILLED = """
import os, sys
from pathlib import Path
from toolkit.runfolder import output_files
left = int(sys.argv[2])
replace = Path.replace
def replace_some(self, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    return replace(self, target)
Path.replace = replace_some
with output_files(Path(sys.argv[1])) as staging:
    for name in ("test", "train", "validation"):
        (staging / name).write_text("2")
"""


@pytest.mark.slow
@pytest.mark.parametrize("renames", range(5))
def test_a_killed_call_leaves_no_mixture_and_the_next_call_repairs_it(tmp_path: Path, renames: int) -> None:
    out = tmp_path / "out"
    write(out, train="1", test="1", validation="1")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out), str(renames)], check=False, env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    shown = {name: text for name, text in contents(out).items() if not name.startswith(".")}
    assert len(set(shown.values())) <= 1
    write(out, train="3", test="3")
    assert contents(out) == {"train": "3", "test": "3"}


def test_an_existing_file_is_claimed_only_by_force(tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.md"
    claim_file(file)
    file.write_text("1")
    with raises(RunError, "output.file_exists") as caught:
        claim_file(file)
    assert caught.problem.place == str(file)
    claim_file(file, force=True)
    assert contents(tmp_path) == {"new/report.md.old-1": "1"}


def test_a_folder_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for action in (write, lambda out: claim_file(out / "a"), lambda out: check_output(out, ["a"])):
        with raises(RunError, "output.folder_not_writable"):
            action(tmp_path / "file" / "out")
    with raises(RunError, "output.folder_not_writable"):
        write(tmp_path / "file")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chest", "lesion", "steps"])
def test_synthetic_data_replaces_only_itself(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["data", "synthetic", kind, "--out", str(out), "--train", "8", "--test", "4", "--size", "320"]
    name = "train.csv" if kind == "steps" else "train.json"
    assert call(command) == 0
    assert str(out / name) in capsys.readouterr().out
    first = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert call(command) == 0
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == first
    (out / name).write_text("[]")
    assert call(command) == 1
    assert name in capsys.readouterr().err
    assert (out / name).read_text() == "[]"
    assert call([*command, "--force"]) == 0
    assert (out / f"{name}.old-1").read_text() == "[]"
    assert (out / name).read_bytes() == first[out / name]
    assert call([*command[:4], str(out / name / "x"), *command[5:]]) == 1


def test_claiming_a_file_removes_temporaries_of_killed_processes_only(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, own = tmp_path / f".r.md.{ended.pid}.partial", tmp_path / f".r.md.{os.getpid()}.partial"
    foreign = [tmp_path / ".r.md.mine.partial", tmp_path / f".other.md.{ended.pid}.partial", tmp_path / "r.md.partial"]
    for file in (left, own, *foreign):
        file.touch()
    claim_file(tmp_path / "r.md")
    assert not left.exists()
    assert all(file.exists() for file in (own, *foreign))
