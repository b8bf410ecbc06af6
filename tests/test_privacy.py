"""Names of patients are planted in ids, paths, columns and DICOM. No message, log or result has them."""

import base64
import json
import logging
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from tests.helpers.cli import call
from tests.helpers.problems import warnings_in
from toolkit.data.loading import load_data
from toolkit.errors import DataError, ImageError, RowProblem
from toolkit.identifiers import FILE, hidden_id, identifiers_in, name_parts, shown_cell
from toolkit.images import ImagePolicy, load
from toolkit.images.ref import ImageRef
from toolkit.pipeline.prepare_data import inspect_data
from toolkit.recipe import load_recipe
from toolkit.runfolder import no_progress
from toolkit.runfolder.logs import logging_to
from toolkit.tasks import TASKS

PARTS = ("Zebrowski", "Quentin", "19410203", "MRN7731", "Wacław")
FOLDER = "Zebrowski_Quentin_19410203"
NAME = "Zebrowski^Quentin"
PRODUCTS = ("predictions*.jsonl", "baseline/*.json", FILE, "images.parquet", "report.html")
REPORTS = ("report.md", "report.json", "public.html")

Row = dict[str, Any]


def forms(part: str) -> list[str]:
    """Return a text in lower case as it is, in a URL, escaped, in hexadecimal, and in base64 at each offset."""
    data = part.encode()
    coded = [base64.b64encode(b"x" * shift + data)[shift + (shift > 0) :].decode()[:-4] for shift in range(3)]
    found = [part, quote(part), part.encode("unicode_escape").decode(), data.hex(), *coded]
    return [one.lower() for one in found if len(one) > 4]


FORMS = tuple(dict.fromkeys(form for part in PARTS for form in forms(part)))


def assert_no_name(text: str, place: str) -> None:
    lower = text.lower()
    found = [form for form in FORMS if form in lower]
    lines = [line for line in text.splitlines() if any(form in line.lower() for form in found)]
    assert not found, f"{place}: {lines[:3]}"


def save_image(file: Path, number: int, size: int = 64) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (size, size), np.uint8)).save(file)


def path_of(number: int) -> str:
    return f"images/{FOLDER}{number // 2}/Zebrowski_{number}.png"


def row(number: int) -> Row:
    return {
        "id": f"MRN7731-{number}",
        "patient_id": f"MRN7731{number // 2:03}",
        "patient_name": f"{NAME}{number // 2}",
        "image": path_of(number),
        "question": f"Is there an effusion in image {number} of {NAME}?",
        "answer": "yes" if number % 2 else "no",
    }


def plant(folder: Path, count: int = 12) -> list[Row]:
    rows = [row(number) for number in range(count)]
    for number in range(count):
        save_image(folder / path_of(number), number)
    return rows


RECIPE = """
[run]
name = "planted"
folder = "runs"
[model]
name = "tiny"
[data]
task = "{task}"
{data}
[images]
max_side = 64
[sft]
max_steps = 1
[evaluate]
max_completion_tokens = 4
bootstrap = 100
"""


def recipe(folder: Path, data: str, task: str = "vqa") -> str:
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(task=task, data=data), encoding="utf-8")
    return str(file)


Fault = Callable[[list[Row], Path], None]
"""Changes the rows or their files."""


def change(number: int, **values: Any) -> Fault:
    return lambda rows, _: rows[number].update(values)


def remove_image(rows: list[Row], folder: Path) -> None:
    (folder / path_of(3)).unlink()


def damage_image(rows: list[Row], folder: Path) -> None:
    (folder / path_of(3)).write_bytes(b"Zebrowski Quentin is no image")


def truncate_image(rows: list[Row], folder: Path) -> None:
    file = folder / path_of(3)
    file.write_bytes(file.read_bytes()[:-200])


def empty_image(rows: list[Row], folder: Path) -> None:
    (folder / path_of(3)).write_bytes(b"")


