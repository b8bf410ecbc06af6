"""Formats of rows are recognized by content, and each gives the rows that its own library or paper describes."""

import base64
import csv
import gzip
import io
import json
import os
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe
from toolkit.data import open_index
from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.formats import FORMATS, Look, row_file
from toolkit.data.formats.containers import container_of
from toolkit.data.formats.plain import PLAIN
from toolkit.data.formats.row_file import RowFile
from toolkit.data.formats.tables import read_table
from toolkit.data.index import code_digest
from toolkit.data.split_sources import recipe_sources
from toolkit.errors import DataError
from toolkit.recipe import Recipe


def write(file: Path, content: object) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(file)


def qa(number: int, **more: Any) -> dict[str, Any]:
    return {"image": f"{number}.png", "question": f"Question {number}?", "answer": "yes", **more}


def png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), grey).save(stream, "PNG")
    return stream.getvalue()


def recipe(task: str = "vqa", **data: Any) -> Recipe:
    return make_recipe({"run": {"name": "x"}, "data": {"task": task, **data}})


def look(path: Path) -> Look:
    return Look(path, container_of(path))


def test_the_index_keeps_the_name_of_the_format(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", '{"question": "q"}\n')
    for _ in range(2):
        assert open_index(source).description == f"{source}: JSON lines, 1 row"


def test_names_of_formats_are_unique_and_documented_with_an_example() -> None:
    assert len({one.name for one in FORMATS}) == len(FORMATS)
    text = (Path(__file__).parent.parent / "docs" / "reference" / "data_formats.md").read_text(encoding="utf-8")
    for one in FORMATS:
        if one is not PLAIN:
            assert re.search(rf"(\*\*|## ){re.escape(one.name)}\b.*?```", text, re.DOTALL), one.name


def test_a_look_has_the_first_members_of_an_object_and_the_first_elements_of_its_lists(tmp_path: Path) -> None:
    content = {"info": {"year": 1}, "images": [{"id": i} for i in range(50_000)], "annotations": [{"id": 1}]}
    seen = look(Path(write(tmp_path / "coco.json", content))).members
    assert seen["info"] == {"year": 1}
    assert seen["images"] == [{"id": i} for i in range(20)]
    assert look(Path(write(tmp_path / "list.json", [content]))).members == {}
    assert look(Path(write(tmp_path / "cut.json", '{"a": 1, "b": [{"x": 1}, {"x"'))).members == {
        "a": 1,
        "b": [{"x": 1}],
    }


def test_a_json_object_of_splits_gives_its_splits(tmp_path: Path) -> None:
    content = {"train": [qa(i) for i in range(6)], "val": [qa(6)], "test": [qa(7), qa(8)], "version": 1}
    source = write(tmp_path / "annotation.json", content)
    data = load_data(recipe(train=source))
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 1, 2)
    assert data.test[0].fields["question"] == "Question 7?"
    assert [(one.code, one.place) for one in data.warnings] == [
        ("data.split_of_source", "validation"),
        ("data.split_of_source", "test"),
    ]
    assert data.sources[0] == f"{source}#train: JSON object of splits, split train, 6 rows"
    assert len(load_data(recipe(train=f"{source}#test", split={"test": 0.5})).train) == 1
    with raises(DataError, "data.split_unknown") as caught:
        load_data(recipe(train=f"{source}#dev"))
    assert caught.problem.value == "dev"


def test_a_source_without_the_split_of_its_key_is_an_error(tmp_path: Path) -> None:
    only_test = write(tmp_path / "a.json", {"test": [qa(1)]})
    with raises(DataError, "data.split_not_certain") as caught:
        load_data(recipe(train=only_test))
    assert caught.problem.value == ["test"]
    twice = write(tmp_path / "b.json", {"train": [qa(1)], "val": [qa(2)], "dev": [qa(3)]})
    with raises(DataError, "data.split_not_certain") as caught:
        load_data(recipe(train=twice))
    assert caught.problem.value == ["train", "val", "dev"]


def test_files_named_by_split_in_a_folder_are_its_splits(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.jsonl", json.dumps(qa(1)))
    write(tmp_path / "train-00001-of-00002.jsonl", json.dumps(qa(2)))
    write(tmp_path / "valid.csv", "image,question,answer\n3.png,Q?,yes\n")
    data = load_data(recipe(train=str(tmp_path), split={"test": 0}))
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 0)
    assert data.validation[0].images[0].path == tmp_path / "3.png"


def test_a_list_beside_the_splits_is_not_left_out_silently(tmp_path: Path) -> None:
    content = {"train": [qa(i) for i in range(15_000)], "extra": [qa(1)]}
    with raises(DataError, "data.json_list_beside_splits") as caught:
        load_data(recipe(train=write(tmp_path / "rows.json", content)))
    assert caught.problem.value == "extra"


@pytest.mark.parametrize(
    ("filters", "kept"),
    [({"q_lang": "en"}, [0, 2]), ({"q_lang": ["en", "zh"], "n": 1}, [1]), ({"q_lang": ["en"], "n": (0, 2)}, [0, 2])],
)
def test_a_filter_keeps_rows_with_exactly_its_values(tmp_path: Path, filters: Any, kept: list[int]) -> None:
    rows = [qa(0, q_lang="en", n=0), qa(1, q_lang="zh", n=1), qa(2, q_lang="en", n=2), qa(3, q_lang="de", n="1")]
    source = write(tmp_path / "rows.json", rows)
    index = open_index(source, chosen=filters)
    assert [row["n"] for _, row in index] == kept
    assert f"{len(kept)} of 4 rows have q_lang = " in index.description
    assert len(open_index(source)) == 4


@pytest.mark.parametrize(
    ("filters", "code", "value"),
    [
        ({"q_lan": "en"}, "data.filter_column_missing", "q_lan"),
        ({"q_lang": ["fr", "es"]}, "data.filter_value_missing", "fr"),
        ({"n": "1"}, "data.filter_value_missing", "1"),
    ],
)
def test_a_filter_of_a_column_or_value_that_no_row_has_is_an_error(
    tmp_path: Path, filters: Any, code: str, value: object
) -> None:
    source = write(tmp_path / "rows.json", [qa(0, q_lang="en", n=1), qa(1, q_lang="zh", n=2)])
    with raises(DataError, code) as caught:
        load_data(recipe(train=source, filter=filters))
    assert caught.problem.value == value


