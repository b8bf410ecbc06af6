"""The command line: what it prints, what it exits with, and that it starts without a heavy library."""

import errno
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import toolkit
from tests.helpers.cli import call
from tests.helpers.exports import make_merged, make_verification
from tests.helpers.recipes import load_recipe
from tests.helpers.results import difference, estimate, sft_result
from toolkit.cli import main
from toolkit.cli import tables as show
from toolkit.cli.progress import PlainLines, show_progress
from toolkit.errors import Interrupted, RunError
from toolkit.exporting.results import ExportResult
from toolkit.pipeline import ResultRow, RunResults
from toolkit.recipe.renamed import RENAMED
from toolkit.runfolder import SCHEMA_VERSION, read_json, start_run, write_json

HEAVY = ("torch", "transformers", "trl", "datasets", "numpy", "cv2", "pyarrow", "pydantic", "PIL", "filelock")


def write_recipe(folder: Path, text: str = "") -> str:
    file = folder / "recipe.toml"
    head = f'[run]\nname = "one"\nfolder = "{folder}/runs"\n[data]\ntask = "mcq"\ntrain = "train.json"\n'
    file.write_text(head + text)
    return str(file)


def test_help_lists_every_command_and_none_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--help"]) == 0
    text = capsys.readouterr().out
    commands = re.findall(r"^│ (\w+) ", text[text.index("Commands") :], flags=re.MULTILINE)
    assert commands == [
        "run",
        "plan",
        "evaluate",
        "export",
        "predict",
        "demo",
        "new",
        "list",
        "doctor",
        "constraints",
        "report",
        "data",
        "reward",
        "imagegen",
        "cache",
        "recipes",
    ]


@pytest.mark.parametrize(
    "command",
    ["run", "plan", "evaluate", "export", "predict", "doctor", "data inspect", "data synthetic", "reward test"],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call([*command.split(), "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--version"]) == 0
    assert capsys.readouterr().out == f"toolkit {toolkit.__version__}\n"


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, toolkit.cli; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "toolkit", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"toolkit {toolkit.__version__}\n")


