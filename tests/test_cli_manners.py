"""JSON on standard output, quiet commands, NO_COLOR, exit codes, completion, and the time of --help."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.helpers.cli import call
from toolkit.cli.commands import app
from toolkit.errors import ExitCode, Interrupted, ToolkitError

ROOT = Path(__file__).parent.parent
WITHOUT_RESULTS = {("constraints",), ("recipes", "show"), ("demo",)}
"""Commands that print a file, a path or an address."""


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not hasattr(command, "commands"):
        return {path: command}
    return {key: leaf for name, one in command.commands.items() for key, leaf in leaves(one, (*path, name)).items()}


COMMANDS = leaves(typer.main.get_command(app))


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def json_of(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert call([*arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert isinstance(found["schema_version"], int)
    return found


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.toml"
    file.write_text(
        '[run]\nname = "one"\n[data]\ntask = "mcq"\n[data.synthetic]\nkind = "chest"\ntrain = 8\ntest = 4\nsize = 64\n'
        "[model]\nmax_tokens = 256\n[images]\nmax_side = 112\n[sft]\nmax_steps = 1\n"
        "[evaluate]\nmax_completion_tokens = 48\n"
    )
    return file


def test_every_command_that_reports_has_the_option_json() -> None:
    assert {path for path, command in COMMANDS.items() if "--json" not in options(command)} == WITHOUT_RESULTS


def test_the_examples_of_a_help_text_are_command_lines_of_its_command() -> None:
    found = {path: command.epilog.split("\n\n")[1:] for path, command in COMMANDS.items() if command.epilog}
    assert ("run",) in found
    for path, examples in found.items():
        for words in map(shlex.split, examples):
            if words[0] == "pip":  # its constraints are the output of the command
                continue
            assert words[: len(path) + 1] == ["toolkit", *path]
            assert {word for word in words if word.startswith("-")} <= options(COMMANDS[path])


def test_every_command_can_be_quiet() -> None:
    assert [path for path, command in COMMANDS.items() if "--quiet" not in options(command)] == []


def test_commands_print_one_json_object(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json_of(["plan", str(recipe)], capsys)["run"] == "one"
    inspected = json_of(["data", "inspect", str(recipe), "--show", "1"], capsys)
    assert inspected["rows"] == {"train": 8, "validation": 0, "test": 4}
    assert len(inspected["rendered"]) == 1
    written = json_of(["data", "synthetic", "chest", "--out", "chest", "--train", "4", "--test", "2"], capsys)
    assert Path(written["files"]["train"]).is_file()
    assert [one["name"] for one in json_of(["recipes", "list"], capsys)["notebooks"]]
    assert json_of(["cache", "info"], capsys)["kinds"]
    copied = json_of(["recipes", "copy", "quickstart"], capsys)
    assert [Path(file).name for file in copied["files"]] == ["quickstart.toml"]
    line = {"sample": {"question": "What?", "options": ["A. x", "B. y"], "correct_answer": "B", "ImagePath": ["a.png"]}}
    Path("answers.jsonl").write_text(json.dumps({**line, "completion": "B"}) + "\n")
    scored = json_of(["reward", "test", str(recipe), "answers.jsonl"], capsys)
    assert scored["completions"][0]["place"] == "line 1"
    assert {one["reward"] for one in scored["completions"][0]["rewards"]} >= {"letter"}


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["run", "missing.toml"], "recipe.not_found", ExitCode.INVALID),
        (["evaluate", "missing"], "run.not_a_run_folder", ExitCode.FAILED),
        (["list", "missing"], "run.folder_missing", ExitCode.FAILED),
        (["run", "--fersh"], "cli.arguments_invalid", ExitCode.INVALID),
        (["recipes", "show-all"], "cli.arguments_invalid", ExitCode.INVALID),
    ],
)
def test_an_error_is_json_too(
    arguments: list[str], code: str, exit_code: int, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = json_of(arguments, capsys, exit_code)
    assert found["exit_code"] == exit_code
    assert [one["code"] for one in found["problems"]] == [code]


def test_a_quiet_command_prints_its_results_alone(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["data", "inspect", str(recipe)]) == 0
    loud = capsys.readouterr()
    assert call(["data", "inspect", str(recipe), "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert loud.err != ""
    assert quiet.err == ""
    # Synthetic data are in a temporary folder.
    assert re.sub(r"/tmp\S+", "", quiet.out) == re.sub(r"/tmp\S+", "", loud.out)
    assert call(["plan", "quickstart", "-q"]) == 0
    assert "recipe: " not in capsys.readouterr().err


def test_a_quiet_command_prints_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["list", str(tmp_path / "missing"), "--quiet"]) == 1
    assert capsys.readouterr().err.endswith("[run.folder_missing]\n")


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7])m")


@pytest.mark.parametrize("words", [["--help"], ["run", "--fersh"]])
def test_no_color_removes_colours(words: list[str]) -> None:
    def output(**more: str) -> str:
        environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", **more}
        command = [sys.executable, "-m", "toolkit", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert COLOUR.search(output())
    assert not COLOUR.search(output(NO_COLOR="1"))


def test_the_documented_exit_codes_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "reference" / "exit_codes.md").read_text(encoding="utf-8")
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert listed == sorted(ExitCode)
    classes = [ToolkitError]
    for one in classes:
        classes += one.__subclasses__()
    assert {one.exit_code for one in classes} <= set(ExitCode)
    assert {Interrupted(number, "").exit_code for number in (1, 2, 15)} < set(ExitCode)


def test_completion_prints_a_script_and_names_of_recipes() -> None:
    code = "import sys; sys.argv = ['toolkit']; from toolkit.cli.commands import app; app(prog_name='toolkit')"

    def complete(**more: str) -> str:
        environment = {**os.environ, **more}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout

    assert "complete -o default -F" in complete(_TOOLKIT_COMPLETE="source_bash")
    words = {"COMP_WORDS": "toolkit run quick", "COMP_CWORD": "2"}
    assert complete(_TOOLKIT_COMPLETE="complete_bash", **words).split() == ["quickstart"]


def test_a_closed_pipe_ends_a_command_without_a_traceback() -> None:
    code = f"{sys.executable} -m toolkit recipes list --json | true"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