def test_a_filter_of_a_column_of_lists_says_so(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", [qa(1, tags=["a"]), qa(2, tags=["a", "b"])])
    with raises(DataError, "data.filter_value_missing") as caught:
        load_data(recipe(train=source, filter={"tags": "a"}))
    assert "lists or objects: ['a']" in caught.problem.remedy


def test_a_value_of_a_filter_that_no_row_has_is_reported(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", [qa(0, q_lang="en"), qa(1, q_lang="zh")])
    index = open_index(source, chosen={"q_lang": ["en", "fr"]})
    (note,) = index.metadata.noted
    assert (len(index), note.code, note.examples) == (1, "data.filter_value_missing", ("q_lang = fr",))


def test_an_object_with_one_list_of_objects_gives_the_rows_of_the_list(tmp_path: Path) -> None:
    content = {"info": {"year": 2021}, "data": [qa(0), qa(1)], "version": 1}
    index = open_index(write(tmp_path / "rows.json", content))
    assert [row for _, row in index] == content["data"]
    assert index.metadata.format == 'JSON, list "data"'
    more = {"data": [qa(n) for n in range(15_000)], "other": [qa(0)]}
    with raises(DataError, "data.json_several_lists") as caught:
        open_index(write(tmp_path / "more.json", more))
    assert caught.problem.value == ["data", "other"]


def test_compressed_files_have_the_same_rows(tmp_path: Path) -> None:
    rows = [qa(i) for i in range(300)]
    texts = {"rows.json": json.dumps(rows), "rows.jsonl": "\n".join(map(json.dumps, rows))}
    texts["rows.csv"] = "image,question,answer\n" + "".join(f"{one['image']},{one['question']},yes\n" for one in rows)
    for name, text in texts.items():
        expected = list(open_index(write(tmp_path / name, text)))
        with gzip.open(tmp_path / f"{name}.gz", "wt") as stream:
            stream.write(text)
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"inner/{name}", text)
            archive.writestr("__MACOSX/._rows.json", "junk")
        assert list(open_index(str(tmp_path / f"{name}.gz"))) == expected
        assert list(open_index(str(tmp_path / f"{name}.zip"))) == expected


def test_images_in_the_zip_of_their_rows_are_kept(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/img/1.png", png(1))
        archive.writestr("set/rows.json", json.dumps([qa(1, image="img/1.png"), qa(2, image="img/none.png")]))
    index = open_index(str(tmp_path / "set.zip"))
    assert index.image_root is not None
    assert (index.image_root / index[0][1]["image"]).read_bytes() == png(1)
    assert index[1][1]["image"] == "img/none.png"


def test_damaged_and_unsafe_archives_are_errors_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "FREE_BYTES", 1 << 16)
    packed = gzip.compress(json.dumps([qa(i) for i in range(100)]).encode())
    (tmp_path / "cut.json.gz").write_bytes(packed[:-200])
    (tmp_path / "not.json.gz").write_bytes(b"[{}]")
    (tmp_path / "not.zip").write_bytes(b"PK nonsense")
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b'[{"x": "' + b" " * (1 << 24) + b'"}]'))
    with zipfile.ZipFile(tmp_path / "outside.zip", "w") as archive:
        archive.writestr("../rows.json", "[]")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.json", "[]")
        archive.writestr("b.json", "[]")
    codes = {
        "cut.json.gz": "archive_damaged",
        "not.json.gz": "archive_damaged",
        "not.zip": "archive_damaged",
        "bomb.json.gz": "archive_bomb",
        "outside.zip": "archive_path_outside",
        "two.zip": "archive_several_files",
    }
    for name, code in codes.items():
        with raises(DataError, f"data.{code}") as caught:
            open_index(str(tmp_path / name))
        assert caught.problem.place.startswith(str(tmp_path / name))
        assert caught.problem.remedy
    assert not (tmp_path.parent / "rows.json").exists()


def test_a_damaged_parquet_file_is_blamed_and_not_the_disk(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["q" * 1000] * 2000}), tmp_path / "good.parquet", compression="none")
    good = (tmp_path / "good.parquet").read_bytes()
    bad_text = pa.table({"question": pa.array([b"\xff\xfe"], pa.binary()).cast(pa.string(), safe=False)})
    pq.write_table(bad_text, tmp_path / "text.parquet")
    (tmp_path / "cut.parquet").write_bytes(good[:-100])
    (tmp_path / "footer.parquet").write_bytes(good[:-60] + b"\xff" * 40 + good[-20:])
    for name in ("text", "cut", "footer"):
        with raises(DataError, "data.parquet_invalid") as caught:
            open_index(str(tmp_path / f"{name}.parquet"))
        assert caught.problem.place == str(tmp_path / f"{name}.parquet")
        assert caught.problem.value
        assert caught.problem.remedy


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("rows.json", '{"question": "a"}\n{"question": "b"}\n', "JSON lines"),
        ("rows.jsonl", '[{"question": "a"},\n {"question": "b"}]', "JSON"),
        ("rows.jsonl", '{\n "x": {"question": "a"},\n "y": {"question": "b"}\n}', "JSON"),
        ("rows.jsonl", '{"question": "a"}\n\n{"question": "b"}', "JSON lines"),
        ("rows.tsv", "question\tn\na\t1\nb\t2\n", "text separated by a tab"),
        ("rows.txt", "id|question\n1|a\n2|b\n", "text separated by |"),
    ],
)
def test_the_content_decides_how_a_file_is_read(tmp_path: Path, name: str, text: str, title: str) -> None:
    index = open_index(write(tmp_path / name, text))
    assert [row["question"] for _, row in index] == ["a", "b"]
    assert index.metadata.format == title


