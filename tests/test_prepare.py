"""Rows and images before a run, and repeating one stage of a finished run."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.damage import write_weights
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_recipe
from tests.helpers.results import evaluation_result, grpo_result, sft_result
from toolkit.data.result import DataResult
from toolkit.errors import DataError, ImageError, RunError
from toolkit.evaluation.custom_metrics import code_digest
from toolkit.evaluation.results import EvaluationResult
from toolkit.evaluation.stage_context import Context
from toolkit.exporting.results import ExportResult
from toolkit.pipeline import Stages, run_recipe
from toolkit.pipeline.existing_run import Delivery, evaluate_again, export_again
from toolkit.pipeline.image_files import _digest, has_touched_images
from toolkit.pipeline.prepare_data import inspect_data, prepare
from toolkit.recipe import Recipe, SyntheticData
from toolkit.runfolder import no_progress, read_json, start_run
from toolkit.tasks.mcq.synthetic import write_chest
from toolkit.training.results import GrpoResult, SftResult

HEAD = '[run]\nname = "one"\nfolder = "{folder}/runs"\n'
FILES = '[data]\ntask = "mcq"\ntrain = "chest/train.json"\ntest = "chest/test.json"\n'


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    """Eight training questions about X-rays 0 to 3, four test questions about X-rays 4 and 5."""
    write_chest(tmp_path / "chest", SyntheticData(kind="chest", train=8, test=4, size=64), seed=1)
    return tmp_path / "chest"


def make_recipe(folder: Path, text: str, *settings: str) -> Recipe:
    file = folder / "recipe.toml"
    file.write_text(HEAD.format(folder=folder) + text)
    return load_recipe(file, settings)


def xray(chest: Path, number: int) -> Path:
    return chest / "images" / f"radiograph{number:06d}.png"


def test_synthetic_data_is_written_to_the_run_once(tmp_path: Path) -> None:
    text = '[data]\ntask = "mcq"\n[data.synthetic]\nkind = "chest"\ntrain = 8\ntest = 4\nsize = 64\n[sft]\n[evaluate]\n'
    recipe = make_recipe(tmp_path, text)
    with start_run(recipe) as run:
        data, images = prepare(recipe, run, no_progress)
        assert (len(data.train), len(data.test)) == (8, 4)
        assert images.get(data.test[0].images[0]).mode == "RGB"
        first = read_json(run.run_file)["fingerprints"]
        result = run.result("data", DataResult)
        assert result.rows == {"train": 8, "validation": 0, "test": 4}
        assert (result.images.checked, result.images.bits) == (6, {16: 6})
        (run.path / "synthetic" / "written.json").write_text('{"seed": ')  # corrupt, so that the data is written again
        prepare(recipe, run, no_progress)
        assert read_json(run.run_file)["fingerprints"] == first


def test_a_changed_row_is_rejected_on_resume(chest: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, FILES + "[sft]\n")
    with start_run(recipe) as run:
        prepare(recipe, run, no_progress)
        rows = json.loads((chest / "train.json").read_text())
        next(iter(rows.values()))["Indication"] = "Something else."
        (chest / "train.json").write_text(json.dumps(rows))
        with raises(RunError, "run.inputs_changed") as caught:
            prepare(recipe, run, no_progress)
    assert caught.problem.value == "changed: data"


def test_a_changed_image_is_rejected_on_resume_and_a_copied_one_is_not(chest: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, FILES + "[sft]\n")
    own, content = xray(chest, 1), xray(chest, 1).read_bytes()
    with start_run(recipe) as run:
        prepare(recipe, run, no_progress)
        assert not has_touched_images(run)
        own.write_bytes(content)  # with another time, as in a copy of the dataset
        os.utime(own, (1, 1))
        assert has_touched_images(run)
        prepare(recipe, run, no_progress)
        assert not has_touched_images(run)
        own.write_bytes(xray(chest, 0).read_bytes())
        with raises(RunError, "run.images_changed") as caught:
            prepare(recipe, run, no_progress)
        assert str(caught.problem.value).startswith("1 of 4 files: train: id-")
        own.write_bytes(content)
        prepare(recipe, run, no_progress)


def test_a_damaged_record_of_the_images_is_reported(
    chest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(tmp_path, FILES + "[sft]\n")
    with start_run(recipe) as run:
        prepare(recipe, run, no_progress)
        (run.stage_folder("data") / "images.parquet").write_bytes(b"PAR1 damaged")
        with caplog.at_level("WARNING", "toolkit"):
            prepare(recipe, run, no_progress)
    assert "run.images_record_damaged" in {one.problem.code for one in caplog.records if hasattr(one, "problem")}


def test_a_name_that_means_another_image_is_rejected_on_resume(tmp_path: Path) -> None:
    rows = [{"question": f"Question {n}?", "answer": "yes", "image": f"{n}"} for n in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for number in range(3):
        Image.new("L", (32, 32), number).save(tmp_path / f"{number}.png")
    recipe = make_recipe(tmp_path, '[data]\ntask = "vqa"\ntrain = "rows.json"\nsplit = { test = 0 }\n[sft]\n')
    with start_run(recipe) as run:
        prepare(recipe, run, no_progress)
        (tmp_path / "1.png").unlink()
        Image.new("L", (32, 32), 9).save(tmp_path / "1.jpg")
        with raises(RunError, "run.images_changed") as caught:
            prepare(recipe, run, no_progress)
    assert "train: id-" in str(caught.problem.value)


def test_an_evaluation_of_a_run_checks_its_images(chest: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, FILES + "[sft]\n[evaluate]\n")
    with start_run(recipe) as run:
        prepare(recipe, run, no_progress)
    xray(chest, 4).write_bytes(xray(chest, 0).read_bytes())
    with raises(RunError, "run.images_changed"):
        evaluate_again(run.path, Stages(prepare, *[not_called] * 6), name="later")


def not_called(*given: Any, **named: Any) -> Any:
    raise AssertionError


@pytest.mark.parametrize("place", ["begin", "middle", "end"])
def test_a_large_file_is_compared_by_its_ends(tmp_path: Path, place: str) -> None:
    file, content = tmp_path / "a.dcm", bytearray(1000)
    file.write_bytes(content)
    first = _digest(file, 1000, 100)
    content[{"begin": 0, "middle": 500, "end": 999}[place]] = 1
    file.write_bytes(content)
    assert (_digest(file, 1000, 100) == first) == (place == "middle")
    assert _digest(file, 1000, 2000) != first


def test_a_changed_reward_file_is_rejected_on_resume(chest: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("def polite(sample, answer):\n    return 1.0\n")
    recipe = make_recipe(tmp_path, FILES + '[grpo]\n[rewards]\ncustom = ["mine.py:polite"]\n')
    with start_run(recipe) as run:
        prepare(recipe, run, no_progress)
        own.write_text("def polite(sample, answer):\n    return 0.5\n")
        with raises(RunError, "run.inputs_changed") as caught:
            prepare(recipe, run, no_progress)
    assert caught.problem.value == "changed: rewards"


def test_moved_data_have_the_same_fingerprint(chest: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, FILES + "[sft]\n")
    with start_run(recipe) as run:
        prepare(recipe, run, no_progress)
    moved = chest.rename(tmp_path / "moved")
    recipe = make_recipe(tmp_path, FILES.replace("chest/", "moved/") + "[sft]\n")
    with start_run(recipe) as run:
        data, _ = prepare(recipe, run, no_progress)
    assert data.train[0].images[0].path.is_relative_to(moved)


def test_unusable_images_of_used_rows_stop_a_run_together(chest: Path, tmp_path: Path) -> None:
    xray(chest, 0).unlink()
    xray(chest, 2).write_bytes(b"no image")
    xray(chest, 4).unlink()
    recipe = make_recipe(tmp_path, FILES + "[sft]\n")
    with start_run(recipe) as run, raises(ImageError, "images.unusable") as caught:
        prepare(recipe, run, no_progress)
    # X-ray 4 belongs to the test rows, which this recipe does not use.
    assert "2 of 4" in caught.problem.rule
    assert "row 0, image 1" in caught.problem.rule
    assert caught.problem.rule.count("image 1: ") == 2


def test_rows_with_unusable_images_are_skipped_and_counted_if_the_recipe_says_so(
    chest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    xray(chest, 1).unlink()
    recipe = make_recipe(tmp_path, FILES + '[images]\nunreadable = "skip"\n[sft]\n[evaluate]\n')
    with start_run(recipe) as run:
        data, images = prepare(recipe, run, no_progress)
        for sample in data.train:
            images.get(sample.images[0])
        # Two questions about each X-ray.
        assert (len(data.train), len(data.test)) == (6, 4)
        (dropped,) = run.result("data", DataResult).dropped
    assert (dropped.reason, dropped.count) == ("an image is unusable", 2)
    (warned,) = (one for one in warnings_in(caplog) if one.code == "data.image_unusable")
    assert Path(warned.place).name == "train.json"
    xray(chest, 0).unlink()
    with start_run(recipe) as run, raises(RunError, "run.inputs_changed") as caught:
        prepare(recipe, run, no_progress)
    assert caught.problem.value == "changed: unusable images"


def test_a_split_without_a_usable_image_is_an_error(chest: Path, tmp_path: Path) -> None:
    for number in (4, 5):
        xray(chest, number).unlink()
    recipe = make_recipe(tmp_path, FILES + '[images]\nunreadable = "skip"\n[evaluate]\n')
    with raises(DataError, "data.no_usable_rows") as caught, start_run(recipe) as run:
        prepare(recipe, run, no_progress)
    assert caught.problem.place == "[data] test"


def test_placeholders_keep_their_rows_and_are_recorded(chest: Path, tmp_path: Path) -> None:
    xray(chest, 1).unlink()
    recipe = make_recipe(tmp_path, FILES + '[images]\nunreadable = "placeholder"\n[sft]\n')
    with start_run(recipe) as run:
        data, _ = prepare(recipe, run, no_progress)
        assert len(data.train) == 8
        (unusable,) = run.result("data", DataResult).images.unusable
    assert unusable.path.startswith("id-")
    assert "image 1" in unusable.row


def test_inspect_scans_every_split_and_continues_after_unusable_images(chest: Path, tmp_path: Path) -> None:
    xray(chest, 5).unlink()
    calls: list[tuple[str, int, int]] = []
    recipe = make_recipe(tmp_path, FILES + "[sft]\n")
    data, scan, _ = inspect_data(recipe, lambda what, done, total, note="": calls.append((what, done, total)))
    assert (len(data.train), scan.checked, len(scan.bad)) == (8, 6, 1)
    assert calls[-1] == ("images", 6, 6)
    assert not (tmp_path / "runs").exists()


Calls = list[tuple[Any, ...]]


def fake_stages(calls: Calls) -> Stages:
    def train_sft(context: Context) -> SftResult:
        write_weights(context.run.weights_folder("sft"))
        return sft_result()

    def train_grpo(context: Context) -> GrpoResult:
        write_weights(context.run.weights_folder("grpo"))
        return grpo_result()

    def evaluate(context: Context, name: str, weights: Path | None, earlier: Sequence[str]) -> EvaluationResult:
        section = context.recipe.evaluate
        calls.append((name, weights and weights.parent.name, tuple(earlier), section and section.limit))
        code = code_digest(section.metrics) if section and section.metrics else None
        result = evaluation_result(name, 0.5, 0.5, dict.fromkeys(("baseline", *earlier), 0.0))
        return replace(result, metrics_code=code)

    def export(context: Context, *, out: Path | None = None, force: bool = False) -> ExportResult:
        assert context.recipe.export is not None
        calls.append(("export", context.recipe.export.to))
        return ExportResult("stages/sft/weights")

    def look_at_nothing(recipe: Recipe, run: object) -> Any:
        return None, None

    def prepare_nothing(recipe: Recipe, run: object, progress: object) -> Any:
        return None, None

    return Stages(prepare_nothing, look_at_nothing, train_sft, not_called, train_grpo, evaluate, export)


def test_an_export_is_evaluated_under_its_own_name(tmp_path: Path) -> None:
    path = finished_run(tmp_path)
    calls: Calls = []
    merged = path / "stages/export/merged"
    write_weights(merged)
    results = evaluate_again(path, fake_stages(calls), model="merged")
    assert [row.label for row in results.rows] == ["majority baseline", "before", "after SFT", "merged"]
    evaluate_again(path, fake_stages(calls), model=str(merged))
    assert calls == [("merged", "export", ("before", "sft"), None), ("merged-2", "export", ("before", "sft"), None)]
    with raises(RunError, "run.exported_weights_missing") as caught:
        evaluate_again(path, fake_stages(calls), model="q8_0")
    assert caught.problem.place == "--model q8_0"
    assert "merged" in caught.problem.remedy


def test_an_export_outside_the_run_does_not_change_its_result(tmp_path: Path) -> None:
    path, seen = finished_run(tmp_path), []

    def export(context: Context, *, out: Path | None = None, force: bool = False) -> ExportResult:
        seen.append((out, force))
        return ExportResult("stages/sft/weights")

    stages = replace(fake_stages([]), export=export)
    assert export_again(path, stages, (), Delivery(tmp_path / "elsewhere", force=True)).requested == ()
    assert not (path / "stages/export/done.json").exists()
    export_again(path, stages)
    assert seen == [(tmp_path / "elsewhere", True), (None, False)]
    assert (path / "stages/export/done.json").is_file()


def finished_run(folder: Path, more: str = "[evaluate]\n") -> Path:
    return run_recipe(make_recipe(folder, FILES + "[sft]\n" + more), fake_stages([])).run.path


def test_a_repeated_evaluation_has_a_free_name_and_is_compared_if_the_samples_are_the_same(
    tmp_path: Path,
) -> None:
    path = finished_run(tmp_path)
    calls: Calls = []
    results = evaluate_again(path, fake_stages(calls), ["evaluate.batch_size=2"])
    assert [row.label for row in results.rows] == ["majority baseline", "before", "after SFT", "again-1"]
    results = evaluate_again(path, fake_stages(calls), ["evaluate.limit=2"])
    assert [row.label for row in results.rows] == ["majority baseline", "again-2"]
    evaluate_again(path, fake_stages(calls), name="mine")
    assert calls == [
        ("again-1", "sft", ("before", "sft"), None),
        ("again-2", "sft", (), 2),
        ("mine", "sft", ("before", "sft"), None),
    ]
    with raises(RunError, "evaluate.name_taken") as caught:
        evaluate_again(path, fake_stages(calls), ["evaluate.limit=3"], name="mine")
    assert caught.problem.value == "mine"
    before = len(calls)
    repeated = evaluate_again(path, fake_stages(calls), name="mine")
    assert [row.label for row in repeated.rows] == ["majority baseline", "before", "after SFT", "mine"]
    assert len(calls) == before
    # The run's own table is as it was.
    assert [row["label"] for row in read_json(path / "results.json")["rows"]] == [
        "majority baseline",
        "before",
        "after SFT",
    ]


def write_metric(folder: Path, value: float) -> str:
    (folder / "metric.py").write_text(f"def constant(samples, answers):\n    return {value}\n")
    return f'metrics = ["{folder}/metric.py:constant"]'


def test_a_finished_evaluation_with_other_code_of_its_metrics_is_not_that_of_the_same_command(tmp_path: Path) -> None:
    setting, calls = f"evaluate.{write_metric(tmp_path, 0.5)}", list[Any]()
    path = finished_run(tmp_path)
    for _ in range(2):
        evaluate_again(path, fake_stages(calls), [setting], name="mine")
    assert [call[0] for call in calls] == ["mine"]
    write_metric(tmp_path, 0.25)
    with raises(RunError, "evaluate.name_taken"):
        evaluate_again(path, fake_stages(calls), [setting], name="mine")


def test_a_finished_run_with_other_code_of_its_metrics_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, calls = f"[evaluate]\n{write_metric(tmp_path, 0.5)}\n", list[Any]()
    path = finished_run(tmp_path, text)
    recipe = make_recipe(tmp_path, FILES + "[sft]\n" + text)
    run_recipe(recipe, fake_stages(calls))
    assert (calls, warnings_in(caplog)) == ([], [])
    write_metric(tmp_path, 0.25)
    run_recipe(recipe, fake_stages(calls))
    assert calls == []
    assert [problem.code for problem in warnings_in(caplog)] == ["evaluate.metrics_changed"] * 2
    assert {problem.place for problem in warnings_in(caplog)} == {"evaluate-before", "evaluate-sft"}
    assert path.name in warnings_in(caplog)[0].remedy


def test_a_finished_evaluation_or_run_of_changed_images_is_an_error(chest: Path, tmp_path: Path) -> None:
    stages = replace(fake_stages([]), prepare=prepare)
    recipe = make_recipe(tmp_path, FILES + "[sft]\n[evaluate]\n")
    path = run_recipe(recipe, stages).run.path
    for _ in range(2):
        evaluate_again(path, stages, name="mine")
    xray(chest, 4).write_bytes(xray(chest, 0).read_bytes())
    with raises(RunError, "run.images_changed"):
        evaluate_again(path, stages, name="mine")
    with raises(RunError, "run.images_changed"):
        run_recipe(recipe, stages)


def test_a_finished_run_with_a_changed_reward_file_is_an_error(chest: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("def polite(sample, answer):\n    return 1.0\n")
    recipe = make_recipe(tmp_path, FILES + '[grpo]\n[rewards]\ncustom = ["mine.py:polite"]\n')
    stages = replace(fake_stages([]), prepare=prepare)
    for _ in range(2):
        run_recipe(recipe, stages)
    own.write_text("def polite(sample, answer):\n    return 0.5\n")
    with raises(RunError, "run.inputs_changed"):
        run_recipe(recipe, stages)


KILLED_AT_THE_END = """
import os, sys
from pathlib import Path
from tests.test_prepare import fake_stages
from toolkit.pipeline.existing_run import evaluate_again

