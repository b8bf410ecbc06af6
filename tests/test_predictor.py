"""Prediction step after step: files of tasks, from Python, and one screenshot after another on the command line."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.cli import call
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import make_recipe
from tests.helpers.rolling import Scripted, right, rolling_recipe
from tests.helpers.stepping import task_rows, write_csv
from tests.helpers.training import context_of, small_recipe
from toolkit import tiny
from toolkit.errors import DataError, ImageError, Interrupted, RecipeError, RunError
from toolkit.evaluation.predict_episodes import EpisodesRequest, predict_episodes
from toolkit.evaluation.predictor import load_predictor
from toolkit.models.backend import Completion, Policy, Row, Sampling
from toolkit.models.hf import HfBackend
from toolkit.models.lengths import PROMPT_TOO_LONG
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, StopRequest, find_run, read_lines

STEP = {
    "Short Term": {"last_action": "CLICK"},
    "Long Term": {"completed_subtasks": ["load"]},
    "Reason": "the scan is to be loaded",
    "Predicted": {"predicted_action": {"action": "click", "target": "Load volume", "coords": [50, 10]}},
}


class Saying(HfBackend):
    """Answers with these texts, one after the other; keeps the questions and what it loaded."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.questions: list[str] = []
        self.loaded: list[tuple[str, Path | None]] = []

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        self.loaded.append((recipe.model.name, weights))
        return self.load_without_model(recipe)

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        self.questions += [str(row.messages[0]["content"][-1]["text"]) for row in rows]
        return [[Completion(self.texts.pop(0), 1, truncated=False)] for _ in rows]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that has trained nothing."""
    recipe = rolling_recipe(tmp_path)
    with context_of(recipe):
        pass
    return find_run(recipe.run_folder)


def open_csv(folder: Path, tasks: Sequence[str] = ("21", "22"), **more: Any) -> Path:
    """Rows with no reference at all."""
    rows = [one for task in tasks for one in task_rows(task)]
    write_csv(folder, rows, "scratch.csv")
    rows_without = [{key: one[key] for key in ("Task_id", "Image_id", "Instruction")} | more for one in rows]
    return write_csv_without_output(folder, rows_without)


def write_csv_without_output(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file = folder / "open.csv"
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    file.write_text("\n".join(lines) + "\n")
    return file


def predicted(run: RunFolder, file: Path, out: Path, backend: HfBackend) -> list[dict[str, Any]]:
    with StopRequest() as stop:
        return predict_episodes(run, EpisodesRequest(file, out, file.parent / "images"), stop, backend=backend)


def test_every_step_of_a_file_is_predicted_with_the_models_own_agent_memory(run: RunFolder, tmp_path: Path) -> None:
    backend = Scripted(right)
    lines = predicted(run, open_csv(tmp_path), tmp_path / "out.jsonl", backend)
    assert [(line["Task_id"], line["step"]) for line in lines] == [(t, n) for t in ("21", "22") for n in (1, 2, 3, 4)]
    assert [line["action"] for line in lines[:4]] == ["CLICK", "SCROLL", "TEXT", "COMPLETE"]
    # Rounds over the tasks; every step sees what the answers before it left.
    assert [batch for batch in backend.batches if batch[0][1] == 2] == [[("21", 2), ("22", 2)]]
    assert backend.memories["21", 3] == [lines[1]["agent_memory_after"]["long_term"]]
    assert lines[0]["agent_memory"] == {"short_term": {}, "long_term": {}, "failures": 0, "cut": 0}
    assert read_lines(tmp_path / "out.jsonl") == lines


def test_an_interrupted_prediction_resumes_and_writes_the_same_file(run: RunFolder, tmp_path: Path) -> None:
    file = open_csv(tmp_path)
    predicted(run, file, tmp_path / "whole.jsonl", Scripted(right))
    with pytest.raises(KeyboardInterrupt):
        predicted(run, file, tmp_path / "out.jsonl", Scripted(right, fail_after=2))
    assert len(read_lines(tmp_path / "out.jsonl")) == 4
    files = EpisodesRequest(file, tmp_path / "out.jsonl", tmp_path / "images")
    with StopRequest() as stop:
        stop.join(15)
        with pytest.raises(Interrupted, match="holds 6 of 8"):
            predict_episodes(run, files, stop, backend=Scripted(right))
    again = Scripted(right)
    predicted(run, file, tmp_path / "out.jsonl", again)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    nothing = Scripted(right, fail_after=0)
    assert len(predicted(run, file, tmp_path / "out.jsonl", nothing)) == 8


def test_a_file_with_other_predictions_is_not_written_into(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    predicted(run, open_csv(tmp_path), out, Scripted(right))
    with raises(DataError, "predict.out_of_another_run"):
        predicted(run, open_csv(tmp_path, ("21",)), out, Scripted(right))
    out.write_text("a text\n")
    with raises(DataError, "predict.out_of_another_run"):
        predicted(run, open_csv(tmp_path), out, Scripted(right))
    assert out.read_text() == "a text\n"


@pytest.mark.parametrize("text", ["a text", "a text\nwithout an end", '{"id": 1, "mine": true}', "[1]\n", '{"mine'])
def test_a_file_of_another_kind_keeps_every_byte(text: str, run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(text)
    with raises(DataError, "predict.out_of_another_run"):
        predicted(run, open_csv(tmp_path), out, Scripted(right))
    assert out.read_text() == text


@pytest.mark.parametrize("whole_lines", [0, 2])
def test_predictions_with_an_incomplete_last_line_resume(whole_lines: int, run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    predicted(run, open_csv(tmp_path), out, Scripted(right))
    complete = out.read_bytes()
    lines = complete.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:whole_lines]) + lines[whole_lines][:40])
    predicted(run, open_csv(tmp_path), out, Scripted(right))
    assert out.read_bytes() == complete


def test_predicted_steps_are_json_lines(run: RunFolder, tmp_path: Path) -> None:
    files = EpisodesRequest(open_csv(tmp_path, ("41",)), tmp_path / "out.csv", tmp_path / "images")
    with StopRequest() as stop, raises(DataError, "predict.out_suffix_unknown"):
        predict_episodes(run, files, stop)


def test_an_unwritable_output_is_an_error_before_the_model_is_loaded(run: RunFolder, tmp_path: Path) -> None:
    backend = Scripted(right)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "folder.jsonl", tmp_path / "file" / "out.jsonl"):
        with raises(DataError, "predict.out_not_writable") as caught:
            predicted(run, open_csv(tmp_path), out, backend)
        assert caught.problem.place == str(out)
    assert backend.batches == []
    assert len(predicted(run, open_csv(tmp_path), tmp_path / "new" / "out.jsonl", backend)) == 8


def test_what_a_file_holds_of_the_answers_is_not_looked_at(run: RunFolder, tmp_path: Path) -> None:
    rows = [{**one, "Output": "SENTINEL", "Grounding": one["Grounding"]} for one in reversed(task_rows("21"))]
    file = write_csv(tmp_path, rows, "with_output.csv")
    backend = Saying(*["no idea"] * 4)
    lines = predicted(run, file, tmp_path / "out.jsonl", backend)
    assert not any("SENTINEL" in question for question in backend.questions)
    assert all("SENTINEL" not in json.dumps(line) for line in lines)
    # The step of Grounding orders the rows: those of the file were turned round.
    assert [line["step"] for line in lines] == [4, 3, 2, 1]
    assert [line["problem"] is not None for line in lines] == [True] * 4


def test_unusable_rows_and_rows_after_them_are_skipped_with_a_warning(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = open_csv(tmp_path, ("31", "32"))
    (tmp_path / "images" / "31_2.png").unlink()
    lines = predicted(run, file, tmp_path / "out.jsonl", Scripted(right))
    assert [(line["Task_id"], line["step"]) for line in lines] == [("31", 1), *(("32", n) for n in (1, 2, 3, 4))]
    warned = [(problem.code, problem.place, problem.value) for problem in warnings_in(caplog)]
    assert ("predict.rows_left_out", str(file), 1) in warned
    assert ("predict.rows_after_missing_step", str(file), 2) in warned


def test_columns_that_lack_are_named(run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "open.csv"
    file.write_text("Task_id,Image_id\n1,1_1\n")
    with raises(DataError, "predict.columns_invalid") as caught:
        predicted(run, file, tmp_path / "out.jsonl", Saying())
    assert caught.problem.place == str(file)
    assert "field question" in caught.problem.rule


def screen(folder: Path, name: str = "screen.png", size: tuple[int, int] = (400, 300)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (30, 60, 90)).save(folder / name)
    return folder / name


def test_a_step_is_predicted_as_the_description_shows(run: RunFolder, tmp_path: Path) -> None:
    backend = Saying(json.dumps(STEP), "I am not sure.")
    predictor = load_predictor(model_path=run.path, base_model_name="tiny", backend=backend)
    first = predictor.predict_step(
        image_path=screen(tmp_path), user_goal="Load the MRI scan", short_term_memory={}, long_term_memory={}
    )
    # The tiny model writes 0 to 100 over each side: half of 400 pixels, a tenth of 300.
    assert (first.action, first.target, first.coords) == ("CLICK", "Load volume", (200.0, 30.0))
    assert (first.reason, first.problem, first.truncated) == ("the scan is to be loaded", None, False)
    assert first.short_term_memory == {"last_action": "CLICK"}
    known = {"known_pitfalls": ["a slow disk"], **first.long_term_memory}
    second = predictor.predict_step(str(screen(tmp_path)), "Load the MRI scan", first.short_term_memory, known)
    assert "Goal: Load the MRI scan" in backend.questions[1]
    assert '"known_pitfalls":["a slow disk"],"completed_subtasks":["load"]' in backend.questions[1]
    assert (second.action, second.coords, second.completion) == (None, None, "I am not sure.")
    assert second.problem is not None
    assert (second.short_term_memory, second.long_term_memory) == (first.short_term_memory, known)
    assert backend.loaded == [("tiny", None)]


def test_a_screenshot_that_is_written_over_is_looked_at_anew(run: RunFolder, tmp_path: Path) -> None:
    predictor = load_predictor(run.path, backend=Saying(*[json.dumps(STEP)] * 2))
    assert predictor.predict_step(screen(tmp_path), "Load").coords == (200.0, 30.0)
    assert predictor.predict_step(screen(tmp_path, size=(200, 600)), "Load").coords == (100.0, 60.0)


def test_an_invalid_prompt_is_an_error_with_its_reason(run: RunFolder, tmp_path: Path) -> None:
    predictor = load_predictor(run.path, backend=Saying())
    with pytest.raises(ImageError, match="image_path"):
        predictor.predict_step(tmp_path / "nowhere.png", "Load")
    with raises(DataError, "predict.question_invalid") as caught:
        predictor.predict_step(screen(tmp_path), " ")
    assert caught.problem.place == "user_goal"
    with raises(DataError, "predict.memory_not_json") as caught:
        predictor.predict_step(screen(tmp_path), "Load", {"seen": {1, 2}})
    assert (caught.problem.place, caught.problem.value) == ("short_term_memory", {"seen": {1, 2}})
    with raises(DataError, "predict.context_unknown") as caught:
        predictor.predict_step(screen(tmp_path), "Load", context={"Indication": "Cough."})
    assert caught.problem.value == ["Indication"]
    swollen = predictor.predict_step(screen(tmp_path), "Load", long_term_memory={"diary": ["a word " * 250] * 50})
    assert swollen.problem == PROMPT_TOO_LONG


def test_only_steps_have_a_next_step(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    with context_of(recipe):
        pass
    predictor = load_predictor(recipe.run_folder, backend=Saying())
    with raises(DataError, "predict.task_without_memory") as caught:
        predictor.predict_step(screen(tmp_path), "Load")
    assert caught.problem.value == "mcq"
    with raises(RunError, "run.folder_without_weights"):
        load_predictor(tmp_path, backend=Saying())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two steps of SFT and an export of merged weights, evaluated with the model's own agent memory on one task."""
    folder = tmp_path_factory.mktemp("steps")
    recipe = rolling_recipe(folder, {"max_completion_tokens": 12, "max_tasks": 1, "before": False})
    sections = {
        "sft": {"max_steps": 2, "batch_size": 2, "accumulation": 1, "gradient_checkpointing": False},
        "export": {"to": ("merged",), "verify": 1},
    }
    recipe = make_recipe({**recipe.model_dump(), **sections})
    run_recipe(recipe, STAGES)
    return recipe


