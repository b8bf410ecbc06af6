"""The run folder: atomic files, locks, unchanged recipes and stop signals."""

import fcntl
import logging
import os
import pty
import signal
import subprocess
import sys
import termios
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.damage import write_weights
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_recipe
from toolkit.errors import Interrupted, RunError
from toolkit.recipe import Recipe
from toolkit.reporting.gpu_peaks import gpu_peaks
from toolkit.runfolder import (
    SCHEMA_VERSION,
    RunFolder,
    StopRequest,
    check_fingerprints,
    find_run,
    find_weights,
    hide_secrets,
    installed_versions,
    read_json,
    read_lines,
    reopen_run,
    start_run,
    write_json,
)
from toolkit.tasks import TASKS


@dataclass(frozen=True)
class Trained:
    """A result of a stage."""

    steps: int
    loss: float | None
    weights: str


NOTHING = Trained(0, None, "")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return make_recipe(tmp_path)


def make_recipe(folder: Path, *settings: str) -> Recipe:
    file = folder / "recipe.toml"
    file.write_text(f'[run]\nname = "one"\nfolder = "{folder}/runs"\n[data]\ntask = "mcq"\ntrain = "a"\n[sft]\n')
    return load_recipe(file, settings)


def in_another_process(code: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_new_run_has_the_resolved_recipe_seed_versions_and_a_log(recipe: Recipe) -> None:
    with start_run(recipe) as run:
        logging.getLogger("toolkit.somewhere").debug("a detail")
    assert run.path == recipe.run_folder
    assert run.recipe(TASKS) == recipe
    state = read_json(run.run_file)
    assert state["seed"] == 3407
    assert [session["versions"] for session in state["sessions"]] == [installed_versions()]
    assert {"python", "platform", "torch", "transformers", "numpy"} <= set(installed_versions())
    assert "a detail" in run.log_file.read_text()


def test_a_finished_stage_stays_finished_and_its_result_is_kept(recipe: Recipe) -> None:
    with start_run(recipe) as run:
        assert not run.is_done("sft")
        with raises(RunError, "run.stage_not_finished") as caught:
            run.result("sft", Trained)
        assert (caught.problem.place, caught.problem.value) == (str(run.path), "sft")
        run.mark_done("sft", Trained(3, float("nan"), "stages/sft/weights"))
        run.mark_done("evaluate-sft", NOTHING)
    with start_run(recipe) as run:
        assert run.is_done("sft")
        # JSON has no NaN, so the loss is null.
        assert run.result("sft", Trained) == Trained(3, None, "stages/sft/weights")
        assert run.finished_stages() == ["sft", "evaluate-sft"]


def test_a_changed_recipe_is_rejected_with_each_key_and_a_remedy(recipe: Recipe, tmp_path: Path) -> None:
    with start_run(recipe) as run:
        pass
    changed = make_recipe(tmp_path, "sft.epochs=2", "grpo={}", "run.log_steps=5")
    with raises(RunError, "run.recipe_changed") as caught, start_run(changed):
        pass
    message = str(caught.error)
    assert caught.problem.place == str(run.path)
    assert ":\n  grpo: off -> on\n  sft.epochs: 1.0 -> 2.0\nRun" in message
    assert "log_steps" not in message
    assert "--fresh" in message
    assert "run.name" in message
    assert run.recipe(TASKS) == recipe


@pytest.mark.parametrize(("more", "named"), [("sft.epochs=2", True), ("sft.epochs=0.5", False)])
def test_more_steps_of_a_finished_stage_name_its_weights(
    recipe: Recipe, tmp_path: Path, more: str, named: bool
) -> None:
    with start_run(recipe) as run:
        pass
    changed = make_recipe(tmp_path, more)
    with raises(RunError, "run.recipe_changed") as caught, start_run(changed):
        pass
    assert "model.adapter" not in caught.problem.remedy  # the stage can still be trained with the old recipe
    with start_run(recipe):
        run.mark_done("sft", NOTHING)
    with raises(RunError, "run.recipe_changed") as caught, start_run(changed):
        pass
    assert (f"--set model.adapter={run.weights_folder('sft')}" in caught.problem.remedy) == named
    assert ("--set run.name=NEW" in caught.problem.remedy) == named


def test_an_imagegen_recipe_may_change_until_its_first_stage_has_finished(tmp_path: Path) -> None:
    def load(size: int) -> Recipe:
        tiny = Path(__file__).resolve().parent.parent / "recipes" / "imagegen_tiny.toml"
        return load_recipe(tiny, [f"imagegen.size={size}", f"run.seed={size}", f"run.folder={tmp_path / 'runs'}"])

    with start_run(load(32)) as run:
        check_fingerprints(run, {"ratings": "abc"})
    with start_run(load(64)) as run:
        assert run.recipe(TASKS) == load(64)
        assert read_json(run.run_file)["seed"] == 64
        check_fingerprints(run, {"ratings": "corrected"})
        run.mark_done("ratings", NOTHING)
    with raises(RunError, "run.recipe_changed"), start_run(load(32)):
        pass
    with start_run(load(64)) as run, raises(RunError, "run.inputs_changed"):
        check_fingerprints(run, {"ratings": "abc"})


def test_temporary_files_of_a_killed_run_are_removed(recipe: Recipe) -> None:
    with start_run(recipe) as run:
        kept = run.stage_folder("sft") / "predictions.partial.jsonl"
        for file in (
            run.path / ".results.json.1234.partial",
            run.stage_folder("sft") / ".done.json.1234.partial",
            kept,
        ):
            file.write_text("{")
    with start_run(recipe):
        assert [path.name for path in run.path.rglob("*partial*")] == [kept.name]
    (run.path / ".results.json.1234.partial").write_text("{")
    with reopen_run(run.path):
        assert [path.name for path in run.path.rglob("*partial*")] == [kept.name]


def test_a_run_that_was_killed_in_its_first_write_starts_again(recipe: Recipe) -> None:
    recipe.run_folder.mkdir(parents=True)
    (recipe.run_folder / "log.txt").write_text("")
    (recipe.run_folder / ".run.json.1234.partial").write_text("{")
    with start_run(recipe) as run:
        assert sorted(file.name for file in run.path.iterdir()) == ["log.txt", "recipe.toml", "run.json"]


def test_harmless_keys_may_change_and_the_resolved_copy_follows(recipe: Recipe, tmp_path: Path) -> None:
    with start_run(recipe):
        pass
    changed = make_recipe(tmp_path, "run.log_steps=5", "data.train=/moved/a")
    with start_run(changed) as run:
        assert run.recipe(TASKS) == changed
    assert "run.log_steps: 1 -> 5" in run.log_file.read_text()


def test_fresh_renames_the_old_run_and_replaces_no_other(recipe: Recipe, tmp_path: Path) -> None:
    for number in range(3):
        with start_run(recipe, fresh=True) as run:
            assert not run.is_done("sft")
            run.mark_done("sft", Trained(number, None, ""))
    runs = tmp_path / "runs"
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == ["one", "one.old-1", "one.old-2"]
    assert RunFolder(runs / "one.old-1").result("sft", Trained).steps == 0
    assert RunFolder(runs / "one.old-2").result("sft", Trained).steps == 1


def test_a_folder_with_other_files_is_not_a_run(recipe: Recipe) -> None:
    recipe.run_folder.mkdir(parents=True)
    (recipe.run_folder / "thesis.tex").write_text("x")
    with raises(RunError, "run.folder_of_other_files") as caught, start_run(recipe):
        pass
    assert caught.problem.place == str(recipe.run_folder)
    with raises(RunError, "run.not_a_run_folder") as caught:
        find_run(recipe.run_folder)
    assert caught.problem.place == str(recipe.run_folder)


def test_changed_data_is_rejected_on_resume(recipe: Recipe) -> None:
    with start_run(recipe) as run:
        check_fingerprints(run, {"data": "abc"})
    with start_run(recipe) as run:
        check_fingerprints(run, {"data": "abc", "rewards": "1"})
        with raises(RunError, "run.inputs_changed") as caught:
            check_fingerprints(run, {"data": "abd", "rewards": "1"})
        assert caught.problem.value == "changed: data"
    assert read_json(run.run_file)["fingerprints"] == {"data": "abc", "rewards": "1"}


def test_two_processes_cannot_work_in_one_folder_and_a_killed_one_leaves_no_lock(
    recipe: Recipe, tmp_path: Path
) -> None:
    holder = in_another_process(f"""
        import time
        from toolkit.recipe import load_recipe
        from toolkit.tasks import TASKS
        from toolkit.runfolder import start_run
        with start_run(load_recipe({str(tmp_path / "recipe.toml")!r}, tasks=TASKS)):
            print("held", flush=True)
            time.sleep(60)
    """)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with raises(RunError, "run.folder_in_use"), start_run(recipe):
        pass
    with raises(RunError, "run.folder_in_use"), start_run(recipe, fresh=True):
        pass
    holder.kill()
    holder.communicate()
    with start_run(recipe), raises(RunError, "run.folder_in_use"), reopen_run(recipe.run_folder):
        pass


@pytest.mark.parametrize("text", [None, "", "[]", "null", '{"memory": {', b"\xff\xfe"])
def test_a_run_with_a_missing_or_corrupt_plan_has_no_plan(
    recipe: Recipe, text: str | bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    with start_run(recipe) as run:
        if text is not None:
            run.plan_file.write_bytes(text.encode() if isinstance(text, str) else text)
        assert run.plan() == {}
        assert [problem.code for problem in warnings_in(caplog)] == ["run.plan_damaged"] * (text is not None)
        assert gpu_peaks(run) == {}
        write_json(run.plan_file, {"gpu": None})
        assert run.plan() == {"gpu": None}


@pytest.mark.parametrize("line", ["{", "[]", "null", '{"step": 1}', "\x00"])
def test_a_corrupt_line_of_the_metrics_is_an_error_with_its_number(recipe: Recipe, line: str) -> None:
    with start_run(recipe) as run:
        run.log_metrics("sft", 1, {"loss": 1})
        with run.metrics_file.open("a") as handle:
            handle.write(f"{line}\n")
        for read in (run.metrics, lambda: run.remove_metrics("sft", 0)):
            with raises(RunError, "run.line_damaged") as caught:
                read()
            assert caught.problem.place == f"{run.metrics_file}, line 2"


def test_metrics_survive_an_unfinished_line_and_repeated_steps(recipe: Recipe) -> None:
    with start_run(recipe) as run:
        for step in (1, 2, 3):
            run.log_metrics("sft", step, {"loss": 10 - step})
        with run.metrics_file.open("a") as handle:
            handle.write('{"stage": "sft", "step": 4, "lo')
        assert [line["step"] for line in read_lines(run.metrics_file)] == [1, 2, 3]
    with start_run(recipe) as run:
        # After resuming from the checkpoint of step 2, step 3 is repeated, and one of its figures is logged separately.
        run.log_metrics("sft", 3, {"loss": 5, "best": float("inf")})
        run.log_metrics("sft", 3, {"seconds": 2})
        run.log_metrics("grpo", 1, {"reward": 0.5})
        metrics = [{key: value for key, value in line.items() if key != "time"} for line in run.metrics()]
    assert metrics == [
        {"stage": "sft", "step": 1, "loss": 9},
        {"stage": "sft", "step": 2, "loss": 8},
        {"stage": "sft", "step": 3, "loss": 5, "best": None, "seconds": 2},
        {"stage": "grpo", "step": 1, "reward": 0.5},
    ]
    assert "unfinished line of 31 bytes" in run.log_file.read_text()


def test_a_json_file_is_replaced_atomically(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"x": [np.int64(1), np.float32(0.5), float("-inf"), True]})
    with pytest.raises(TypeError):
        write_json(file, {"x": object()})
    assert file.read_text() == '{\n  "x": [\n    1,\n    0.5,\n    null,\n    true\n  ]\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_weights_are_found_in_a_run_and_in_a_folder_of_their_own(recipe: Recipe, tmp_path: Path) -> None:
    with start_run(recipe) as run:
        assert run.trained_weights() is None
        with raises(RunError, "run.no_stage_finished"):
            find_weights(run.path)
        for stage in ("sft", "grpo"):
            write_weights(run.weights_folder(stage))
        run.mark_done("sft", NOTHING)
        assert find_weights(run.path) == run.weights_folder("sft")
        run.mark_done("grpo", NOTHING)
        assert find_weights(run.path) == run.weights_folder("grpo")
    with raises(RunError, "run.folder_without_weights") as caught:
        find_weights(tmp_path)
    assert caught.problem.place == str(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert find_weights(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("using hf_abcdefGHIJKLmnopQRST now", "hf_abcdefGHIJKLmnopQRST"),
        ("Authorization: Bearer abc.def-123456", "abc.def-123456"),
        ("https://someone:secretpw@host/x", "secretpw"),
        ("WANDB_API_KEY=0123456789abcdef", "0123456789abcdef"),
        ('{"api_key": "q1w2e3r4"}', "q1w2e3r4"),
        ("sk-proj-abcdefghijklmnop1234", "abcdefghijklmnop1234"),
    ],
)
def test_tokens_and_keys_are_hidden(text: str, secret: str) -> None:
    assert secret not in hide_secrets(text)


def test_hiding_secrets_leaves_ordinary_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "grpo step 3: max_completion_tokens=128, token_f1: 0.5, hf backend, sk-learn, runs/hf_run"
    assert hide_secrets(line) == line
    monkeypatch.setenv("WANDB_API_KEY", "plainlookingvalue")
    assert hide_secrets("it is plainlookingvalue.") == "it is [hidden]."


def test_a_failure_is_written_into_the_log_with_its_traceback_and_without_tokens(recipe: Recipe) -> None:
    def fail() -> None:
        with start_run(recipe):
            logging.getLogger("toolkit").info("token hf_abcdefGHIJKLmnopQRST")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    text = RunFolder(recipe.run_folder).log_file.read_text()
    assert "Traceback" in text
    assert "ZeroDivisionError" in text
    assert "hf_abc" not in text


def test_a_log_on_a_full_disk_is_one_warning_and_no_traceback(
    recipe: Recipe, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe.run_folder.mkdir(parents=True)
    (recipe.run_folder / "log.txt").symlink_to("/dev/full")
    with start_run(recipe):
        logging.getLogger("toolkit").info("a line")
    assert [problem.code for problem in warnings_in(caplog)] == ["run.log_not_written"]
    assert capfd.readouterr().err == ""


def test_the_first_signal_is_recorded_and_the_old_handler_is_restored() -> None:
    noted: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(noted.append) as stop:
        stop.check("nothing happened")
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.requested, noted) == (True, [signal.SIGTERM])
        with raises(Interrupted, "run.interrupted") as caught:
            stop.check("step 3 is saved")
    assert "step 3 is saved" in caught.problem.rule
    assert caught.error.exit_code == 143  # 128 + 15, the convention of shells
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_the_process_at_once() -> None:
    process = in_another_process("""
        import time
        from toolkit.runfolder import StopRequest
        with StopRequest(lambda number: print("noted", number, flush=True)):
            print("ready", flush=True)
            for _ in range(600):
                time.sleep(0.1)
    """)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "noted 2\n"
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    process.communicate()


HANGUP = """
    import sys, time
    from toolkit.cli.progress import show_progress
    from toolkit.runfolder import StopRequest
    with show_progress() as (progress, notify), StopRequest(notify) as stop:
        print("ready", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        time.sleep(0.2)  # the second signal comes
        progress("sft", 1, 2)
        print("a line", flush=True)
        open(sys.argv[1], "w").write(str(stop.number))
"""


def test_a_closed_terminal_lets_the_run_save_although_it_sends_sighup_twice(tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    program = [sys.executable, "-c", textwrap.dedent(HANGUP), str(tmp_path / "saved")]
    # As the leader of a session with this terminal, the process gets SIGHUP from the kernel when it closes.
    process = subprocess.Popen(
        program,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    while b"ready" not in os.read(master, 1000):
        pass
    os.close(master)
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGHUP))


def test_sighup_is_saved_as_sigterm_is_and_stays_ignored_under_nohup() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        with raises(Interrupted, "run.interrupted") as caught:
            stop.check("step 3 is saved")
    assert caught.error.exit_code == 129
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_run_folder_imports_no_large_library() -> None:
    code = (
        "import sys, toolkit.runfolder; print(sorted({'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"schema_version": 2}',
        '{"schema_version": 2, "seed": 1, "fingerprints": {}, "sessions": []}',
        '{"schema_version": 2, "seed": 1, "fingerprints": {}, "sessions": [{"started": "now"}]}',
    ],
)
def test_a_corrupt_run_json_is_an_error(tmp_path: Path, text: str) -> None:
    recipe = make_recipe(tmp_path)
    with start_run(recipe) as run:
        pass
    run.run_file.write_text(text)
    with raises(RunError, "run.state_damaged") as caught, start_run(recipe):
        pass
    assert caught.problem.place == str(run.run_file)
    assert "--fresh" in caught.problem.remedy