def kill(event, arguments):
    if event == "os.rename" and arguments[1].endswith("results.json"):
        os.kill(os.getpid(), 9)

sys.addaudithook(kill)
evaluate_again(Path(sys.argv[1]), fake_stages([]), ["evaluate.limit=2"], name=sys.argv[2] or None)
"""


@pytest.mark.parametrize("name", ["mine", None])
def test_an_evaluation_that_was_killed_after_its_last_answer_is_finished_by_the_same_command(
    tmp_path: Path, name: str | None
) -> None:
    path = finished_run(tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_THE_END, str(path), name or ""], timeout=60)
    assert killed.returncode == -9
    calls: Calls = []
    if name is not None:
        with raises(RunError, "evaluate.name_taken"):
            evaluate_again(path, fake_stages(calls), ["evaluate.limit=3"], name=name)
    results = evaluate_again(path, fake_stages(calls), ["evaluate.limit=2"], name=name)
    assert calls == []
    assert [row.label for row in results.rows] == ["majority baseline", name or "again-1"]
    assert list(read_json(path / "results.json")["evaluations"]) == ["before", "sft", name or "again-1"]
    evaluate_again(path, fake_stages(calls), ["evaluate.limit=2"], name=name and "other")
    assert [call[0] for call in calls] == ["other" if name else "again-2"]


def test_a_run_without_evaluation_or_export_can_have_both_later(tmp_path: Path) -> None:
    path = finished_run(tmp_path, more="")
    calls: Calls = []
    evaluate_again(path, fake_stages(calls))
    export_again(path, fake_stages(calls), ['export.to=["adapter"]'])
    assert calls == [("again-1", "sft", (), None), ("export", ("adapter",))]


def test_a_repeated_stage_accepts_only_changes_of_its_own_section(tmp_path: Path) -> None:
    path = finished_run(tmp_path)
    with raises(RunError, "run.setting_not_changeable") as caught:
        evaluate_again(path, fake_stages([]), ["sft.epochs=2"])
    assert (caught.problem.place, caught.problem.value) == ("--set", "sft.epochs")


@pytest.mark.parametrize("name", ["before", "baseline", "../../evil", "..", "a/b", "é", "", "x" * 101])
def test_the_name_of_an_evaluation_is_a_new_plain_word(tmp_path: Path, name: str) -> None:
    path = finished_run(tmp_path)
    with raises(RunError, "evaluate.name_invalid") as caught:
        evaluate_again(path, fake_stages([]), name=name)
    assert (caught.problem.place, caught.problem.value) == ("--name", name)