def test_a_text_without_a_header_is_read_as_vqa_med_2019_only_if_it_has_questions(tmp_path: Path) -> None:
    index = open_index(write(tmp_path / "qa.txt", "s1|modality|is this a ct?|yes\ns2|organ|which organ, left?|lung\n"))
    assert index[1][1] == {"image": "s2", "category": "organ", "question": "which organ, left?", "answer": "lung"}
    assert "without a header, read as image, category, question, answer" in index.description
    with raises(DataError, "data.table_without_header") as caught:
        open_index(write(tmp_path / "other.txt", "s1|a|b|c\ns2|d|e|f\n"))
    assert caught.problem.value == "x0|x|x|x"
    with raises(DataError, "data.file_type_unknown"):
        open_index(write(tmp_path / "prose.txt", "Some words.\nMore | words.\n"))
    lines = ["image|question|answer", *["1.png|Is it?|no"] * 20, "2.png|Is it?|yes|maybe"]
    with raises(DataError, "data.text_table_irregular") as caught:
        open_index(write(tmp_path / "irregular.txt", "\n".join(lines)))
    assert caught.problem.value == "0.xxx|xx xx?|xxx|xxxxx"


SINGLE = [{"role": "user", "content": "<image>Is it normal?"}, {"role": "assistant", "content": "Yes."}]
SEVERAL = [*SINGLE, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes, sure."}]
LLAVA_TURNS = [{"from": "human", "value": "<image>Is it normal?"}, {"from": "gpt", "value": "Yes."}]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it normal?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
]
PIXELS = base64.b64encode(png(3)).decode()


def parts_with(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [image, {"type": "text", "text": "Is it normal?"}]}, PARTS[1]]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"conversations": LLAVA_TURNS, "image": "1.png"}, "LLaVA conversations"),
        ({"conversations": LLAVA_TURNS, "image": ["1.png"]}, "LLaVA conversations"),
        (
            {
                "conversations": [{"from": "Human", "value": "<image>Is it normal?"}, LLAVA_TURNS[1]],
                "images": ["1.png"],
            },
            "LLaVA",
        ),
        ({"messages": SINGLE, "images": ["1.png"]}, "messages"),
        ({"messages": PARTS, "images": ["1.png"]}, "messages"),
        ({"messages": PARTS, "image": "1.png"}, "messages"),
        ({"messages": parts_with({"type": "image", "image": "1.png"})}, "messages"),
        ({"messages": parts_with({"type": "image_url", "image_url": {"url": "1.png"}})}, "messages"),
        ({"messages": parts_with({"type": "image_url", "value": "1.png"})}, "messages"),
        ({"messages": parts_with({"type": "image", "url": "file://1.png"})}, "messages"),
        ({"prompt": SINGLE[:1], "completion": SINGLE[1:], "images": ["1.png"]}, "TRL prompt and completion"),
        ({"prompt": "<image>Is it normal?", "completion": "Yes.", "image": "1.png"}, "TRL prompt and completion"),
        ({"query": "<image>Is it normal?", "response": "Yes.", "images": ["1.png"]}, "ms-swift query and response"),
        ({"conversatons": LLAVA_TURNS, "image": "1.png"}, "LLaVA-Med conversatons"),
        (
            {"instruction": "<image>Is it normal?", "input": "", "output": "Yes.", "images": ["1.png"]},
            "LLaMA-Factory instruction and output",
        ),
    ],
)
def test_every_layout_of_a_conversation_has_the_same_row(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    for file, content in (("rows.json", [row]), ("rows.jsonl", json.dumps(row))):
        index = open_index(write(tmp_path / file, content))
        found = index[0][1]
        assert (found["images"], found["messages"]) == (["1.png"], SINGLE)
        assert (found["question"], found["answer"]) == ("Is it normal?", "Yes.")
        assert index.metadata.format.startswith(name)
        assert index.skipped == index.metadata.noted == ()
    data = load_data(recipe(train=write(tmp_path / "rows.json", [row]), split={"test": 0}))
    assert data.train[0].images[0].path == tmp_path / "1.png"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": parts_with({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXELS}"}})},
        {"messages": parts_with({"type": "image", "image": PIXELS})},
        {"messages": parts_with({"type": "image", "source": {"type": "base64", "data": PIXELS}})},
        {"messages": SINGLE, "images": [f"data:image/png;base64,{PIXELS}"]},
    ],
)
def test_images_in_base64_are_kept_as_files(tmp_path: Path, row: dict[str, Any]) -> None:
    index = open_index(write(tmp_path / "rows.json", [row]))
    assert index[0][1]["messages"] == SINGLE
    assert index.image_root is not None
    assert (index.image_root / index[0][1]["images"][0]).read_bytes() == png(3)


def test_messages_in_parquet_have_their_embedded_images(tmp_path: Path) -> None:
    rows = [{"messages": PARTS, "images": [{"bytes": png(3), "path": "x.png"}]}] * 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    index = open_index(str(tmp_path / "rows.parquet"))
    assert [row["messages"] for _, row in index] == [SINGLE, SINGLE]
    assert index.image_root is not None
    assert (index.image_root / index[1][1]["images"][0]).read_bytes() == png(3)


def test_history_and_system_come_before_the_query(tmp_path: Path) -> None:
    row = {"system": "Be brief.", "history": [["<image>A?", "a"]], "query": "B?", "response": "b", "images": ["1.png"]}
    found = open_index(write(tmp_path / "rows.jsonl", json.dumps(row)))[0][1]
    roles = [(one["role"], one["content"]) for one in found["messages"]]
    turns = [("user", "<image>A?"), ("assistant", "a"), ("user", "B?"), ("assistant", "b")]
    assert roles == [("system", "Be brief."), *turns]
    assert "question" not in found


def test_the_input_of_an_instruction_is_a_line_of_the_question(tmp_path: Path) -> None:
    row = {
        "instruction": "<image>Describe.",
        "input": "Age 60.",
        "output": "a",
        "history": [["Q?", "b"]],
        "images": "1",
    }
    index = open_index(write(tmp_path / "rows.json", [row, {**row, "input": ["Age"]}]))
    contents = [one["content"] for one in index[0][1]["messages"]]
    assert contents == ["Q?", "b", "<image>Describe.\nAge 60.", "a"]
    assert [one.code for one in index.skipped] == ["data.conversation_malformed"]
    steps = {"task_id": "t", "instruction": "Open it.", "output": "{}"}
    assert open_index(write(tmp_path / "steps.json", [steps])).metadata.format == "JSON"


