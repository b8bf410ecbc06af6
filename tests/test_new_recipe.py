"""`toolkit new`: a recipe for the data of every task, which loads and whose plan has no problem."""

import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.helpers.cli import call
from tests.helpers.recipes import load_recipe
from toolkit.cli.commands import app
from toolkit.pipeline.new_recipe import MODELS, NewData, inspect_source, propose_model
from toolkit.pipeline.plan import parse_gpu
from toolkit.recipe import SyntheticData
from toolkit.tasks import TASKS

ROWS = [
    {"question": f"Is finding {number} present?", "answer": "yes", "image": f"{number}.png", "patient_id": f"p{number}"}
    for number in range(12)
]


def write_rows(folder: Path, rows: list[dict[str, str]], name: str = "rows.json") -> str:
    from PIL import Image

    for row in rows:
        if "image" in row:
            Image.new("L", (40, 40), 90).save(folder / row["image"])
    (folder / name).write_text(json.dumps(rows))
    return str(folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [task.name for task in TASKS.values() if task.synthetic])
def test_the_data_of_every_task_become_a_recipe_whose_plan_has_no_problem(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = TASKS[name]
    assert task.synthetic is not None
    settings = SyntheticData(kind=task.synthetic.kind, train=24, test=12, size=max(64, task.synthetic.min_size))
    files = task.synthetic.write(tmp_path, settings, 1)
    out = tmp_path / "my recipe.toml"
    words = ["--data", str(files["train"]), "--test", str(files["test"]), "--gpu", "none", "--out", str(out), "--yes"]
    words += ["--boxes", "xyxy"]
    code = call(["new", *words, "--json"])
    if code:  # rows that several tasks can read
        (problem,) = json.loads(capsys.readouterr().out)["problems"]
        assert problem["code"] == "new.task_ambiguous"
        assert f"\n  {name}: " in problem["rule"]
        assert call(["new", *words, "--json", "--task", name]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["model"], found["file"]) == (name, "tiny", str(out))
    recipe = load_recipe(out, files=True)
    assert recipe.dataset.task == name
    assert recipe.dataset.train == str(files["train"])
    assert call(["plan", str(out), "--set", "model.max_tokens=4096", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["problems"] == []


def test_a_path_beside_the_recipe_is_relative(tmp_path: Path) -> None:
    source = write_rows(tmp_path, ROWS)
    assert call(["new", "--data", source, "--gpu", "none", "--out", str(tmp_path / "a.toml"), "-y"]) == 0
    text = (tmp_path / "a.toml").read_text()
    assert 'train = "rows.json"' in text
    assert str(tmp_path) not in text


def test_an_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path, ROWS)
    (tmp_path / "a.toml").write_text("mine")
    assert call(["new", "--data", source, "--gpu", "none", "--out", str(tmp_path / "a.toml"), "-y"]) == 2
    assert capsys.readouterr().err.endswith("[new.file_exists]\n")
    assert (tmp_path / "a.toml").read_text() == "mine"


def test_two_columns_for_one_field_stop_and_both_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path, [{**row, "Answer": "no"} for row in ROWS])
    words = ["new", "--data", source, "--gpu", "none", "--out", str(tmp_path / "a.toml"), "-y"]
    assert call(words) == 2
    error = capsys.readouterr().err
    assert error.endswith("[new.column_ambiguous]\n")
    assert "answer: answer or Answer" in error
    assert not (tmp_path / "a.toml").exists()
    assert call([*words, "--column", "answer=Answer"]) == 0
    assert load_recipe(tmp_path / "a.toml").dataset.columns == {"answer": "Answer"}


def test_rows_that_no_task_reads_are_an_error_with_the_missing_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path, [{"a": "1"}, {"a": "2"}])
    assert call(["new", "--data", source, "--gpu", "none", "-y", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert {one["code"] for one in problems} == {"data.field_without_column"}
    assert call(["new", "--data", source, "--task", "vqq", "--gpu", "none", "-y"]) == 2
    assert capsys.readouterr().err.endswith("[new.task_unknown]\n")


def test_prompts_request_what_no_option_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, ROWS)
    # Data, task, GPU, model and file. An empty line accepts the proposal.
    done = CliRunner().invoke(app, ["new"], input="rows.json\n\nnone\n\nmine.toml\n")
    assert done.exit_code == 0, done.output
    recipe = load_recipe("mine.toml")
    assert (recipe.run.name, recipe.dataset.task, recipe.model.name) == ("mine", "vqa", "tiny")


def test_the_end_of_the_input_names_the_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert call(["new", "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["code"] == "new.answer_missing"
    assert problem["place"].startswith("Training rows")


def test_the_proposed_model_fits_the_gpu(tmp_path: Path) -> None:
    data = NewData(write_rows(tmp_path, ROWS))
    (reading,) = inspect_source(data).proposed
    assert reading.columns == {"question": "question", "answer": "answer", "image": "image"}
    assert propose_model(data, reading.task, None) == "tiny"
    large = propose_model(data, reading.task, parse_gpu("24"))
    small = propose_model(data, reading.task, parse_gpu("4"))
    assert large == MODELS[0]
    assert MODELS.index(small) > 0


def test_every_name_of_a_file_or_column_is_written_as_valid_toml(tmp_path: Path) -> None:
    odd = "q\"u'o\\te\x7f\n\u202e"
    rows = [{odd if key == "patient_id" else key: value for key, value in row.items()} for row in ROWS]
    source = write_rows(tmp_path, rows, f"{odd}.json")
    words = ["--data", source, "--group", odd, "--gpu", "none", "--out", str(tmp_path / "a.toml"), "-y"]
    assert call(["new", *words]) == 0
    recipe = load_recipe(tmp_path / "a.toml")
    assert (recipe.dataset.train, recipe.dataset.group) == (source, odd)


def test_a_recipe_that_would_be_invalid_is_not_written(tmp_path: Path) -> None:
    source = write_rows(tmp_path, ROWS)
    words = ["new", "--data", source, "--gpu", "none", "--out", str(tmp_path / "a.toml"), "-y"]
    assert call([*words, "--model", 'a "model"']) == 2
    assert call([*words, "--test", str(tmp_path / "missing.json")]) == 1
    assert not (tmp_path / "a.toml").exists()


def test_a_folder_of_weights_starts_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, ROWS)
    words = ["new", "--data", "rows.json", "--gpu", "none", "-y", "--model", "./weights"]
    for file in ("a.toml", "recipes/a.toml"):
        assert call([*words, "--out", file]) == 0
        assert load_recipe(tmp_path / file).model.name == str(tmp_path / "weights")
    assert str(tmp_path) not in (tmp_path / "a.toml").read_text()


def test_an_error_has_no_control_character_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path, [{"a\x1b[2J": "1"}])
    assert call(["new", "--data", source, "--gpu", "none", "-y"]) == 1
    error = capsys.readouterr().err
    assert "a\\x1b[2J" in error
    assert "\x1b" not in error
