"""Formats of rows are recognized by content, and each gives the rows that its own library or paper describes."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe
from toolkit.data import open_index
from toolkit.data.formats import FORMATS, Look, row_file
from toolkit.data.formats.containers import container_of
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


def test_names_of_formats_are_unique() -> None:
    assert len({one.name for one in FORMATS}) == len(FORMATS)


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
        ({"q_lang": ["en", "fr"]}, "data.filter_value_missing", "fr"),
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
    assert caught.problem.value == "s1|a|b|c"
    with raises(DataError, "data.file_type_unknown"):
        open_index(write(tmp_path / "prose.txt", "Some words.\nMore | words.\n"))