def link_out(rows: list[Row], folder: Path) -> None:
    outside = folder.parent / "Zebrowski_outside.png"
    save_image(outside, 1)
    (folder / path_of(3)).unlink()
    (folder / path_of(3)).symlink_to(outside)


def move_image(rows: list[Row], folder: Path) -> None:
    rows[3]["image"] = "images/Zebrowski_3.png"


def change_case(rows: list[Row], folder: Path) -> None:
    rows[3]["image"] = rows[3]["image"].upper().replace(".PNG", "")


def repeat_id(rows: list[Row], folder: Path) -> None:
    rows[4]["id"] = rows[3]["id"]


def contradict(rows: list[Row], folder: Path) -> None:
    rows.append({**rows[3], "id": "MRN7731-again", "answer": "no"})


def make_tiny(rows: list[Row], folder: Path) -> None:
    save_image(folder / path_of(3), 3, size=8)


FAULTS: dict[str, tuple[str, Fault]] = {
    "answer_is_object": ("data.value_not_text", change(3, answer={"name": NAME})),
    "question_missing": ("data.question_missing", change(3, question="")),
    "question_is_list": ("data.value_not_text", change(3, question=[NAME])),
    "answer_missing": ("data.answer_missing", change(3, answer=None)),
    "control_character": ("data.control_character", change(3, question=f"{NAME}\0?")),
    "half_surrogate": ("data.text_not_unicode", change(3, question=f"{NAME}\ud800?")),
    "lost_character": ("data.character_lost", change(3, question=f"{NAME} \ufffd?")),
    "json_in_text": ("data.text_is_json", change(3, question=json.dumps([NAME]))),
    "reasoning_in_answer": ("tasks.vqa.reasoning_in_answer", change(3, answer=f"<think>{NAME}</think> yes")),
    "image_object": ("data.image_object_without_path", change(3, image={"name": NAME})),
    "image_number_list": ("data.image_path_missing", change(3, image=["", f"{FOLDER}/a.png"])),
    "image_is_url": ("data.image_is_url", change(3, image="https://pacs.example/Zebrowski_Quentin.png")),
    "image_outside": ("data.image_outside_root", change(3, image="../../Zebrowski_3.png")),
    "image_absolute": ("data.image_outside_root", change(3, image="/mnt/Zebrowski/Zebrowski_3.png")),
    "too_many_images": ("data.too_many_images", change(3, image=[f"images/{FOLDER}/{n}.png" for n in range(20)])),
    "image_missing": ("images.missing", remove_image),
    "image_elsewhere": ("images.in_other_folder", move_image),
    "image_damaged": ("images.format_unknown", damage_image),
    "image_truncated": ("images.truncated", truncate_image),
    "image_empty": ("images.file_empty", empty_image),
    "image_linked_out": ("images.outside_root", link_out),
    "image_case": ("data.image_suffix_added", change_case),
    "image_tiny": ("images.smaller_than_patch", make_tiny),
    "id_repeated": ("data.ids_repeated", repeat_id),
    "answers_differ": ("data.answers_differ", contradict),
    "special_token": ("data.special_token_in_text", change(3, question=f"{NAME} <image_soft_token>?")),
    "placeholder": ("data.image_placeholders_mismatch", change(3, question=f"{NAME} <image 1> <image 2>?")),
}


