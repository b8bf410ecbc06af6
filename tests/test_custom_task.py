"""A task in a file of the user's: the guide's example through every stage, and files that give no task."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, load_recipe
from toolkit.cli import main
from toolkit.errors import DataError, RecipeError
from toolkit.pipeline.run_results import read_results
from toolkit.recipe import dump_recipe
from toolkit.runfolder import find_run
from toolkit.tasks import TASKS

GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "custom_task.md"


def block(name: str) -> str:
    """Return the file of the guide that is called NAME."""
    (found,) = re.findall(rf"<!-- file: {re.escape(name)} -->\n```\w+\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("my_task.py", "my.toml"):
        (tmp_path / name).write_text(block(name), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def toolkit(*arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0


@pytest.mark.slow
def test_a_task_in_a_file_goes_through_every_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(block("my_task.py").splitlines()) <= 80
    toolkit("plan", "my.toml")
    assert "no problem found" in capsys.readouterr().out
    toolkit("run", "my.toml", "--dry-run")
    toolkit("run", "my.toml")
    run = find_run(folder / "runs" / "my")
    results = read_results(run.path)
    assert (results.score, [row.label for row in results.rows]) == (
        "accuracy",
        ["majority baseline", "before", "after SFT", "after GRPO"],
    )
    assert {"correct", "brevity"} <= {key.split("/")[1] for line in run.metrics() for key in line if "reward/" in key}
    card = (run.path / "stages" / "export" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "trained for finding the brighter half of an image" in card
    assert 'task = "my_task.py:TASK"' in card
    assert str(folder) not in card
    capsys.readouterr()
    toolkit("predict", "runs/my", "--question", "Which half?", "--image", str(run.path / "synthetic" / "test0.png"))
    assert capsys.readouterr().out.strip()


def test_the_settings_of_a_task_are_validated_and_dumped_like_every_section(folder: Path) -> None:
    recipe = load_recipe("my.toml")
    assert recipe.settings.word == "side"
    assert recipe.dataset.task == f"{folder / 'my_task.py'}:TASK"
    (folder / "again.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe("again.toml") == recipe
    with raises(RecipeError, "recipe.wrong_type", "recipe.key_unknown") as caught:
        load_recipe("my.toml", ["data.side.wrod=1", "data.side.word=2"])
    problems = {problem.code: problem for problem in caught.error.problems}
    assert problems["recipe.key_unknown"].place == "--set data.side.wrod"
    assert "word" in problems["recipe.key_unknown"].remedy
    assert problems["recipe.wrong_type"].value == 2


CHANGES = {
    "tasks.file_missing": None,
    "tasks.task_missing": ("TASK = Task(", "OTHER = Task("),
    "tasks.not_a_task": ("TASK = Task(", "TASK = dict("),
    "tasks.name_invalid": ('name="side"', 'name="vqa"'),
    "tasks.weights_do_not_match": ('"brevity": 0.1', '"short": 0.1'),
    "tasks.setting_without_default": ('word: str = "half"', "word: str"),
    "tasks.file_syntax_invalid": ("TASK = Task(", "TASK = = Task("),
    "tasks.file_raised": ("SIDES = (", "SIDES = 1 / 0, ("),
    "tasks.columns_invalid": ('"side": ("side",)}', '"sides": ("side",)}'),
    "tasks.rewards_invalid": ('rewards={"correct": correct, "brevity": brevity}', "rewards=[correct, brevity]"),
    "tasks.settings_not_a_section": ("settings_model=Side", "settings_model=dict"),
}


@pytest.mark.parametrize("code", CHANGES)
def test_a_file_without_a_task_is_one_clear_error(code: str, folder: Path) -> None:
    file, change = folder / "my_task.py", CHANGES[code]
    if change is None:
        file.unlink()
    else:
        text = file.read_text(encoding="utf-8")
        assert change[0] in text
        file.write_text(text.replace(*change), encoding="utf-8")
    with raises(RecipeError, code) as caught:
        load_recipe("my.toml")
    assert caught.problem.place.startswith("my.toml: data.task: ")
    assert str(file) in caught.problem.place


@pytest.mark.parametrize("name", ["3", '"a b"', '"class"', '"mcq"', '"train"', "None"])
def test_a_task_needs_a_name_of_its_own(name: str, folder: Path) -> None:
    file = folder / "my_task.py"
    file.write_text(file.read_text("utf-8").replace('name="side",', f"name={name},"), encoding="utf-8")
    with raises(RecipeError, "tasks.name_invalid"):
        load_recipe("my.toml")


def test_a_file_that_exits_is_an_error(folder: Path) -> None:
    with (folder / "my_task.py").open("a", encoding="utf-8") as handle:
        handle.write("\nraise SystemExit(3)\n")
    with raises(RecipeError, "tasks.file_raised"):
        load_recipe("my.toml")


MISTAKES = {
    "read raises": ("    return Sample(name", "    1 / 0\n    return Sample(name", "tasks.function_raised"),
    "read returns nothing": ("    return Sample(name", "    Sample(name", "tasks.result_wrong_type"),
    "question returns nothing": ('sample.fields["question"],', "None,", "tasks.result_wrong_type"),
    "target is malformed": (
        'target=lambda sample: sample.reference["side"]',
        "target=lambda: 1",
        "tasks.function_raised",
    ),
    "parse raises": ("    found = [", "    1 / 0\n    found = [", "tasks.function_raised"),
    "parse returns nothing": ("    return Answer(", "    Answer(", "tasks.result_wrong_type"),
    "scores raise": ('{"accuracy": correct(sample, answer)}', "1 / 0", "tasks.function_raised"),
    "scores are text": ("correct(sample, answer)}", '"yes"}', "tasks.scores_invalid"),
    "scores are too large": ("correct(sample, answer)}", "5.0}", "tasks.scores_invalid"),
    "scores are not finite": ("correct(sample, answer)}", 'float("nan")}', "tasks.scores_invalid"),
    "primary is no score": ('primary="accuracy"', 'primary="f1"', "tasks.scores_invalid"),
    "baseline raises": ("lambda sample: most_frequent", "lambda sample: 1 / 0", "tasks.function_raised"),
    "write raises": ("    return files", "    raise OSError(5)", "tasks.function_raised"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_function_of_a_task_is_an_error_with_its_place(mistake: str, folder: Path) -> None:
    old, new, code = MISTAKES[mistake]
    file = folder / "my_task.py"
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        use_every_function(folder)
    problems = caught.value.problems  # those of reading rows are reported together, for each split
    assert {problem.code for problem in problems} == {code}
    assert problems[0].place.startswith(f"{file}:TASK: ")
    assert (f"{file}:" in problems[0].remedy) == (code == "tasks.function_raised" and mistake != "target is malformed")


def use_every_function(folder: Path) -> None:
    recipe = load_recipe("my.toml")
    task = TASKS[recipe.dataset.task]
    assert task.synthetic is not None
    assert recipe.dataset.synthetic is not None
    task.synthetic.write(folder, recipe.dataset.synthetic, 1)
    samples = load_data(recipe, folder).train
    for sample in samples:
        task.question(sample)
        task.scores(sample, task.parse(task.target(sample), sample))
    task.baseline(list(samples))(samples[0])


def test_samples_of_such_a_task_are_read_in_another_process(folder: Path) -> None:
    recipe = load_recipe("my.toml")
    assert recipe.task.synthetic is not None
    TASKS[recipe.dataset.task].synthetic.write(folder, recipe.dataset.synthetic, 1)  # type: ignore[union-attr, arg-type]
    samples = load_data(recipe, folder).train
    (folder / "samples.pickle").write_bytes(pickle.dumps((samples, recipe)))
    code = (
        "import json, pickle; samples, recipe = pickle.load(open('samples.pickle', 'rb'));"
        "print(json.dumps([[one.id, one.reference['side']] for one in samples] + [[recipe.task.name, '']]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == [[one.id, one.reference["side"]] for one in samples] + [["side", ""]]


def test_rows_are_read_again_once_the_file_of_the_task_has_changed(folder: Path) -> None:
    recipe = load_recipe("my.toml")
    TASKS[recipe.dataset.task].synthetic.write(folder, recipe.dataset.synthetic, 1)  # type: ignore[union-attr, arg-type]
    assert len(load_data(recipe, folder).train) == 32
    file = folder / "my_task.py"
    file.write_text(file.read_text("utf-8").replace("if side not in SIDES:", 'if side != "left":'), encoding="utf-8")
    changed = load_recipe("my.toml", ["data.max_dropped=1"])
    assert {one.reference["side"] for one in load_data(changed, folder).train} == {"left"}


def test_a_dry_run_without_rows_needs_synthetic_ones(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "my_task.py"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "synthetic=" not in line]
    file.write_text("\n".join(lines), encoding="utf-8")
    recipe = block("my.toml").split("[data.synthetic]")
    (folder / "my.toml").write_text(f'{recipe[0]}train = "rows.json"\n[evaluate]\n', encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        main(["run", "my.toml", "--dry-run"])
    assert left.value.code == 2
    assert "[recipe.dry_run_without_rows]" in capsys.readouterr().err