DAMAGED = {
    "": "Expecting value",
    "{": "Expecting property name",
    "[]": "Input should be",
    '{"stage": "sft", "finished": "now"}': "result",
    '{"stage": "sft", "finished": "now", "result": {"steps": 1, "loss": 0.5}}': "weights",
    '{"stage": "sft", "finished": "now", "result": {"steps": 1, "loss": 0.5, "weights": "w", "rows": 2}}': "rows",
    '{"stage": "sft", "finished": "now", "result": {"steps": "one", "loss": 0.5, "weights": "w"}}': "steps",
}
"""Content of a damaged done.json -> how the value of its error begins: the path of the field, or the JSON error."""


@pytest.mark.parametrize(("text", "begins"), DAMAGED.items())
def test_a_damaged_result_of_a_stage_is_an_error(tmp_path: Path, text: str, begins: str) -> None:
    with start_run(make_recipe(tmp_path)) as run:
        file = run.stage_folder("sft") / "done.json"
        file.write_text(text)
        with raises(RunError, "run.stage_damaged") as caught:
            run.result("sft", Trained)
    assert caught.problem.place == str(file)
    assert str(caught.problem.value).startswith(begins)
    assert "--fresh" in caught.problem.remedy


@pytest.mark.parametrize("found", ["missing", 0, 1, 3, "2", True, 2.0, None])
def test_a_run_of_another_schema_version_is_rejected_with_the_command_that_reuses_its_weights(
    tmp_path: Path, found: object
) -> None:
    recipe = make_recipe(tmp_path)
    with start_run(recipe) as run:
        run.mark_done("sft", NOTHING)
    state = read_json(run.run_file)
    assert state.pop("schema_version") == SCHEMA_VERSION
    write_json(run.run_file, state if found == "missing" else {**state, "schema_version": found})
    with raises(RunError, "run.schema_version") as caught, start_run(recipe):
        pass
    assert (caught.problem.place, caught.problem.value) == (str(run.path), found)
    assert "`toolkit run RECIPE --fresh`" in caught.problem.remedy  # the stage left no weights
    weights = run.weights_folder("sft")
    weights.mkdir()
    (weights / "adapter_config.json").write_text("{}")
    with raises(RunError, "run.schema_version") as caught:
        find_run(run.path)
    assert f"`toolkit run RECIPE --set run.name=NEW --set model.adapter={weights}`" in caught.problem.remedy
    assert find_weights(weights) == weights
    with start_run(recipe, fresh=True) as run:
        assert not run.is_done("sft")


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    with start_run(make_recipe(tmp_path)) as run:
        run.mark_done("sft", NOTHING)
        with raises(RunError, "run.weights_missing") as caught:
            run.trained_weights()
        assert caught.problem.place == str(run.weights_folder("sft"))


def test_a_run_folder_below_a_file_is_an_error(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    recipe.run_folder.parent.write_text("a file")
    with raises(RunError, "run.folder_not_made") as caught, start_run(recipe):
        pass
    assert caught.problem.place == str(recipe.run_folder)


def test_a_library_of_another_version_is_reported_on_resume(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    with start_run(recipe) as run:
        pass
    state = read_json(run.run_file)
    state["sessions"][-1]["versions"]["numpy"] = "1.0"
    write_json(run.run_file, state)
    with start_run(recipe):
        pass
    (found,) = warnings_in(caplog)
    assert (found.code, found.place, found.value) == ("run.version_changed", "numpy", installed_versions()["numpy"])
    assert "1.0" in found.rule
