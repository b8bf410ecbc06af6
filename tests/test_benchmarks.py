"""Published layouts of public datasets, and the evaluation of a model on one of them by name."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers.cli import call
from tests.helpers.problems import raises
from toolkit import tiny
from toolkit.data.loading import load_data
from toolkit.errors import DataError
from toolkit.pipeline.benchmark import RECORD, benchmark_recipe, find_benchmarks
from toolkit.recipe import load_recipe
from toolkit.runfolder import read_json
from toolkit.tasks import TASKS


def write_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 40 * number).save(folder / name)


def png(level: int = 0) -> dict[str, Any]:
    stream = BytesIO()
    Image.new("L", (32, 32), level).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": "x.png"}


def write_json_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def vqa_rad(folder: Path) -> None:
    write_images(folder / "images", "synpic1.jpg", "synpic2.jpg")
    row = {"qid": 1, "question": "Is there a mass?", "answer": "Yes", "answer_type": "CLOSED ", "question_type": "PRES"}
    write_json_rows(folder / "trainset.json", [{**row, "image_name": "synpic1.jpg"}])
    write_json_rows(folder / "testset.json", [{**row, "qid": 2, "image_name": "synpic2.jpg"}])


def slake(folder: Path) -> None:
    write_images(folder / "imgs", *(f"xmlab{number}/source.jpg" for number in (1, 2, 3)))
    for number, split in enumerate(("train", "test", "validate"), start=1):
        row = {
            "img_id": number,
            "img_name": f"xmlab{number}/source.jpg",
            "answer_type": "CLOSED",
            "content_type": "Abnormality",
        }
        english = {**row, "qid": 2 * number, "question": "Is it healthy?", "answer": "Yes", "q_lang": "en"}
        chinese = {**row, "qid": 2 * number + 1, "question": "健康吗？", "answer": "不是", "q_lang": "zh"}
        write_json_rows(folder / f"{split}.json", [english, chinese])


def path_vqa(folder: Path) -> None:
    (folder / "data").mkdir()
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        columns = {"image": [png(number)], "question": ["where is it?"], "answer": ["in the canals of hering"]}
        pq.write_table(pa.table(columns), folder / "data" / f"{name}.parquet")


def vqa_med_2019(folder: Path) -> None:
    write_images(folder / "images", "synpic1.jpg", "synpic2.jpg", "synpic3.jpg")
    for split, image in (("train", "synpic1"), ("val", "synpic3")):
        (folder / f"All_QA_Pairs_{split}.txt").write_text(f"{image}|what modality is shown?|mr\n" * 2)
    test = "synpic2|organ|what organ is shown?|lung, mediastinum, pleura#spine and contents\n"
    (folder / "VQAMed2019_Test_Questions_w_Ref_Answers.txt").write_text(test)


def mimic_cxr_vqa(folder: Path) -> None:
    write_images(folder / "files", "p10/a.png", "p11/b.png", "p12/c.png")
    row = {"content_type": "attribute", "semantic_type": "query", "question": "Which findings are seen?"}
    train = [{**row, "idx": 1, "image_path": "p10/a.png", "subject_id": "10", "answer": ["nodule"]}]
    test = [
        {**row, "idx": 2, "image_path": "p11/b.png", "subject_id": "11", "answer": ["atelectasis", "pleural effusion"]},
        {**row, "idx": 3, "image_path": "p11/b.png", "subject_id": "11", "answer": []},
    ]
    write_json_rows(folder / "train.json", train)
    write_json_rows(folder / "valid.json", [{**train[0], "image_path": "p12/c.png", "subject_id": "12"}])
    write_json_rows(folder / "test.json", test)


def rexvqa(folder: Path) -> None:
    write_images(folder, "a.png", "b.png")
    row = {
        "question": "What is the finding?",
        "options": ["A. Normal", "B. Mass"],
        "correct_answer": "B",
        "correct_answer_explanation": "A round opacity",
        "task_name": "presence",
    }
    for name, image in (("train", "a.png"), ("test", "b.png")):
        rows = {f"{name}1": {**row, "ImagePath": [image]}}
        (folder / f"{name}_vqa_data.json").write_text(json.dumps(rows))


def pmc_vqa(folder: Path) -> None:
    write_images(folder / "images", "PMC1_F1.jpg", "PMC2_F1.jpg")
    header = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"
    row = "PMC{}_F1.jpg, What is it? , Mass , A:Normal , B:Mass , C:Cyst , D:Nothing ,B\n"
    (folder / "train.csv").write_text(header + row.format(1))
    (folder / "test_clean.csv").write_text(header + row.format(2))


def pmc_vqa_2(folder: Path) -> None:
    write_images(folder / "figures", "PMC1_F1.jpg", "PMC2_F1.jpg")
    header = "index,Figure_path,Caption,Question,Choice A,Choice B,Choice C,Choice D,Answer,split\n"
    row = "{0},PMC{0}_F1.jpg,cap,What is it?, A: Normal, B: Mass, C: Cyst, D: Nothing,B,{1}\n"
    (folder / "train_2.csv").write_text(header + row.format(1, "train"))
    (folder / "test_2.csv").write_text(header + row.format(2, "test"))


def omnimedvqa(folder: Path) -> None:
    write_images(folder, *(f"Images/{number}.png" for number in range(10)))
    rows = [
        {
            "dataset": "Chest",
            "question_id": f"Chest_{number}",
            "question_type": "Disease Diagnosis",
            "question": "What is shown?",
            "gt_answer": "Mass",
            "image_path": f"Images/{number}.png",
            "option_A": "Normal",
            "option_B": "Mass",
            "modality_type": "CT(Computed Tomography)",
        }
        for number in range(10)
    ]
    write_json_rows(folder / "QA_information/Open-access/Chest.json", rows)


def medxpertqa(folder: Path) -> None:
    write_images(folder / "images", "MM-1-a.jpeg", "MM-2-a.jpeg")
    row = {
        "question": "What is it?\nAnswer Choices: (A) Normal (B) Mass",
        "options": {"A": "Normal", "B": "Mass"},
        "label": "B",
        "medical_task": "Diagnosis",
        "question_type": "Reasoning",
    }
    for split, number in (("dev", 1), ("test", 2)):
        file = folder / "MM" / f"{split}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"id": f"MM-{number}", **row, "images": [f"MM-{number}-a.jpeg"]}))


def mmmu(folder: Path) -> None:
    for number, (split, kinds) in enumerate(
        {"dev": ("multiple-choice",), "validation": ("multiple-choice", "open")}.items()
    ):
        columns: dict[str, Any] = {
            "id": [f"{split}_{kind}" for kind in kinds],
            "question": ["What is in <image 1>?"] * len(kinds),
            "options": ["['Normal', 'Mass']" if kind == "multiple-choice" else "[]" for kind in kinds],
            "question_type": list(kinds),
            "answer": ["B"] * len(kinds),
            "image_1": [png(number)] * len(kinds),
            **{f"image_{place}": [None] * len(kinds) for place in range(2, 8)},
        }
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")


LAYOUTS: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "vqa_rad": (vqa_rad, "Yes"),
    "slake": (slake, "Yes"),
    "slake_zh": (slake, "不是"),
    "path_vqa": (path_vqa, "in the canals of hering"),
    "vqa_med_2019": (vqa_med_2019, "lung, mediastinum, pleura"),
    "mimic_cxr_vqa": (mimic_cxr_vqa, "atelectasis, pleural effusion"),
    "rexvqa": (rexvqa, "B - Mass"),
    "pmc_vqa": (pmc_vqa, "B - Mass"),
    "pmc_vqa_2": (pmc_vqa_2, "B - Mass"),
    "omnimedvqa": (omnimedvqa, "B - Mass"),
    "medxpertqa": (medxpertqa, "B - Mass"),
    "mmmu": (mmmu, "B - Mass"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_read_without_columns(name: str, tmp_path: Path) -> None:
    write, target = LAYOUTS[name]
    write(tmp_path)
    recipe = benchmark_recipe(name, tmp_path, "tiny")
    task = TASKS[recipe.dataset.task]
    data = load_data(recipe, task)
    assert len(data.train) > 0
    assert {task.target(sample) for sample in data.test} == {target}
    assert all(image.path.is_file() for sample in data.test for image in sample.images)
    for sample in data.test:
        assert task.scores(sample, task.parse(task.target(sample), sample))[task.primary] == 1


def guide_recipes() -> list[str]:
    guide = (Path(__file__).parents[1] / "docs/guides/benchmarks.md").read_text(encoding="utf-8")
    return re.findall(r"```toml\n(\[data\].*?)```", guide, re.DOTALL)


@pytest.mark.parametrize(
    ("text", "name"),
    list(
        zip(
            guide_recipes(),
            ("slake", "path_vqa", "vqa_med_2019", "mimic_cxr_vqa", "pmc_vqa", "omnimedvqa", "medxpertqa", "mmmu"),
            strict=True,
        )
    ),
)
def test_the_lines_of_the_guide_read_the_published_files(text: str, name: str, tmp_path: Path) -> None:
    write, target = LAYOUTS[name]
    write(tmp_path)
    (tmp_path / "r.toml").write_text(f'[run]\nname = "r"\n{text}\n[evaluate]\n', encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.toml", tasks=TASKS)
    task = TASKS[recipe.dataset.task]
    assert target in {task.target(sample) for sample in load_data(recipe, task).test}


def test_every_benchmark_has_a_test_of_its_layout() -> None:
    assert set(LAYOUTS) == set(find_benchmarks())


def test_the_options_that_medxpertqa_repeats_are_not_shown_twice(tmp_path: Path) -> None:
    medxpertqa(tmp_path)
    data = load_data(benchmark_recipe("medxpertqa", tmp_path, "tiny"), TASKS["mcq"])
    assert TASKS["mcq"].question(data.test[0]) == "What is it?\nA. Normal\nB. Mass"


def test_rows_without_an_answer_and_open_questions_are_left_out_and_counted(tmp_path: Path) -> None:
    mimic_cxr_vqa(tmp_path)
    data = load_data(benchmark_recipe("mimic_cxr_vqa", tmp_path, "tiny"), TASKS["vqa"])
    assert [(one.code, one.count) for one in data.dropped] == [("data.answer_missing", 1)]
    (tmp_path / "mmmu").mkdir()
    mmmu(tmp_path / "mmmu")
    assert len(load_data(benchmark_recipe("mmmu", tmp_path / "mmmu", "tiny"), TASKS["mcq"]).test) == 1


def test_a_folder_without_the_files_of_a_benchmark_is_an_error(tmp_path: Path) -> None:
    with raises(DataError, "evaluate.benchmark_files_missing"):
        benchmark_recipe("slake", tmp_path, "tiny")
    with raises(DataError, "evaluate.benchmark_unknown") as caught:
        benchmark_recipe("slak", tmp_path, "tiny")
    assert caught.problem.value == "slak"


@pytest.mark.slow
def test_a_model_is_evaluated_on_a_benchmark_and_the_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    rexvqa(tmp_path / "data")
    arguments = ["evaluate", "--benchmark", "rexvqa", "--data", "data", "--model"]
    for model in ("tiny", "tiny", "runs/tiny"):
        settings = [] if model != "tiny" else ["-s", "evaluate.max_completion_tokens=8"]
        assert call([*arguments, model, "--name", f"again-{model[:4]}" if "/" in model else model, *settings]) == 0
        printed = capsys.readouterr().out
        assert "majority baseline" in printed
        assert "published: 83.2 %" in printed
        assert f"│ {model} " in printed
    record = read_json(tmp_path / "runs/tiny" / RECORD)
    assert (record["name"], record["published"][0]["score"]) == ("rexvqa", 0.8324)
    assert read_json(tmp_path / "runs/tiny/results.json")["rows"][0]["estimate"]["value"] == 1  # both answers are B


@pytest.mark.parametrize(
    "arguments", [["--benchmark", "rexvqa"], [], ["run", "--benchmark", "rexvqa"], ["--data", "."]]
)
def test_missing_or_contradicting_options_are_an_error(arguments: list[str]) -> None:
    assert call(["evaluate", *arguments]) == 2


@pytest.mark.slow
def test_a_finished_run_does_not_return_its_results_for_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        vqa_rad(tmp_path / name)
    arguments = ["evaluate", "--benchmark", "vqa_rad", "--model", "tiny", "--data"]
    assert call([*arguments, "one"]) == 0
    assert call([*arguments, "other"]) == 0  # equal data at another place
    rows = json.loads((tmp_path / "other/testset.json").read_text())
    write_json_rows(tmp_path / "other/testset.json", [{**rows[0], "answer": "No"}])
    for _ in range(2):
        capsys.readouterr()
        assert call([*arguments, "other"]) == 1
        assert "run.inputs_changed" in "".join(capsys.readouterr())
    assert call([*arguments, "one"]) == 0


@pytest.mark.slow
def test_a_finished_run_does_not_return_its_results_for_other_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    vqa_rad(tmp_path / "data")
    shutil.copytree(tiny.FOLDER, tmp_path / "model")
    arguments = ["evaluate", "--benchmark", "vqa_rad", "--data", "data", "--model", "model"]
    assert call(arguments) == 0
    assert call(arguments) == 0
    weights = tmp_path / "model/model.safetensors"
    status = weights.stat()
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    for _ in range(2):
        capsys.readouterr()
        assert call(arguments) == 1
        printed = "".join(capsys.readouterr())
        assert ("run.inputs_changed" in printed, "weights" in printed) == (True, True)


def write_mmmu_row(folder: Path, images: Mapping[str, Any], question: str, options: list[str]) -> None:
    mmmu(folder)
    columns: dict[str, Any] = {
        "id": ["v1"],
        "question": [question],
        "options": [str(options)],
        "question_type": ["multiple-choice"],
        "answer": ["B"],
        **{f"image_{place}": [images.get(f"image_{place}")] for place in range(1, 8)},
    }
    pq.write_table(pa.table(columns), folder / "validation-00000-of-00001.parquet")


def test_images_in_the_options_of_mmmu_are_shown_there_and_an_image_without_placeholder_is_reported(
    tmp_path: Path,
) -> None:
    images = {f"image_{place}": png(40 * place) for place in (1, 2, 3, 4)}
    write_mmmu_row(tmp_path, images, "Which is like <image 1>?", ["<image 3>", "<image 2>"])
    data = load_data(benchmark_recipe("mmmu", tmp_path, "tiny"), TASKS["mcq"])
    (sample,) = data.test
    levels = [Image.open(image.path).getpixel((0, 0)) for image in sample.images]
    assert levels == [40, 120, 80]
    (warning,) = [one for one in data.warnings if one.code == "data.images_not_shown"]
    assert "3 of 4 images" in warning.rule


def test_an_image_of_mmmu_is_never_shown_for_the_number_of_an_empty_column(tmp_path: Path) -> None:
    images = {f"image_{place}": png(40 * place) for place in (2, 3, 4)}
    write_mmmu_row(tmp_path, images, "Which is it?", ["<image 2>", "<image 3>"])
    with raises(DataError, "data.too_many_unusable_rows") as caught:
        load_data(benchmark_recipe("mmmu", tmp_path, "tiny"), TASKS["mcq"])
    assert "data.image_placeholders_mismatch" in str(caught.error)