def test_an_invalid_recipe_reports_all_problems_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, "[grpo]\ngenerations = 1\n[gprp]\n")
    assert call(["run", path, "--set", "grpo.beat=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, *lines, last = err.splitlines()
    assert "3 problems" in first
    assert [line.partition(": must ")[0] for line in lines] == [
        f"  {path}: grpo.generations",
        "  --set grpo.beat",
        f"  {path}: gprp",
    ]
    assert lines[0].endswith("(got 1). Raise the value. [recipe.out_of_range]")
    assert lines[1].endswith("Did you mean beta? [recipe.key_unknown]")
    assert lines[2].endswith("Did you mean grpo? [recipe.section_unknown]")
    assert last.endswith("[recipe.invalid]")


def test_missing_files_are_reported_before_the_run_folder_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["run", write_recipe(tmp_path, "[evaluate]\n")]) == 2
    error = capsys.readouterr().err
    assert "data.train: " in error
    assert f"(got '{tmp_path}/train.json')" in error
    assert error.endswith("[recipe.invalid]\n")
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_no_run_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["evaluate", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("[run.not_a_run_folder]\n")


def test_a_wrong_option_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run"]) == 2
    assert call(["run", "a.toml", "--fersh"]) == 2


@pytest.mark.parametrize(
    ("arguments", "former"),
    [
        (["run", "a.toml", "--rehearse"], "--rehearse"),
        (["run", "--rehearse=yes", "a.toml"], "--rehearse"),
        (["data", "phantom", "chest", "--out", "a"], "toolkit data phantom"),
    ],
)
def test_a_renamed_command_or_option_is_rejected_with_its_new_name(
    arguments: list[str], former: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(arguments) == 2
    assert f"Use {RENAMED[former]} instead." in capsys.readouterr().err


def test_every_new_name_of_a_command_or_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for new in RENAMED.values():
        if new.startswith("toolkit "):
            assert call([*new.split()[1:], "--help"]) == 0
    assert call(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(new in text for new in RENAMED.values() if new.startswith("--"))
    assert not any(former in text for former in RENAMED if former.startswith("--"))


def test_errors_are_shown_without_tokens_and_interruptions_exit_like_a_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_with(error: Exception) -> int:
        def app(args: object) -> None:
            raise error

        monkeypatch.setattr("toolkit.cli.app", app)
        return call([])

    assert fail_with(RunError("run.hub_rejected", "the Hub rejected hf_abcdefGHIJKLmnopQRST")) == 1
    assert capsys.readouterr().err == "toolkit: the Hub rejected [hidden] [run.hub_rejected]\n"
    assert fail_with(Interrupted(2, "step 3 is saved")) == 130
    error = capsys.readouterr().err
    assert "signal 2" in error
    assert "step 3 is saved" in error
    assert error.endswith("[run.interrupted]\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def app(args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("toolkit.cli.app", app)
    with pytest.raises(ZeroDivisionError):
        main([])


def test_synthetic_data_is_written_and_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chest"
    assert call(["data", "synthetic", "chest", "--out", str(out), "--train", "8", "--test", "4", "--size", "64"]) == 0
    printed = capsys.readouterr().out
    assert f'train = "{out}/train.json"' in printed
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[run]\nname = "one"\n{printed}[evaluate]\n')
    assert call(["data", "inspect", str(recipe)]) == 0
    text = capsys.readouterr().out
    # Two questions about each image: 8 rows have 4 images, 4 rows have 2.
    assert "train: 8 rows in 4 groups" in text
    assert "test: 4 rows in 2 groups" in text
    assert "unusable rows: 0" in text
    assert "6 checked, 0 unusable" in text
    assert "6 with 16 bits" in text


def test_inspect_lists_missing_images_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(["data", "synthetic", "chest", "--out", str(tmp_path), "--train", "8", "--test", "4", "--size", "64"])
    next(iter(sorted((tmp_path / "images").iterdir()))).unlink()
    capsys.readouterr()
    path = write_recipe(tmp_path, "[evaluate]\n")
    assert call(["data", "inspect", path, "-s", f"data.test={tmp_path}/test.json"]) == 1
    text = capsys.readouterr().out
    assert "6 checked, 1 unusable" in text
    assert "row 0, image 1: the image must exist" in text
    assert "radiograph000000.png" not in text


def test_synthetic_data_of_a_recipe_is_inspected_without_leaving_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(
        '[run]\nname = "one"\n[data]\ntask = "mcq"\n[data.synthetic]\nkind = "chest"\ntrain = 4\ntest = 2\nsize = 64\n'
        "[evaluate]\n"
    )
    assert call(["data", "inspect", "recipe.toml"]) == 0
    assert "train: 4 rows" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


COMPLETION = "<start_working_out>The heart is enlarged.<end_working_out><SOLUTION>B - Cardiomegaly</SOLUTION>"
ROW = {
    "question": "What is the primary finding?",
    "options": ["A. Normal", "B. Cardiomegaly"],
    "correct_answer": "B",
    "correct_answer_explanation": "The heart is enlarged.",
    "ImagePath": ["a.png"],
}


def write_lines(folder: Path, *lines: object) -> str:
    file = folder / "completions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def test_reward_test_explains_each_score_and_gives_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path, {"sample": ROW, "completion": COMPLETION}, {"sample": ROW, "completion": "no idea"})
    assert call(["reward", "test", write_recipe(tmp_path, "[grpo]\n"), file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("line 1: ")
    letters = [line.split()[:5] for line in lines if line.startswith("  letter ")]
    # Right, then not readable; the last one is the mean of the two.
    assert letters[0] == ["letter", "1.00", "x", "1", "="]
    assert letters[1][1] == "0.00"
    assert letters[2][1] == "0.500"
    assert any(line.startswith("line 2: ") and "could not be parsed" in line for line in lines)


def test_reward_test_says_what_a_line_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path, {"sample": ROW})
    assert call(["reward", "test", write_recipe(tmp_path, "[grpo]\n"), file]) == 1
    assert "[rewards.completion_missing]" in capsys.readouterr().err


def test_an_export_prints_each_format_and_what_was_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    merged = make_merged(make_verification(differing=1))
    show.exported(ExportResult("w", ("adapter", "merged"), merged=merged), Path("runs/x"))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("adapter: not written")
    assert second == "merged: runs/x/stages/export/merged (12.5 MB, 16 bits, 15 of 16 held-out completions unchanged)"


def test_an_export_ends_with_the_commands_that_serve_it(capsys: pytest.CaptureFixture[str]) -> None:
    merged = make_merged(folder="e/merged", commands=("vllm serve {folder}",))
    result = ExportResult("w", ("merged",), merged=merged, pushed="https://hub.invalid/1")
    show.exported(result, Path("my runs"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["  serve it: vllm serve 'my runs/e/merged'", "pushed: https://hub.invalid/1"]


def test_the_table_of_results_is_printed_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half, n = 0.05, 400
    rows = (
        ResultRow("majority baseline", estimate(0.3, half, n)),
        ResultRow("before", estimate(0.25, half, n), difference(-0.05, half, n), difference(-0.05, half, n)),
        ResultRow("after SFT", estimate(0.6, half, n), difference(0.35, half, n), difference(0.3, half, n)),
    )
    show.results(
        RunResults(
            schema_version=SCHEMA_VERSION,
            name="one",
            seed=1,
            fingerprints={},
            score="accuracy",
            split="test",
            rows=rows,
            also={},
            compute=None,
            gpu_memory={},
            data=None,
            evaluations={},
            sft=None,
            grpo=None,
            export=None,
            folder=tmp_path,
        )
    )
    lines = [" ".join(re.sub("[│┃]", " ", line).split()) for line in capsys.readouterr().out.splitlines()]
    assert "majority baseline 400 30.0 % [25.0 to 35.0]" in lines
    assert "after SFT 400 60.0 % [55.0 to 65.0] +35.0 [+30.0 to +40.0] +30.0 [+25.0 to +35.0]" in lines
    assert f"run folder: {tmp_path}" in " ".join(lines)


def test_progress_without_a_terminal_is_a_line_now_and_then_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([100.0, 105.0, 110.0, 130.0])
    monkeypatch.setattr("toolkit.cli.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with show_progress(stream) as (progress, _):
        assert isinstance(progress, PlainLines)
        progress("sft", 10, 40)
        progress("sft", 12, 40)  # five seconds later: no line
        progress("sft", 20, 40, "loss 0.5")
        progress("sft", 40, 40)
        progress("sft", 40, 40)  # a trainer's closing summary, which was shown already
    # From 10 to 20 in 10 seconds, so the 20 that are left take 20 seconds.
    assert stream.getvalue() == "sft: 10 of 40\nsft: 20 of 40, 20 s left, loss 0.5\nsft: 40 of 40\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with show_progress(stream) as (progress, _):
        progress("sft", 16, 40, "loss 0.5")  # a run that continues
        logging.getLogger("toolkit").info("a line above the bar")
        progress("sft", 40, 40)
        progress("sft", 40, 40)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "16/40" in shown
    assert "left" in shown
    assert "loss 0.5" in shown
    assert "a line above the bar" in shown
    assert "0/100" not in shown


def test_log_lines_are_shown_and_details_are_not() -> None:
    stream = io.StringIO()
    with show_progress(stream):
        logging.getLogger("toolkit.pipeline").info("sft begins [1 of 2]")
        logging.getLogger("toolkit.pipeline").debug("a detail")
        logging.getLogger("toolkit.data").warning("2 rows are left out")
    assert stream.getvalue() == "sft begins [1 of 2]\nwarning: 2 rows are left out\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("Error while serializing: I/O error: File too large (os error 27)"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_is_reported_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    (tmp_path / "train.json").write_text("[]")
    monkeypatch.setattr("toolkit.pipeline.run_recipe", fail)
    assert call(["run", write_recipe(tmp_path, "[grpo]\n")]) == 1
    assert capsys.readouterr().err.endswith("[run.disk_full]\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan", "a\udcff.toml"], "cli.argument_not_text"),
        (["evaluate", "one", "--name", "a\0b"], "cli.argument_not_text"),
        (["export", "one", "--out", "\udcff"], "cli.argument_not_text"),
        (["plan", "recipe.toml", "--set", "run.name=\udcff"], "cli.argument_not_text"),
        (["data", "synthetic", "chest", "--out", ""], "cli.argument_empty"),
        (["plan", " "], "cli.argument_empty"),
        (["plan", "a" * 300], "recipe.invalid"),
        (["plan", "a/" * 3_000], "recipe.invalid"),
        (["evaluate", "a" * 300], "run.path_invalid"),
        (["export", "a/" * 3_000], "run.path_invalid"),
        (["predict", "a" * 300, "--question", "?", "--image", "{image}"], "run.path_invalid"),
        (["report", "a" * 300], "run.path_invalid"),
    ],
)
def test_an_impossible_argument_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str
) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    assert call([str(tmp_path / "image.png") if word == "{image}" else word for word in arguments]) in (1, 2)
    assert capsys.readouterr().err.endswith(f"[{code}]\n")


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_opened_before_any_file(tmp_path: Path, streams: str) -> None:
    file = tmp_path / "report.md"
    code = (
        "import os, sys, toolkit.cli\n"
        "try: toolkit.cli.main(['cache', 'info'])\n"
        f"except SystemExit as left: os.write(os.open({str(file)!r}, os.O_WRONLY | os.O_CREAT), b'own')\n"
        "print('not in the file', flush=True)\n"
    )
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{code}" {streams}'], capture_output=True, text=True)
    assert (done.returncode, file.read_text()) == (0, "own")
    assert "Traceback" not in done.stderr


def test_a_removed_working_directory_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert call(["cache", "info"]) == 1
    assert capsys.readouterr().err.endswith("[run.no_working_directory]\n")


def test_a_path_without_permission_is_an_error_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "runs/one/run.json")

    (tmp_path / "train.json").write_text("[]")
    monkeypatch.setattr("toolkit.pipeline.run_recipe", fail)
    assert call(["run", write_recipe(tmp_path, "[grpo]\n")]) == 1
    error = capsys.readouterr().err
    assert error.endswith("[run.permission_denied]\n")
    assert "toolkit: runs/one/run.json: must be a path that you may read and write" in error


def test_any_other_error_of_the_machine_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    (tmp_path / "train.json").write_text("[]")
    monkeypatch.setattr("toolkit.pipeline.run_recipe", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        call(["run", write_recipe(tmp_path, "[grpo]\n")])


@pytest.mark.parametrize(
    "command",
    [
        ["run", "RECIPE"],
        ["evaluate", "RUN"],
        ["export", "RUN"],
        ["predict", "RUN", "--question", "Which?", "--image", "IMAGE", "--option", "A. a", "--option", "B. b"],
        ["report", "RUN"],
        ["imagegen", "generate", "RUN", "--out", "OUT"],
        ["imagegen", "sheet", "RUN", "--out", "OUT"],
    ],
)
def test_a_run_of_an_earlier_version_is_rejected_with_the_command_that_reuses_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    recipe_file = write_recipe(tmp_path, "[sft]\n")
    (tmp_path / "train.json").write_text("{}")
    Image.new("L", (32, 32)).save(tmp_path / "image.png")
    recipe = load_recipe(recipe_file)
    with start_run(recipe) as run:
        run.mark_done("sft", sft_result())
    weights = run.weights_folder("sft")
    weights.mkdir()
    (weights / "adapter_config.json").write_text("{}")
    state = read_json(run.run_file)
    del state["schema_version"]
    write_json(run.run_file, state)
    words = {
        "RECIPE": recipe_file,
        "RUN": str(run.path),
        "IMAGE": str(tmp_path / "image.png"),
        "OUT": str(tmp_path / "out"),
    }
    assert call([words.get(word, word) for word in command]) == 1
    text = capsys.readouterr().err
    assert text.strip().endswith("[run.schema_version]")
    assert f"{run.path}: " in text
    assert "missing" in text
    assert f"toolkit run RECIPE --set run.name=NEW --set model.adapter={weights}" in text


@pytest.mark.parametrize(
    "arguments",
    [["plan"], ["plan", "a.toml", "--none"], ["doctor", "a", "b"]],
)
def test_an_invalid_command_line_with_json_is_printed_as_json(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call([*arguments, "--json"]) == 2
    printed = capsys.readouterr()
    (problem,) = json.loads(printed.out)["problems"]
    assert problem["code"] == "cli.arguments_invalid"
    assert problem["rule"].startswith(("Missing argument", "No such option", "Got unexpected", "Invalid value"))
    assert printed.err.endswith("[cli.arguments_invalid]\n")


@pytest.mark.parametrize(("gpu", "code"), [("T5", "plan.gpu_unknown"), ("nan", "plan.gpu_memory_out_of_range")])
def test_an_unknown_gpu_has_its_own_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gpu: str, code: str
) -> None:
    (tmp_path / "train.json").write_text("[]")
    assert call(["plan", write_recipe(tmp_path, "[grpo]\n"), "--gpu", gpu, "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["code"], problem["place"], problem["value"]) == (code, "--gpu", repr(gpu))


SWALLOWED = """
import ctypes, sys
from toolkit import cli

def interrupt():
    raise KeyboardInterrupt

def work(**_):  # compiled code cannot pass the exception on
    ctypes.CFUNCTYPE(None)(interrupt)()
    print("went on")

cli.app = work
cli.main([])
"""


def test_ctrl_c_inside_compiled_code_of_a_library_ends_the_command() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == ["toolkit: stopped by Ctrl-C before any work began [run.interrupted]"]