def test_another_question_or_answer_beside_a_conversation_is_reported(tmp_path: Path) -> None:
    same = {"messages": SINGLE, "images": ["1.png"], "question": "<image>\nIs it normal?", "answer": "Yes."}
    index = open_index(write(tmp_path / "rows.json", [same, {**same, "answer": "No."}]))
    assert [row["answer"] for _, row in index] == ["Yes.", "Yes."]
    (note,) = index.metadata.noted
    assert (note.code, note.examples, note.values) == (
        "data.conversation_has_other_answer",
        ("row 1",),
        ("list of 2 values",),
    )


def test_a_label_that_is_false_beside_messages_is_reported(tmp_path: Path) -> None:
    rows = [{"messages": SINGLE, "images": ["1.png"], "label": label} for label in (True, False, "False")]
    index = open_index(write(tmp_path / "rows.json", rows))
    assert [(one.code, one.examples) for one in index.metadata.noted] == [("data.label_is_false", ("row 1",))]


def test_other_columns_of_a_conversation_are_kept(tmp_path: Path) -> None:
    rows = [{"messages": SINGLE, "images": ["1.png"], "patient": "p1"}, {"messages": SEVERAL, "images": ["2.png"]}]
    found = [row for _, row in open_index(write(tmp_path / "rows.json", rows))]
    assert found[0]["patient"] == "p1"
    assert [set(row) & {"question", "answer"} for row in found] == [{"question", "answer"}, set()]