def codes_of(file: str) -> set[str]:
    """Return the codes of everything that data inspect reports."""
    try:
        data, scan, _ = inspect_data(load_recipe(file, tasks=TASKS), no_progress)
    except DataError as error:
        return {error.code}
    found = {*(one.code for one in data.warnings), *(one.code for one in data.dropped)}
    found |= {one.code for one in scan.notes}
    return found | {bad.error.code for bad in scan.bad}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_problem_of_a_row_names_its_row_and_no_patient(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, fault = FAULTS[kind]
    rows = plant(tmp_path)
    fault(rows, tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    file = recipe(tmp_path, f'train = "{tmp_path}/train.json"\nsplit = {{ test = 0.3 }}\nmax_dropped = 0.9')
    call(["data", "inspect", file])
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert_no_name(text, kind)
    if kind != "special_token":  # a run reports it when it counts tokens
        assert code in codes_of(file)
        assert "row 3" in text or "row 4" in text, text


def write_json(folder: Path, name: str, value: Any) -> str:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return f'train = "{folder / name}"'


def broken_json(folder: Path) -> str:
    text = json.dumps(plant(folder))
    (folder / "train.json").write_text(text[:100] + text[104:], encoding="utf-8")
    return f'train = "{folder}/train.json"'


def cut_json(folder: Path) -> str:
    (folder / "train.json").write_text(json.dumps(plant(folder))[:-40], encoding="utf-8")
    return f'train = "{folder}/train.json"'


def broken_lines(folder: Path) -> str:
    lines = [json.dumps(one) for one in plant(folder)]
    lines[3] = lines[3].replace('"patient_name":', '"patient_name"')
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return f'train = "{folder}/train.jsonl"'


def lines_not_utf8(folder: Path) -> str:
    lines = [json.dumps({**one, "patient_name": "Wacław Zebrowski"}, ensure_ascii=False) for one in plant(folder)]
    (folder / "train.jsonl").write_bytes("\n".join(lines).encode("cp1250"))
    return f'train = "{folder}/train.jsonl"'


def key_twice(folder: Path) -> str:
    lines = [json.dumps(one) for one in plant(folder)]
    lines[3] = lines[3].replace('"answer"', '"patient_name": "Zebrowski", "answer"')
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return f'train = "{folder}/train.jsonl"'


def table(folder: Path, change: Callable[[str], str] = str, name: str = "train.csv", separator: str = ",") -> str:
    rows = plant(folder)
    lines = [separator.join(rows[0]), *(separator.join(map(str, one.values())) for one in rows)]
    (folder / name).write_text(change("\n".join(lines)), encoding="utf-8")
    return f'train = "{folder / name}"'


def table_without_header(folder: Path) -> str:
    return table(folder, lambda text: text.partition("\n")[2])


def table_with_another_cell(folder: Path) -> str:
    return table(folder, lambda text: text.replace("3 of Zebrowski", "3, of Zebrowski"))


def table_with_open_quote(folder: Path) -> str:
    return table(folder, lambda text: text.replace("images/Zebrowski", '"images/Zebrowski', 1))


def table_not_utf8(folder: Path) -> str:
    table(folder)
    (folder / "train.csv").write_bytes((folder / "train.csv").read_text().replace("Quentin", "Wacław").encode("cp1250"))
    return f'train = "{folder}/train.csv"'


def text_table_irregular(folder: Path) -> str:
    return table(folder, lambda text: text.replace("3 of Zebrowski", "3 | of Zebrowski"), "train.txt", "|")


def damaged_parquet(folder: Path) -> str:
    import pandas

    pandas.DataFrame(plant(folder)).to_parquet(folder / "train.parquet")
    data = bytearray((folder / "train.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"Zebrowski" * 4 + b"Zebr"
    (folder / "train.parquet").write_bytes(data)
    return f'train = "{folder}/train.parquet"'


def column_missing(folder: Path) -> str:
    return write_json(folder, "train.json", [{**one, "answer": None, NAME: 1} for one in plant(folder)]) + (
        '\ncolumns = { answer = "responses" }'
    )


def json_by_name(folder: Path) -> str:
    return write_json(folder, "train.json", {f"{NAME}{n}": [one["question"]] for n, one in enumerate(plant(folder))})


def records_not_objects(folder: Path) -> str:
    return write_json(folder, "train.json", [*plant(folder), "Zebrowski", [NAME]])


def filter_without_match(folder: Path) -> str:
    return write_json(folder, "train.json", plant(folder)) + '\nfilter = { patient_name = "Smith" }'


def leak(folder: Path) -> str:
    rows = plant(folder)
    write_json(folder, "test.json", rows[:6])
    return write_json(folder, "train.json", rows) + f'\ntest = "{folder}/test.json"'


def leak_dropped(folder: Path) -> str:
    return leak(folder).replace("train.json", "train.json", 1) + '\non_leak = "drop"'


def leak_reported(folder: Path) -> str:
    return leak(folder) + '\non_leak = "report"'


def patients_not_grouped(folder: Path) -> str:
    rows = [{**one, "case_name": NAME} for one in plant(folder)]
    return write_json(folder, "train.json", rows) + "\nsplit = { test = 0.4 }"


def group_missing(folder: Path) -> str:
    rows = plant(folder)
    rows[3]["patient_name"] = [NAME]
    return write_json(folder, "train.json", rows) + '\ngroup = "patient_name"'


def conversations(folder: Path) -> str:
    def turns(number: int, **more: Any) -> Row:
        says = [{"from": "human", "value": f"<image>\nWhat has {NAME}?"}, {"from": "gpt", "value": NAME}]
        return {"id": f"MRN7731-{number}", "image": path_of(number), "conversations": says, **more}

    plant(folder)
    faults: list[Row] = [
        {"conversations": NAME},
        {"conversations": [{"from": NAME, "value": "x"}]},
        {"conversations": [{"from": "human", "value": NAME}, {"from": "gpt", "value": [NAME]}]},
        {"image": [path_of(1), path_of(2)]},
        {"image": {"path": 5, "name": NAME}},
        {"image": f"https://pacs/{FOLDER}.png"},
        {"images": [path_of(5)]},
        {"video": f"{FOLDER}.mp4"},
        {"answer": f"{NAME} is well"},
    ]
    rows = [*(turns(n) for n in range(6)), *(turns(6, **one) for one in faults)]
    return write_json(folder, "train.json", rows) + "\nmax_dropped = 0.9"


SOURCES = (
    *(broken_json, cut_json, broken_lines, lines_not_utf8, key_twice, table_without_header, table_with_another_cell),
    *(table_with_open_quote, table_not_utf8, text_table_irregular, damaged_parquet, column_missing, json_by_name),
    *(records_not_objects, filter_without_match, leak, leak_dropped, leak_reported, patients_not_grouped),
    *(group_missing, conversations),
)


@pytest.mark.parametrize("source", SOURCES)
def test_an_error_of_a_source_has_no_text_of_it(
    source: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = source(tmp_path)
    file = recipe(tmp_path, data)
    code = call(["data", "inspect", file])
    printed = capsys.readouterr()
    assert_no_name(printed.out + printed.err, source.__name__)
    assert code or "for example" in printed.out or "unusable" in printed.out


def voc(folder: Path, number: int, body: str) -> None:
    save_image(folder / f"JPEGImages/{FOLDER}{number}.png", number)
    file = folder / f"Annotations/{FOLDER}{number}.xml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"<annotation>{body}</annotation>", encoding="utf-8")


def voc_folder(folder: Path) -> str:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    size = "<size><width>64</width><height>64</height></size>"
    for number in range(6):
        name = f"<filename>{FOLDER}{number}.png</filename>"
        voc(folder, number, f"{name}{size}<object><name>mass</name>{box}</object>")
    voc(folder, 6, f"<object><name>{NAME}</name>")
    voc(folder, 7, f"{size}<object><name>mass</name>{box}</object>")
    voc(folder, 8, f"<filename>{FOLDER}8.png</filename>{size}<object><name>{NAME}</name></object>")
    return f'train = "{folder}"\nmax_dropped = 0.9'


def yolo_folder(folder: Path) -> str:
    lines = ["0 0.5 0.5 0.2 0.2"] * 6 + [f"{NAME} 0.5 0.5 0.2 0.2", "7 0.5 0.5 0.2 0.2", "0 0.5"]
    for number, line in enumerate(lines):
        save_image(folder / f"images/train/{FOLDER}{number}.png", number)
        file = folder / f"labels/train/{FOLDER}{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(line, encoding="utf-8")
    save_image(folder / f"images/train/{FOLDER}9.png", 9)
    (folder / f"labels/train/{FOLDER}_lost.txt").write_text("0 0.5 0.5 0.2 0.2", encoding="utf-8")
    (folder / "data.yaml").write_text("names: [mass]\n", encoding="utf-8")
    return f'train = "{folder}"\nmax_dropped = 0.9'


def coco_file(folder: Path) -> str:
    images = [{"id": f"{FOLDER}{n}", "file_name": path_of(n), "width": 64, "height": 64} for n in range(9)]
    boxes: list[Any] = [[1, 1, 20, 20]] * 6 + [["Zebrowski", 1, 2, 3], [1, 1, 20], NAME]
    found = [
        {"id": f"{NAME}{n}", "image_id": f"{FOLDER}{n}", "category_id": 1, "bbox": box} for n, box in enumerate(boxes)
    ]
    found.append({"id": NAME, "image_id": "Zebrowski_lost", "category_id": 1, "bbox": [1, 1, 2, 2]})
    plant(folder)
    content = {"images": [*images, NAME], "annotations": found, "categories": [{"id": 1, "name": "mass"}]}
    return write_json(folder, "train.json", content) + "\nmax_dropped = 0.9"


def box_table(folder: Path) -> str:
    plant(folder)
    lines = ["image,label,x_min,y_min,x_max,y_max,reader"]
    lines += [f"{path_of(n)},mass,1,1,{20 + n},20,Quentin" for n in range(8)]
    lines += [
        f"{path_of(8)},mass,{NAME},1,20,20,Zebrowski",
        f"{path_of(9)},,1,1,20,20,x",
        f"{path_of(1)},mass,9,9,30,30,b",
    ]
    (folder / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    return f'train = "{folder}/train.csv"\nmax_dropped = 0.9'


def boxes_of_no_format(folder: Path) -> str:
    plant(folder)
    rows = [
        {"id": f"{FOLDER}{n}", "image": path_of(n), "labels": ["mass"], "boxes": [[500, 1, 2, 9000]]} for n in range(12)
    ]
    return write_json(folder, "train.json", rows)


def image_repeated(folder: Path) -> str:
    plant(folder)
    rows = [
        {"id": f"{FOLDER}{n}", "image": path_of(1), "labels": ["mass"], "boxes": [[1, 1, 30, 30 + n]]}
        for n in range(12)
    ]
    write_json(folder, "test.json", [{**rows[0], "image": path_of(5)}])
    return write_json(folder, "train.json", rows) + f'\nboxes = "xyxy"\ntest = "{folder}/test.json"'


def box_outside(folder: Path) -> str:
    plant(folder)
    rows = [
        {"id": f"{FOLDER}{n}", "image": path_of(n), "labels": ["mass"], "boxes": [[1, 1, 30, 900 if n == 3 else 30]]}
        for n in range(12)
    ]
    return write_json(folder, "train.json", rows) + '\nboxes = "xyxy"\nmax_dropped = 0.9'


@pytest.mark.parametrize(
    "source", [voc_folder, yolo_folder, coco_file, box_table, boxes_of_no_format, image_repeated, box_outside]
)
def test_an_error_of_a_detection_dataset_names_no_file_and_no_text_of_it(
    source: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, source(tmp_path), "detect")
    code = call(["data", "inspect", file])
    printed = capsys.readouterr()
    assert_no_name(printed.out + printed.err, source.__name__)
    assert code or "for example" in printed.out
    assert any(
        word in printed.out + printed.err for word in ("row 3", "annotations[", " in order of ", "row 8", "row 0")
    )


def test_a_value_is_shown_if_it_is_a_number_or_a_short_text_and_no_name() -> None:
    shown: list[object] = ["E", "yes", 7, True, None, [1, 2.5], "basal cell carcinoma", {"a": 1}, "[1, 2, 3]"]
    for value in shown:
        assert shown_cell(value) is value
    hidden: list[object] = [
        NAME,
        "Zebrowski, Quentin",
        FOLDER,
        "1941-02-03",
        "a" * 25,
        ["no", NAME],
        {"name": NAME},
    ]
    for value in hidden:
        assert shown_cell(value) is not value
        assert "Zebrowski" not in repr(shown_cell(value))
    assert repr(shown_cell("E", ["e"])) == "text of 1 characters"
    assert repr(shown_cell("zebrowski has it", name_parts([f"images/{FOLDER}/1.png"]))) == "text of 16 characters"
    assert shown_cell(12, name_parts([12, "images/12.png"])) == 12


def test_a_deeply_nested_value_is_described() -> None:
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    assert str(shown_cell(deep)) == "list of 1 value"
    assert shown_cell([[[1]]]) == [[[1]]]


def test_hashes_need_the_key_of_the_run_and_the_file_has_the_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with identifiers_in(tmp_path / "a" / FILE, fail, fail):
        first, again = hidden_id(NAME), hidden_id(NAME)
    with identifiers_in(tmp_path / FILE, fail, fail):
        other = hidden_id(NAME)
    with identifiers_in(tmp_path / "a" / FILE, fail, fail):
        resumed = hidden_id(NAME)
    assert first == again == resumed != other
    assert first.startswith("id-")
    assert json.loads((tmp_path / "a" / FILE).read_text(encoding="utf-8"))["names"] == {first: NAME}
    assert mode(tmp_path / "a" / FILE) == 0o600


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 99999,
        '{"key": "00"}',
        '{"key": "", "names": {}}',
        '{"key": "0", "names": {}}',
        '{"key": "%s", "names": {}}' % ("00" * 65),
        '{"key": "00", "names": {"a": 7}}',
        '{"key": 7, "names": {}}',
    ],
)
def test_a_damaged_file_of_names_is_kept_and_reported(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with logging_to(tmp_path / "log.txt"):
        hidden = hidden_id(NAME)
    assert [problem.code for problem in warnings_in(caplog)] == ["run.identifiers_damaged"]
    assert (tmp_path / f"{FILE}.old-1").read_text(encoding="utf-8") == text
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8"))["names"] == {hidden: NAME}


def test_names_that_cannot_be_stored_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with logging_to(folder / "log.txt"):
        folder.rename(tmp_path / "moved")
        for number in range(3):
            hidden_id(f"{NAME} {number}")
    assert [problem.code for problem in warnings_in(caplog)] == ["run.identifiers_not_written"]


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_errors_of_images_and_rows_have_no_path_and_no_text(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for content in (None, b"", b"Zebrowski", b"\x89PNG\r\n\x1a\n Zebrowski"):
        file = tmp_path / FOLDER / "Zebrowski.png"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ImageError) as caught:
            load(ImageRef(file), ImagePolicy())
        assert_no_name(str(caught.value), "image")
        assert caught.value.path == file
        assert caught.value.at("train.json, row 3, image 1").place == "train.json, row 3, image 1"
    problem = RowProblem("data.answer_missing", "the row must have an answer", value={"name": NAME})
    assert_no_name(str(problem) + json.dumps(problem.problem.to_json()), "row")
    assert problem.cell == {"name": NAME}


def test_warnings_logs_and_tracebacks_of_libraries_have_no_quoted_text_and_no_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    file = tmp_path / "log.txt"
    with logging_to(file), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"Invalid value for VR PN: '{NAME}'", UserWarning, stacklevel=1)
        warnings.warn(f"cannot open /data/{FOLDER}/1.png", UserWarning, stacklevel=1)
        logging.getLogger("pydicom").warning("Value '%s' is too long", NAME)
        try:
            try:
                {}[NAME]  # type: ignore[index]
            except KeyError as error:
                raise OSError(f"cannot identify image file '/data/{FOLDER}/1.png'") from error
        except OSError as error:
            logging.getLogger("toolkit").debug("stopped by an unexpected error", exc_info=error)
            sys.excepthook(OSError, error, error.__traceback__)
    text = file.read_text(encoding="utf-8")
    assert_no_name(text, "log.txt")
    assert_no_name(capsys.readouterr().err, "stderr")
    for part in ("Invalid value for VR PN", "cannot open …", "is too long", "cannot identify image file", "KeyError"):
        assert part in text
    assert mode(file) == 0o600


def test_dicom_elements_are_in_no_error_and_no_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    messages = []
    with logging_to(tmp_path / "log.txt"), warnings.catch_warnings():
        warnings.simplefilter("always")
        data = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
        data.PatientName, data.PatientID, data.StudyDate = NAME, f"MRN7731-{'x' * 80}", "Zebrowski"
        data.save_as(tmp_path / f"{FOLDER}.dcm")
        data.add_new("RescaleSlope", "LO", NAME)
        data.save_as(tmp_path / f"{FOLDER}_slope.dcm")
        data.PixelData = b"Zebrowski "
        data.save_as(tmp_path / f"{FOLDER}_short.dcm")
        for file in sorted(tmp_path.glob("*.dcm")):
            try:
                load(ImageRef(file), ImagePolicy())
            except ImageError as error:
                messages.append(str(error))
    assert len(messages) == 2
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "Invalid value for VR DA" in log
    assert_no_name("".join(messages) + log + capsys.readouterr().err, "DICOM")


@pytest.mark.parametrize(
    "column", ["patient_name", "name", "patient_id", "MRN", "id", "question", "image", "accession_number"]
)
def test_results_are_not_reported_by_a_column_with_identifiers(column: str, tmp_path: Path) -> None:
    rows = [
        {**one, "name": one["patient_name"], "MRN": f"MRN7731-{n}", "accession_number": n}
        for n, one in enumerate(plant(tmp_path))
    ]
    file = recipe(tmp_path, write_json(tmp_path, "train.json", rows) + "\nsplit = { test = 0.3 }")
    with pytest.raises(DataError) as caught:
        load_data(load_recipe(file, [f'evaluate.by=["{column}"]'], tasks=TASKS), TASKS["vqa"])
    assert [one.code for one in caught.value.problems] == ["evaluate.by_identifies"]
    assert caught.value.problems[0].value == column


@pytest.mark.parametrize(("values", "rejected"), [(20, False), (21, True)])
def test_results_are_not_reported_by_a_column_with_a_value_for_most_rows(
    values: int, rejected: bool, tmp_path: Path
) -> None:
    save_image(tmp_path / "a.png", 1)
    save_image(tmp_path / "b.png", 2)
    rows = [
        {"image": "ab"[n % 2] + ".png", "question": f"q{n}", "answer": "yes", "who": f"w{n % values}"}
        for n in range(40)
    ]
    file = recipe(tmp_path, write_json(tmp_path, "train.json", rows) + "\nsplit = { test = 0.3 }")
    loaded = load_recipe(file, ['evaluate.by=["who"]'], tasks=TASKS)
    if not rejected:
        load_data(loaded, TASKS["vqa"])
        return
    with pytest.raises(DataError) as caught:
        load_data(loaded, TASKS["vqa"])
    assert caught.value.code == "evaluate.by_identifies"


RUN = """
[run]
name = "planted"
folder = "{folder}/runs"
[model]
name = "tiny"
max_tokens = 512
[data]
task = "vqa"
train = "{folder}/train.json"
test = "{folder}/test.json"
on_leak = "drop"
group = "patient_id"
max_dropped = 0.9
[images]
max_side = 64
unreadable = "skip"
[sft]
max_steps = 2
batch_size = 2
accumulation = 1
[grpo]
max_steps = 1
prompts_per_step = 2
generations = 2
micro_batch = 2
max_completion_tokens = 8
probe_prompts = 0
[evaluate]
max_completion_tokens = 4
bootstrap = 100
[export]
to = ["adapter"]
"""

PRIVATE_FILES = (
    "baseline/*.json",
    "predictions*.jsonl",
    "log.txt",
    "plan.json",
    "images.parquet",
    FILE,
    "report.html",
    "probabilities*.jsonl",
)


@pytest.mark.slow
def test_a_run_and_the_commands_after_it_name_no_patient(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], private_cache: Path
) -> None:
    rows = plant(tmp_path, 24)
    for number in (3, 20):
        rows[number]["answer"] = {"name": NAME}
    damage_image(rows, tmp_path)
    (tmp_path / path_of(4)).write_bytes(b"Zebrowski Quentin is no image")
    (tmp_path / path_of(18)).write_bytes(b"Zebrowski Quentin is no image")
    write_json(tmp_path, "train.json", rows[:16])
    write_json(tmp_path, "test.json", rows[14:])
    file = tmp_path / "recipe.toml"
    file.write_text(RUN.format(folder=tmp_path), encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"id": "MRN7731-2", "completion": "no"}) + "\n" + json.dumps({"id": "MRN7731-1", "completion": "?"})
    )
    (tmp_path / "wrong.jsonl").write_text(json.dumps({"id": "MRN7731-999", "completion": f"{NAME}"}) + "\n")
    run = tmp_path / "runs" / "planted"
    commands = {
        "inspect": ["data", "inspect", str(file)],
        "plan": ["plan", str(file)],
        "run": ["run", str(file)],
        "evaluate": ["evaluate", str(run), "--name", "more"],
        "predict": ["predict", str(run), "--data", f"{tmp_path}/test.json", "--out", f"{tmp_path}/out.csv"],
        "predict a folder": ["predict", str(run), "--data", f"{tmp_path}/images", "--question", "Is it normal?"],
        "export": ["export", str(run), "--to", "merged"],
        "report": ["report", str(run), "--out", f"{tmp_path}/report.md"],
        "report as JSON": ["report", str(run), "--out", f"{tmp_path}/report.json"],
        "report to publish": ["report", str(run), "--no-examples", "--out", f"{tmp_path}/public.html"],
        "reward test": ["reward", "test", str(file), f"{tmp_path}/lines.jsonl"],
        "reward test of unknown ids": ["reward", "test", str(file), f"{tmp_path}/wrong.jsonl"],
    }
    commands["predict a folder"] += ["--out", f"{tmp_path}/folder.csv"]
    failing = {"reward test of unknown ids"}
    for name, command in commands.items():
        code = call(command)
        printed = capsys.readouterr()
        assert_no_name(printed.out + printed.err, name)
        assert (code != 0) == (name in failing), printed.err
    files = [one for one in [*run.rglob("*"), *(tmp_path / name for name in REPORTS)] if one.is_file()]
    for one in files:
        if one.suffix not in (".safetensors", ".pt", ".bin") and not any(map(one.match, PRODUCTS)):
            assert_no_name(one.read_bytes().decode("utf-8", "replace"), str(one.relative_to(tmp_path)))
    for one in files:
        if any(map(one.match, PRIVATE_FILES)):
            assert mode(one) == 0o600, one
    assert {mode(one) for one in (tmp_path / "out.csv", tmp_path / "folder.csv")} == {0o600}
    stored = {mode(one) for one in private_cache.rglob("*") if one.is_file() and one.name != ".tidied"}
    assert stored == {0o600}
    shown = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image/" in shown
    assert not [part for part in ("MRN7731", FOLDER, str(tmp_path)) if part in shown]
    results = (run / "results.json").read_text(encoding="utf-8")
    assert "row 3: object with 1 key" in results