@pytest.mark.slow
def test_a_trained_run_is_rolled_out_and_its_weights_are_found_in_each_form(
    trained: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = find_run(trained.run_folder)
    assert len(read_lines(run.path / "stages/evaluate-sft/predictions.own.jsonl")) == 4
    shot = screen(tmp_path)
    whole = load_predictor(run.path).predict_step(shot, "Load scan 1")
    assert whole.completion
    adapter = run.path / "stages/sft/weights"
    assert load_predictor(adapter).predict_step(shot, "Load scan 1") == whole
    assert load_predictor(run.path / "stages/export/merged").predict_step(shot, "Load scan 1")
    shutil.copytree(adapter, tmp_path / "adapter")
    caplog.clear()
    copied = load_predictor(tmp_path / "adapter", recipe=trained.run_folder / "recipe.toml")
    assert copied.predict_step(shot, "Load scan 1") == whole
    assert "predict.recipe_missing" not in [problem.code for problem in warnings_in(caplog)]


def test_weights_outside_a_run_use_their_base_and_the_defaults_with_a_warning(
    trained: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = find_run(trained.run_folder)
    shutil.copytree(run.path / "stages/sft/weights", tmp_path / "adapter")
    backend = Saying()
    load_predictor(tmp_path / "adapter", backend=backend)
    assert "predict.recipe_missing" in [problem.code for problem in warnings_in(caplog)]
    settings = tmp_path / "adapter/adapter_config.json"
    assert json.loads(settings.read_text())["base_model_name_or_path"] == str(tiny.FOLDER)
    merged = tmp_path / "merged"
    shutil.copytree(run.path / "stages/export/merged", merged)
    with raises(RecipeError, "recipe.coordinates_unknown"):
        load_predictor(merged, backend=backend)  # the name of a folder does not identify a model family
    load_predictor(merged, "tiny", backend=backend)
    assert backend.loaded == [("tiny", tmp_path / "adapter"), (str(merged), None)]


def test_steps_of_a_file_are_predicted_on_the_command_line(
    trained: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = open_csv(tmp_path, ("41",))
    monkeypatch.chdir(tmp_path)
    arguments = ["predict", str(trained.run_folder.absolute()), "--steps", str(file), "--image-root", "images"]
    assert call(arguments) == 0
    out = capsys.readouterr().out
    assert "4 GUI steps, " in out
    assert "open.predictions.jsonl" in out
    assert len(read_lines(tmp_path / "open.predictions.jsonl")) == 4
    assert call([*arguments, "--out", str(tmp_path / "other.jsonl")]) == 0
    assert (tmp_path / "other.jsonl").read_bytes() == (tmp_path / "open.predictions.jsonl").read_bytes()


def test_interactive_prediction_reads_screenshots_until_the_input_ends(
    trained: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Saying(json.dumps(STEP), "Well.", json.dumps(STEP))
    monkeypatch.setattr("toolkit.evaluation.generate.choose_backend", lambda model, weights: backend)
    shots = [str(screen(tmp_path, f"{number}.png")) for number in (1, 2, 3)]
    typed = "\n".join([shots[0], "", "nowhere.png", f"'{shots[1]}'", shots[2], "quit", shots[0]])
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    arguments = ["predict", str(trained.run_folder), "--goal", "Load the MRI scan", "--interactive"]
    assert call(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("CLICK Load volume at 200, 30") == 2
    assert "skipped: " in out
    assert "image_path: the image must exist" in out
    assert "the GUI step could not be parsed" in out
    # The wrong path and the unreadable answer keep the memory of step 1.
    assert all('"completed_subtasks":["load"]' in question for question in backend.questions[1:])
    assert "screenshot of step 4 (or quit): " in out
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert call(arguments) == 0


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ([], "use --question and --image, or --data and --out, or --steps, or --goal and --interactive"),
        (["--question", "What?"], "--question needs --image"),
        (["--goal", "Load"], "--goal and --interactive"),
        (["--interactive"], "--interactive needs --goal"),
        (["--goal", "Load", "--interactive", "--question", "What?"], "--question must not be used with --interactive"),
        (["--steps", "FILE", "--goal", "Load"], "--goal must not be used with --steps"),
        (["--steps", "FILE", "--context", "a=b"], "--context must not be used with --steps"),
        (["--question", "What?", "--image", "FILE", "--out", "x"], "--out must not be used with --question"),
    ],
)
def test_options_of_two_modes_are_rejected(
    tmp_path: Path, options: list[str], rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    given = [str(tmp_path / "file") if option == "FILE" else option for option in options]
    assert call(["predict", str(tmp_path), *given]) == 2
    shown = capsys.readouterr().err
    assert rule in " ".join(shown.replace("│", " ").split())