def test_images_without_a_placeholder_come_first_and_are_reported(tmp_path: Path) -> None:
    single = [{"role": "user", "content": "Same?"}, SINGLE[1]]
    index = open_index(write(tmp_path / "rows.json", [{"messages": single, "images": ["1.png", "2.png"]}]))
    assert index[0][1]["messages"][0]["content"] == "<image>\n<image>\nSame?"
    assert index[0][1]["question"] == "Same?"
    (note,) = index.metadata.noted
    assert (note.code, note.count, note.examples) == ("data.images_come_first", 1, ("row 0",))


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"messages": SINGLE, "images": ["1.png", "2.png"]}, "placeholders_do_not_match"),
        ({"messages": SINGLE}, "placeholders_do_not_match"),
        ({"messages": SINGLE, "images": ["https://a.org/1.png"]}, "image_is_url"),
        ({"messages": parts_with({"type": "image", "image": "1.png"}), "images": ["2.png"]}, "images_in_two_places"),
        (
            {"messages": [SINGLE[0], {"role": "assistant", "content": "<image>"}], "images": ["1.png"]},
            "image_not_in_user",
        ),
        ({"messages": [SINGLE[0], {"role": "tool", "content": "Yes."}], "images": ["1.png"]}, "role_unknown"),
        ({"messages": [SINGLE[0], {"role": "assistant"}], "images": ["1.png"]}, "conversation_malformed"),
        ({"messages": parts_with({"type": "video", "video": "1.mp4"})}, "content_not_readable"),
        ({"messages": SINGLE, "videos": ["1.mp4"]}, "media_not_supported"),
        ({"messages": SINGLE, "images": ["data:image/png;base64,AAAA"]}, "data_url_invalid"),
        ({"messages": SINGLE, "images": [7]}, "image_not_readable"),
        ({"messages": None, "images": ["1.png"]}, "conversation_missing"),
        ({"messages": SINGLE, "images": [f"data:image/png;base64,{PIXELS}"]}, "images_of_two_kinds"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_counted(tmp_path: Path, row: dict[str, Any], code: str) -> None:
    good = {"messages": SINGLE, "images": ["1.png"]}
    index = open_index(write(tmp_path / "rows.json", [good, row]))
    assert [name for name, _ in index] == ["0"]
    (skipped,) = index.skipped
    assert skipped.code.startswith(f"data.{code}")
    assert skipped.count == 1


def test_an_image_between_two_words_or_a_system_message_gives_no_question(tmp_path: Path) -> None:
    between = [{"role": "user", "content": "Compare <image> and <image>."}, SINGLE[1]]
    rows = [{"messages": between, "images": ["1.png", "2.png"]}]
    rows.append({"messages": [{"role": "system", "content": "Be brief."}, *SINGLE], "images": ["1.png"]})
    assert all("question" not in row for _, row in open_index(write(tmp_path / "rows.json", rows)))


def image_file(file: Path, grey: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(grey))
    return file


def class_folder(top: Path) -> Path:
    for number, (split, name) in enumerate((s, n) for s in ("train", "val", "test") for n in ("normal", "pneumonia")):
        image_file(top / split / name / f"{number}a.png", number)
        image_file(top / split / name / f"{number}b.png", number + 50)
    return top


@pytest.mark.slow
def test_class_folders_have_the_rows_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    top = class_folder(tmp_path / "xrays")
    oracle = datasets.load_dataset("imagefolder", data_dir=str(top), cache_dir=str(tmp_path / "cache"))
    for split, theirs in {"train": "train", "val": "validation", "test": "test"}.items():
        rows = [row for _, row in open_index(f"{top}#{split}")]
        names = oracle[theirs].features["label"].names
        labels = sorted((names[one["label"]], one["image"].getpixel((0, 0))) for one in oracle[theirs])
        assert sorted((row["label"], Image.open(top / row["image"]).getpixel((0, 0))) for row in rows) == labels
        assert {row["split"] for row in rows} == {split}


def test_class_folders_report_what_is_not_read(tmp_path: Path) -> None:
    top = class_folder(tmp_path / "xrays")
    image_file(top / "train" / "loose.png", 1)
    write(top / "train" / "normal" / "notes.txt", "x")
    index = open_index(f"{top}#train")
    assert len(index) == 4
    assert index[0] == (
        "train/normal/0a.png",
        {
            "id": "train/normal/0a.png",
            "image": "train/normal/0a.png",
            "label": "normal",
            "split": "train",
        },
    )
    assert [(one.code, one.examples) for one in index.skipped] == [
        ("data.image_without_class", ("file 5 in order of path",))
    ]
    assert [one.code for one in index.metadata.noted] == ["data.not_an_image"]


def test_masks_beside_their_images_are_no_images_of_the_class(tmp_path: Path) -> None:
    for number, name in enumerate(("benign (1)", "benign (1)_mask", "benign (1)_mask_1", "brain_mask")):
        image_file(tmp_path / "busi" / "benign" / f"{name}.png", number)
        image_file(tmp_path / "busi" / "normal" / f"{name}x.png", number)
    index = open_index(str(tmp_path / "busi"))
    benign = [row["image"] for _, row in index if row["label"] == "benign"]
    assert benign == ["benign/benign (1).png", "benign/brain_mask.png"]  # the last one is the mask of no image
    (noted,) = index.metadata.noted
    assert (noted.code, noted.count) == ("data.mask_is_no_image", 2)


@pytest.mark.parametrize("names", [("images", "masks"), ("train", "labels")])
def test_folders_that_are_not_certainly_classes_have_no_format(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        image_file(tmp_path / name / "1.png", 1)
    with raises(DataError, "data.folder_without_rows") as caught:
        open_index(str(tmp_path))
    assert all(f"{name}/" in str(caught.problem.value) for name in names)


@pytest.mark.parametrize("names", [("normal",), ("train/normal", "test/normal")])
def test_a_single_folder_of_a_class_cannot_be_classified(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        image_file(tmp_path / name / "1.png", 1)
    with raises(DataError, "data.folder_with_one_class") as caught:
        open_index(str(tmp_path))
    assert str(caught.problem.value).endswith("folder 1 in order of name")


@pytest.mark.parametrize(
    ("other", "value"),
    [
        ("train/c/deep/1.png", "train, folder 3 in order of name"),
        ("train/masks/1.png", "train, folder 3 in order of name"),
        ("copy/a/1.png", "folder 1 in order of name"),
    ],
)
def test_a_folder_beside_classes_that_is_none_is_named(tmp_path: Path, other: str, value: str) -> None:
    for name in ("train/a/1.png", "train/b/1.png", other):
        image_file(tmp_path / name, 1)
    with raises(DataError, "data.folder_is_no_class") as caught:
        open_index(str(tmp_path))
    assert caught.problem.value == value


def test_a_zip_with_backslashes_between_folders_has_its_images(tmp_path: Path) -> None:
    image_file(tmp_path / "img" / "1.png", 9)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set\\img\\1.png", png(1))
        archive.writestr("set\\rows.json", json.dumps([qa(1, image="img/1.png")]))
    index = open_index(str(tmp_path / "set.zip"))
    assert index.image_root is not None
    assert (index.image_root / index[0][1]["image"]).read_bytes() == png(1)


def test_a_zip_of_folders_of_classes_must_be_extracted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("normal/1.png", png(1))
    with raises(DataError, "data.archive_without_rows"):
        open_index(str(tmp_path / "set.zip"))


def test_a_downloaded_dataset_of_the_hub_has_its_parquet_files_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("---\n---\n")
    (tmp_path / "dataset_infos.json").write_text('{"default": {"splits": {}}}')
    for number, name in enumerate(("train-00000-of-00001", "validation-00000-of-00001")):
        rows = [{"image": {"bytes": png(number), "path": None}, "question": "Q?", "answer": "yes"}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{name}.parquet")
    data = load_data(recipe(train=str(tmp_path), split={"test": 0}))
    assert [Image.open(one[0].images[0].path).getpixel((0, 0)) for one in (data.train, data.validation)] == [0, 1]
    (tmp_path / "data").rename(tmp_path / "frontal")
    (tmp_path / "lateral").mkdir()
    pq.write_table(pa.Table.from_pylist([{"question": "Q?"}]), tmp_path / "lateral" / "train.parquet")
    with raises(DataError, "data.folders_of_parquet_unclear") as caught:
        open_index(str(tmp_path))
    assert caught.problem.value == ["frontal", "lateral"]


@pytest.mark.parametrize("image", ["IMG/1.PNG", "img/1", "img\\1.png", "img/1.png;img/2.png"])
def test_a_name_that_is_not_equal_to_that_of_its_image_in_the_zip_is_an_error(tmp_path: Path, image: str) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/img/1.png", png(1))
        archive.writestr("set/img/2.png", png(2))
        archive.writestr("set/rows.json", json.dumps([qa(1, image=image)]))
    with raises(DataError, "data.archive_image_name") as caught:
        open_index(str(tmp_path / "set.zip"))
    assert caught.problem.value == f"text of {len(image)} characters"


def test_a_table_of_file_names_has_the_rows_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for number in range(3):
        image_file(tmp_path / "set" / "img" / f"{number}.png", number)
    table = "file_name,question,answer\n" + "".join(f"img/{n}.png,Question {n}?,yes\n" for n in range(3))
    write(tmp_path / "set" / "metadata.csv", table)
    cache = str(tmp_path / "cache")
    oracle = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=cache, split="train")
    rows = [row for _, row in open_index(str(tmp_path / "set"))]
    assert [row["question"] for row in rows] == oracle["question"][:]
    assert [Image.open(tmp_path / "set" / row["image"]).getpixel((0, 0)) for row in rows] == [0, 1, 2]


def test_a_saved_dataset_has_its_splits_images_and_class_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string"), "answer": label})
    columns = {"image": [{"bytes": png(n), "path": None} for n in range(3)], "question": ["Q?"] * 3}
    rows = datasets.Dataset.from_dict({**columns, "answer": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(tmp_path / "rows.parquet")
    oracle = datasets.load_from_disk(str(tmp_path / "saved"))
    index = open_index(f"{tmp_path / 'saved'}#train")
    assert [row["answer"] for _, row in index] == ["yes", "no", None]
    assert index.image_root is not None
    shown = [Image.open(index.image_root / row["image"]).getpixel((0, 0)) for _, row in index]
    assert shown == [one["image"].getpixel((0, 0)) for one in oracle["train"]]
    assert [row["answer"] for _, row in open_index(f"{tmp_path / 'saved'}#test")] == ["no"]
    assert [row["answer"] for _, row in open_index(str(tmp_path / "rows.parquet"))] == ["yes", "no", None]
    arrow = next((tmp_path / "saved" / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:200])
    with raises(DataError, "data.saved_dataset_damaged"):
        open_index(f"{tmp_path / 'saved'}#train")


def answers(*texts: str) -> list[dict[str, Any]]:
    return [{"answer": text, "answer_id": number} for number, text in enumerate(texts)]


def test_an_image_as_an_object_of_bytes_is_kept(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([{"image": {"bytes": png(3)}}, {"image": {"bytes": None}}]), tmp_path / "a.parquet"
    )
    index = open_index(str(tmp_path / "a.parquet"))
    assert index.image_root is not None
    assert (index.image_root / index[0][1]["image"]).read_bytes() == png(3)
    assert index[1][1]["image"] is None


def test_questions_and_annotations_of_coco_vqa_are_joined(tmp_path: Path) -> None:
    questions = [{"question": f"Question {n}?", "question_id": n, "image_id": 7} for n in range(4)]
    annotations = [
        {"question_id": 0, "image_id": 7, "answers": answers("lung", "left lung"), "multiple_choice_answer": "ap"},
        {"question_id": 1, "image_id": 7, "answers": answers("no", "yes", "yes"), "multiple_choice_answer": "yes"},
        {"question_id": 2, "image_id": 7, "answers": answers("no", "yes", "no", "yes")},
    ]
    write(tmp_path / "q.json", {"questions": questions})
    write(tmp_path / "a.json", {"data_subtype": "val2014", "annotations": annotations})
    index = open_index(str(tmp_path))
    rows = [(row["question"], row["answer"], row.get("alternatives")) for _, row in index]
    assert rows == [("Question 0?", "lung", ["left lung"]), ("Question 1?", "yes", None)]
    assert index[0][1]["image"] == "COCO_val2014_000000000007.jpg"
    assert {one.code for one in index.skipped} == {"data.votes_tied", "data.question_without_annotation"}
    assert [one.code for one in index.metadata.noted] == ["data.choice_not_an_answer"]
    with raises(DataError, "data.annotations_missing"):
        open_index(str(tmp_path / "q.json"))
    (skipped,) = no_rows(tmp_path / "a.json").problems
    assert "data.question_missing" in str(skipped) or "an annotation must have its question" in str(skipped)


def no_rows(file: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        open_index(str(file))
    return caught.value


def test_an_annotation_with_another_image_than_its_question_is_counted(tmp_path: Path) -> None:
    questions = [{"question_id": number, "image_id": number, "question": "Q?"} for number in (1, 2)]
    answers: list[dict[str, Any]] = [{"question_id": 1, "image_id": 1}, {"question_id": "2", "image_id": 7}]
    write(tmp_path / "q.json", {"questions": questions})
    write(tmp_path / "a.json", {"annotations": [{**one, "answers": [{"answer": "yes"}]} for one in answers]})
    index = open_index(str(tmp_path))
    assert [row["image"] for _, row in index] == ["1"]
    assert [(one.code, one.values) for one in index.skipped] == [("data.annotation_of_another_question", ("[2, 7]",))]


def test_a_pipe_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with raises(DataError, "data.source_not_a_file"):
        open_index(str(tmp_path / "rows.csv"))


def test_reports_of_r2gen_are_rows_with_lists_of_images(tmp_path: Path) -> None:
    study = {"id": "s1", "report": "Clear lungs.", "image_path": ["s1/0.png", "s1/1.png"], "split": "train"}
    index = open_index(write(tmp_path / "annotation.json", {"train": [study], "val": [], "test": []}) + "#train")
    assert index[0] == ("s1", study)
    assert index.metadata.format == "R2Gen annotations, split train"


def test_an_unknown_layout_shows_its_keys_and_the_nearest_format(tmp_path: Path) -> None:
    content = {"meta": {}, "annotations": [{"answers": 1}], "questions": [{"a": 1}]}
    error = no_rows(Path(write(tmp_path / "rows.json", content)))
    assert error.code == "data.file_type_unknown"
    assert "meta, annotations, questions" in str(error.value)
    assert "annotations (question_id" in error.remedy
    wide = no_rows(Path(write(tmp_path / "wide.json", {"k" * 500 + str(n): [{"a": 1}] for n in range(20)})))
    assert len(str(wide)) < 2000


def test_conversations_of_several_turns_name_the_reason(tmp_path: Path) -> None:
    several = {"messages": SEVERAL, "images": ["1.png"]}
    source = write(tmp_path / "several.json", [several])
    with raises(DataError, "data.several_turns"):
        load_data(recipe(train=source))
    mixed = write(tmp_path / "mixed.json", [several, *({"messages": SINGLE, "images": [f"{n}.png"]} for n in range(5))])
    (dropped,) = load_data(recipe(train=mixed, max_dropped=0.5)).dropped
    assert (dropped.code, dropped.count, dropped.values) == ("data.several_turns", 1, ("'4 turns'",))


def test_a_configuration_of_a_hub_dataset_is_chosen_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # load_dataset takes a folder below the working directory for the dataset of that name.
    folder = tmp_path / "owner" / "name"
    write(folder / "en" / "test.jsonl", json.dumps({"question": "Is it?"}))
    write(folder / "de" / "test.jsonl", json.dumps({"question": "Ist es?"}))
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/*\n" for name in ("en", "de")
    )
    write(folder / "README.md", f"---\nconfigs:\n{configs}---\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert [row["question"] for _, row in open_index("hub:owner/name:de#test")] == ["Ist es?"]
    with raises(DataError, "data.hub_not_loaded") as caught:
        open_index("hub:owner/name#test")
    assert "en" in str(caught.problem.value)


def test_a_split_of_a_hub_dataset_that_is_not_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        write(tmp_path / "owner" / "two" / f"{split}.jsonl", json.dumps({"question": f"{split}?", "answer": "yes"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    unused = recipe_sources(recipe(train="hub:owner/two"))[1]
    assert [(one.code, one.remedy) for one in unused] == [
        ("data.split_not_used", 'Name one as "hub:owner/two#test" to use it.')
    ]
    assert recipe_sources(recipe(train="hub:owner/two#train", test="hub:owner/two#test"))[1] == []


def test_conversations_in_a_csv_are_json_texts(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows([["messages", "images"], [json.dumps(SINGLE), json.dumps(["1.png"])]])
    found = open_index(str(tmp_path / "rows.csv"))[0][1]
    assert (found["messages"], found["images"]) == (SINGLE, ["1.png"])


def test_an_id_that_is_not_a_text_or_number_is_not_used(tmp_path: Path) -> None:
    index = open_index(write(tmp_path / "rows.json", [{"id": ["a"], "x": 1}, {"id": 7}, {"id": float("nan")}]))
    assert [name for name, _ in index] == ["0", "7", "2"]


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_images_as_text_in_plain_rows_are_kept(tmp_path: Path, prefix: str) -> None:
    content = png(9) + bytes(100)  # decoders ignore what follows the end of a PNG
    text = prefix + base64.b64encode(content).decode()
    row = qa(1, image=text, note="/9j/ is a path")
    table = f'image,question,answer\n"{text}",Is it?,yes\n'
    sources = [write(tmp_path / "rows.json", [row]), write(tmp_path / "rows.csv", table)]
    sources.append(write(tmp_path / "list.jsonl", json.dumps({**row, "image": [text]})))
    for source in sources:
        index = open_index(source)
        (path,) = [index[0][1]["image"]] if isinstance(index[0][1]["image"], str) else index[0][1]["image"]
        assert index.image_root is not None
        assert (index.image_root / path).read_bytes() == content
        assert index[0][1].get("note", row["note"]) == row["note"]


def test_a_row_that_is_nested_too_deeply_is_counted_or_an_error(tmp_path: Path) -> None:
    for depth in (900, 950, 970, 985, 2000):
        deep = '{"question": "Q?", "x": ' + "[" * depth + "]" * depth + "}"
        source = write(tmp_path / f"{depth}.json", f'[{{"question": "Q?"}}, {deep}]')
        try:
            found = [one.code for one in open_index(source).skipped]
        except DataError as error:
            found = [error.code]
        assert found in ([], ["data.json_nested_too_deeply"])


@pytest.mark.parametrize("key", [{"function_call": {"name": "a"}}, {"tool_calls": [{"id": "a"}]}])
def test_a_turn_that_calls_a_tool_makes_its_row_unusable(tmp_path: Path, key: dict[str, Any]) -> None:
    question, answer = {"role": "user", "content": "Nodule?"}, {"role": "assistant", "content": "No."}
    rows = [{"messages": [question, {**answer, **key}]}, {"messages": [question, {**answer, "weight": 1}]}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    index = open_index(str(file))
    assert [(one.code, one.count) for one in index.skipped] == [("data.turn_not_text_only", 1)]
    assert len(index) == 1


def test_rows_that_another_version_of_the_code_read_are_not_used_again(tmp_path: Path) -> None:
    (tmp_path / "formats").mkdir()
    file = tmp_path / "formats" / "one.py"
    file.write_text("A = 1")
    before = code_digest(tmp_path)
    code_digest.cache_clear()
    assert code_digest(tmp_path) == before
    file.write_text("A = 2")
    code_digest.cache_clear()
    assert code_digest(tmp_path) != before


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("train.jsonl", "validate.jsonl", "test.jsonl"), (1, 1, 1)),
        (("vqarad_train.jsonl", "vqarad_test.jsonl"), (1, 0, 1)),
        (("part-1.jsonl", "part-2.jsonl"), (2, 0, 0)),
    ],
)
def test_a_word_of_the_file_name_is_the_split(tmp_path: Path, names: tuple[str, ...], counts: tuple[int, ...]) -> None:
    for number, name in enumerate(names):
        write(tmp_path / name, json.dumps(qa(number)))
    data = load_data(recipe(train=str(tmp_path), split={"test": 0}))
    assert (len(data.train), len(data.validation), len(data.test)) == counts


def test_files_with_and_without_a_split_are_not_mixed(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "eval")):
        write(tmp_path / f"{name}.jsonl", json.dumps(qa(number)))
    with raises(DataError, "data.folder_splits_unclear") as caught:
        load_data(recipe(train=str(tmp_path), split={"test": 0}))
    assert caught.problem.value == {"eval.jsonl": "no split", "train.jsonl": "train"}


def turns(question: str, **answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes.", **answer}]


@pytest.mark.parametrize("task", ["vqa", "chat"])
def test_a_conversation_does_not_lose_images_in_another_column(tmp_path: Path, task: str) -> None:
    rows = [{"messages": turns(f"Question {i}?"), "scan": f"{i}.png"} for i in range(2)]
    source = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    with raises(DataError, "data.field_without_column") as caught:
        load_data(recipe(task, train=source, split={"test": 0}))
    assert 'Did you mean "scan"' in str(caught.error)
    data = load_data(recipe(task, train=source, split={"test": 0}, columns={"image": "scan"}))
    assert [[one.path.name for one in row.images] for row in data.train] == [["0.png"], ["1.png"]]


@pytest.mark.parametrize("task", ["vqa", "chat"])
def test_a_conversation_has_the_images_of_numbered_columns(tmp_path: Path, task: str) -> None:
    row = {"messages": turns("<image><image>Which is normal?"), "image_1": "a.png", "image_2": "b.png"}
    data = load_data(recipe(task, train=write(tmp_path / "a.jsonl", json.dumps(row)), split={"test": 0}))
    assert [one.path.name for one in data.train[0].images] == ["a.png", "b.png"]
    row["messages"] = turns("<image>Which is normal?")
    with raises(DataError, "data.too_many_unusable_rows") as caught:
        load_data(recipe(task, train=write(tmp_path / "b.jsonl", json.dumps(row)), split={"test": 0}))
    assert "data.image_placeholders_mismatch" in str(caught.error)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"messages": turns("<image>Q?"), "image": "a.png", "images": ["b.png"]}, "data.images_in_two_columns"),
        ({"messages": turns("Scan 1: <img>a.png</img>\nQ?")}, "data.placeholder_unknown"),
        ({"messages": turns("<Image>Q?"), "image": "a.png"}, "data.placeholder_unknown"),
        ({"messages": turns("<image_1>Q?"), "image": "a.png"}, "data.placeholder_unknown"),
        ({"messages": turns("<start_of_image>Q?"), "image": "a.png"}, "data.placeholder_unknown"),
        (
            {"messages": [*turns("Q?")[:1], {"role": "assistant", "content": "<|image_pad|>"}]},
            "data.placeholder_unknown",
        ),
        ({"messages": turns("<image>Where is the <ref-object>?"), "image": "a.png"}, "data.placeholder_not_read"),
        ({"messages": [*turns("Q?")[:1], {"role": "assistant", "content": "<bbox>"}]}, "data.placeholder_not_read"),
        ({"messages": turns("<video>Q?")}, "data.placeholder_not_read"),
        ({"messages": turns("Q?"), "kto_tag": False}, "data.answer_is_rejected"),
        ({"messages": turns("Q?", weight=0)}, "data.turn_not_trained"),
        ({"messages": turns("Q?", loss=False)}, "data.turn_not_trained"),
        ({"messages": turns("Q?"), "system": ["Be brief."]}, "data.system_message_not_text"),
    ],
)
def test_a_conversation_that_would_lose_something_is_counted(tmp_path: Path, row: dict[str, Any], code: str) -> None:
    good = {"messages": turns("<image>Q?", weight=1), "image": "a.png", "system": None}
    index = open_index(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, (good, row)))))
    assert len(index) == 1
    assert [one.code for one in index.skipped] == [code]


def test_a_source_without_a_usable_record_shows_reason_value_and_remedy(tmp_path: Path) -> None:
    rows = [{"messages": turns(f"<image>Question {i}?")} for i in range(3)]
    with raises(DataError, "data.no_records") as caught:
        open_index(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert caught.problem.value == "0 of 3"
    for text in ("data.placeholders_do_not_match", "1 <image> and 0 images", "Correct the texts or the images."):
        assert text in caught.problem.remedy


def test_names_of_classes_that_differ_in_case_are_an_error(tmp_path: Path) -> None:
    for name in ("train/NORMAL/a.png", "train/TB/b.png", "test/normal/c.png", "test/TB/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    with raises(DataError, "data.class_named_twice") as caught:
        open_index(str(tmp_path))
    assert caught.problem.value == ["test, folder 2 in order of name", "train, folder 1 in order of name"]


def test_names_of_classes_in_two_unicode_normalisations_are_one_class(tmp_path: Path) -> None:
    for split, name in (("train", "b\u00e9nin"), ("test", "be\u0301nin"), ("train", "malin"), ("test", "malin")):
        image_file(tmp_path / split / name / f"{split}.png", 1)
    assert {row["label"] for _, row in open_index(str(tmp_path))} == {"b\u00e9nin", "malin"}


def test_folders_of_classes_have_images_of_every_suffix(tmp_path: Path) -> None:
    for name in ("a/1.pgm", "a/2.JFIF", "b/3.dicom", "b/4.j2k"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [row["image"] for _, row in open_index(str(tmp_path))] == ["a/1.pgm", "a/2.JFIF", "b/3.dicom", "b/4.j2k"]


def test_a_table_of_file_names_with_several_splits_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", "file_name,label\ntrain/a.png,x\ntest/b.png,y\n")
    with raises(DataError, "data.splits_in_one_table") as caught:
        open_index(str(tmp_path))
    assert caught.problem.value == ["train", "test"]


def test_a_column_that_a_parquet_file_has_twice_is_an_error(tmp_path: Path) -> None:
    table = pa.table([["Q"], ["yes"], ["no"]], names=["question", "answer", "answer"])
    pq.write_table(table, tmp_path / "rows.parquet")
    with raises(DataError, "data.column_repeated") as caught:
        open_index(str(tmp_path / "rows.parquet"))
    assert caught.problem.value == ["answer"]


def test_a_map_of_parquet_is_an_object(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.string())
    pq.write_table(pa.table({"options": pa.array([[("A", "x"), ("B", "y")]], kind)}), tmp_path / "rows.parquet")
    assert [row for _, row in open_index(str(tmp_path / "rows.parquet"))] == [{"options": {"A": "x", "B": "y"}}]
    pq.write_table(pa.table({"options": pa.array([[("A", "x"), ("A", "y")]], kind)}), tmp_path / "twice.parquet")
    with raises(DataError, "data.parquet_invalid"):
        open_index(str(tmp_path / "twice.parquet"))


@pytest.mark.parametrize("orient", ["columns", "split"])
def test_a_json_of_columns_names_the_remedy(tmp_path: Path, orient: Any) -> None:
    table = pandas.DataFrame({"question": ["a?", "b?"], "answer": ["yes", "no"]})
    table.to_json(tmp_path / "rows.json", orient=orient)
    recipe = make_recipe({"run": {"name": "x"}, "data": {"task": "vqa", "train": str(tmp_path / "rows.json")}})
    with pytest.raises(DataError) as caught:
        load_data(recipe)
    assert 'to_json(orient="records")' in str(caught.value)


def test_annotations_with_a_key_twice_are_an_error(tmp_path: Path) -> None:
    box = '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "bbox": [5, 5, 2, 2]}'
    text = f'{{"images": [{{"id": 1, "file_name": "a.png"}}], "annotations": [{box}], "categories": []}}'
    with raises(DataError, "data.key_repeated") as caught:
        open_index(write(tmp_path / "coco.json", text))
    assert "bbox twice" in str(caught.problem.value)


def test_the_time_for_a_header_grows_with_its_columns_and_not_with_their_square(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(",".join(f"c{number}" for number in range(60_000)) + "\n" + ",".join("1" * 60_000) + "\n")
    begun = time.process_time()
    ((_, cells, _),) = read_table(RowFile(file, ".csv"), EmbeddedImageStore(tmp_path / "cache"))
    assert len(cells) == 60_000
    assert time.process_time() - begun < 5
