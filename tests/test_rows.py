"""Rows: every source has the records that its own library reads, lazily, and errors have a position."""

import csv
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.problems import raises
from toolkit.data import RowIndex, json_stream, open_index
from toolkit.data.index import MAX_COLUMNS
from toolkit.data.json_stream import stream_json
from toolkit.errors import DataError

RECORDS = {f"case{i}": {"question": f"q{i}", "answer": i, "tags": ["ä", {"深": None}]} for i in range(5)}
PNG = b"\x89PNG\r\n\x1a\n and the rest"

texts = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(texts, values, max_size=4)


def write(folder: Path, name: str, content: object) -> str:
    file = folder / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(file)


def rows_of(index: RowIndex) -> list[tuple[str, Any]]:
    return [index[number] for number in range(len(index))]


@pytest.mark.slow
@given(data=st.dictionaries(texts, records, max_size=5) | st.lists(records, max_size=5), layout=st.data())
@settings(max_examples=300, deadline=None)
def test_a_stream_equals_json_load_for_any_chunk_size_and_layout(data: Any, layout: Any) -> None:
    indent = layout.draw(st.sampled_from([None, 0, 2, "\t"]))
    escaped, chunk = layout.draw(st.booleans()), layout.draw(st.integers(1, 40))
    text = json.dumps(data, indent=indent, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", chunk)
        found = list(stream_json(io.BytesIO(text), "x"))
    if isinstance(data, dict):
        assert {name: value for name, value, _ in found} == json.loads(text)
        assert [name for name, *_ in found] == list(data)
    else:
        assert [value for _, value, _ in found] == json.loads(text)
    assert all(json.loads(raw or "") == value for _, value, raw in found)


@given(st.binary(max_size=60) | st.text('{}[],:" \\u1aée-.0truefalsn\n', max_size=60).map(str.encode))
@settings(max_examples=500, deadline=None)
def test_invalid_bytes_are_a_data_error_with_a_place(content: bytes) -> None:
    place = ""
    try:
        found = list(stream_json(io.BytesIO(content), "rows.json"))
    except DataError as error:
        place = error.place
    if not place:
        whole = json.loads(content)
        assert len(found) >= len(whole)  # a repeated key is yielded twice
    assert not place or place.startswith("rows.json, ")


def test_a_byte_order_mark_nan_and_escapes_are_read(tmp_path: Path) -> None:
    source = write(tmp_path, "rows.json", b"\xef\xbb\xbf" + rb'{"a\u00e4\"": {"x": NaN, "y": "\ud83d\ude00"}}')
    name, row = open_index(source)[0]
    assert name == 'aä"'
    assert row["x"] != row["x"]
    assert row["y"] == "😀"


@pytest.mark.parametrize(
    ("text", "place", "code"),
    [
        ('{"a": {"x": 1},\n "b": {"x": 1 "y"}}', "line 2, column 15", "json_invalid"),
        ('{"a": {"x": 1}\n "b": {"x": 1}}', "line 1, column 15", "json_comma_expected"),
        ('{"a": {"x": 1},\n}', "line 1, column 16", "json_key_expected"),
        ('[{"x": 1}, {"x": ', "line 1, column 18", "json_invalid"),
        ('[{"x": "open}]', "line 1, column 8", "json_invalid"),
        ('{"a": {"x": 1}}\n["x"]', "line 2, column 1", "json_text_after_end"),
        ("{]", "line 1, column 2", "json_key_expected"),
        ("[ }", "line 1, column 3", "json_invalid"),
        ("", "line 1, column 1", "json_not_records"),
        ('"text"', "line 1, column 1", "json_not_records"),
        ("[" * 100_000, "line 1, column 2", "json_nested_too_deeply"),
        ('[{"x": ' + "9" * 5000 + "}]", "line 1, column 2", "json_not_readable"),
    ],
)
def test_invalid_json_is_reported_with_line_and_column(tmp_path: Path, text: str, place: str, code: str) -> None:
    with raises(DataError, f"data.{code}") as caught:
        open_index(write(tmp_path, "rows.json", text))
    assert caught.problem.place.endswith(place)


def test_a_missing_quotation_mark_in_a_long_file_does_not_read_it_all_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(json_stream, "MAX_RECORD_CHARS", 10_000)
    source = write(tmp_path, "rows.json", '{"a": {"x": "' + "y" * 50_000)
    with raises(DataError, "data.json_record_too_long"):
        open_index(source)


def test_text_that_is_not_utf8_is_reported_with_its_byte(tmp_path: Path) -> None:
    with raises(DataError, "data.not_utf8") as caught:
        open_index(write(tmp_path, "rows.json", b'{"a": {"x": "\xe4"}}'))
    assert caught.problem.place.endswith("near byte 13")


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
        ("latin-1", "CP1252"),
    ],
)
@pytest.mark.parametrize("file", ["rows.csv", "rows.json", "rows.jsonl"])
def test_a_file_that_is_not_utf8_is_reported_with_the_conversion(
    tmp_path: Path, file: str, encoding: str, name: str
) -> None:
    text = "id,x\n1,größer\n" if file == "rows.csv" else '{"id": "1", "x": "größer"}'
    with raises(DataError, "data.not_utf8") as caught:
        open_index(write(tmp_path, file, text.encode(encoding)))
    assert f"iconv -f {name} -t UTF-8" in caught.problem.remedy


def test_a_byte_of_a_table_that_is_not_utf8_has_its_line_and_the_text_around_it(tmp_path: Path) -> None:
    with raises(DataError, "data.not_utf8") as caught:
        open_index(write(tmp_path, "rows.csv", b"id,x\n" + b"1,yes\n" * 5000 + b"2,s\xed\n3,no\n"))
    assert caught.problem.place.endswith("rows.csv, line 5,002")
    assert "0,x\\xed" in str(caught.problem.value)


@pytest.mark.parametrize("name", ["rows.csv", "rows.xlsx", "rows.xls"])
def test_a_spreadsheet_must_be_saved_as_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        open_index(write(tmp_path, name, b"PK\x03\x04\x14\x00\x06\x00"))
    assert "CSV UTF-8" in caught.value.remedy


@pytest.mark.parametrize("first", ["sep=,", "sep=;"])
def test_the_line_that_only_excel_reads_is_an_error(tmp_path: Path, first: str) -> None:
    with raises(DataError, "data.csv_header_invalid") as caught:
        open_index(write(tmp_path, "rows.csv", f"{first}\nid,x\n1,a\n"))
    assert caught.problem.value == first


@pytest.mark.parametrize("sign", [";", "\t"])
def test_a_csv_with_other_separators_is_rejected_by_name(tmp_path: Path, sign: str) -> None:
    with raises(DataError, "data.csv_separator") as caught:
        open_index(write(tmp_path, "rows.csv", f"id{sign}x\n1{sign}a, b\n"))
    assert caught.problem.value == sign
    with raises(DataError, "data.csv_separator"):
        open_index(write(tmp_path, "quoted.csv", f'"id, or none"{sign}"x"\n"1"{sign}"a"\n'))


def test_every_format_has_the_same_records(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "question": f'q "{i}",\nä', "n": str(i)} for i in range(700)]
    write(tmp_path, "rows.json", {row["id"]: row for row in rows})
    write(tmp_path, "list.json", rows)
    write(tmp_path, "rows.jsonl", "\n\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["id", "question", "n"])
        writer.writeheader()
        writer.writerows(rows)
    expected = [(row["id"], row) for row in rows]
    for name in ("rows.json", "list.json", "rows.jsonl", "rows.parquet", "rows.csv"):
        index = open_index(str(tmp_path / name))
        assert rows_of(index) == expected, name
        assert list(index) == expected, name
        assert index.columns == ("id", "question", "n"), name
        assert index.image_root == tmp_path, name


def test_rows_without_an_id_get_their_number_and_a_column_can_be_named(tmp_path: Path) -> None:
    source = write(tmp_path, "rows.csv", "case,question\n007,a\n008,b\n")
    assert [name for name, _ in open_index(source)] == ["0", "1"]
    assert [name for name, _ in open_index(source, id_column="case")] == ["007", "008"]


def test_a_folder_is_read_in_the_order_of_its_file_names(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", '{"question": "3"}')
    write(tmp_path, "a.csv", "question\n1\n2\n")
    write(tmp_path, "notes.txt", "not rows")
    write(tmp_path, ".hidden.json", "{")
    index = open_index(str(tmp_path))
    assert [(name, row["question"]) for name, row in index] == [("a:0", "1"), ("a:1", "2"), ("b:0", "3")]
    assert index.image_root == tmp_path


def test_repeated_ids_are_kept_apart_and_counted(tmp_path: Path) -> None:
    source = write(
        tmp_path, "rows.json", '{"a": {"x": 1}, "b": {"x": 2}, "a": {"x": 3}, "a#2": {"x": 4}, "a": {"x": 5}}'
    )
    index = open_index(source)
    assert [(name, row["x"]) for name, row in index] == [("a", 1), ("b", 2), ("a#2", 3), ("a#2#2", 4), ("a#3", 5)]
    assert (index.metadata.duplicates, index.metadata.duplicate_examples) == (3, ("row 2", "row 3"))


def test_records_that_are_not_objects_are_counted(tmp_path: Path) -> None:
    index = open_index(write(tmp_path, "rows.json", '{"version": 1.0, "a": {"x": 1}, "b": null}'))
    assert [name for name, _ in index] == ["a"]
    (skipped,) = index.skipped
    assert skipped.code == "data.record_not_object"
    assert (skipped.count, skipped.examples, skipped.values) == (
        2,
        ("row 0", "row 2"),
        ("number of 3 characters", "no value"),
    )


@pytest.mark.parametrize("text", ["{}", "[]", '{"question": ["a", "b"]}', '{"version": 1}'])
def test_a_source_without_records_is_rejected(tmp_path: Path, text: str) -> None:
    with raises(DataError, "data.no_records"):
        open_index(write(tmp_path, "rows.json", text))


@pytest.mark.parametrize(
    ("name", "content", "code", "place", "value"),
    [
        ("rows.jsonl", '{"x": 1}\n{"x": \n', "json_line_invalid", ", line 2", '{"x":'),
        ("rows.csv", "a,b\n1\n", "csv_cell_count", ", line 2", 1),
        ("rows.csv", "a,a\n1,2\n", "csv_header_invalid", ", line 1", ["a"]),
        ("rows.csv", 'a,b\n"1,2\n', "csv_invalid", ", line 2", "unexpected end of data"),
        ("rows.xml", "<a/>", "file_type_unknown", "", ".xml"),
    ],
)
def test_other_invalid_files_are_reported(
    tmp_path: Path, name: str, content: str | bytes, code: str, place: str, value: object
) -> None:
    with raises(DataError, f"data.{code}") as caught:
        open_index(write(tmp_path, name, content))
    assert (caught.problem.place, caught.problem.value) == (f"{tmp_path / name}{place}", value)


def test_the_name_of_a_source_need_not_be_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"Universit\xe4t")
    folder.mkdir()
    index = open_index(write(folder, os.fsdecode(b"R\xf6ntgen.json"), '[{"a": 1}]'))
    assert [row for _, row in index] == [{"a": 1}]


def test_a_source_with_too_many_columns_is_rejected(tmp_path: Path) -> None:
    rows = [{"a": 1}, dict.fromkeys(map(str, range(MAX_COLUMNS)), 1)]
    with raises(DataError, "data.too_many_columns") as caught:
        open_index(write(tmp_path, "rows.json", json.dumps(rows)))
    assert (caught.problem.place, caught.problem.value) == (f"{tmp_path / 'rows.json'}, row 1", MAX_COLUMNS + 1)
    open_index(write(tmp_path, "rows.json", json.dumps(rows[1:])))


def test_a_missing_file_and_an_empty_folder_are_rejected(tmp_path: Path) -> None:
    with raises(DataError, "data.file_missing") as caught:
        open_index(str(tmp_path / "rows.json"))
    assert caught.problem.place == str(tmp_path / "rows.json")
    with raises(DataError, "data.folder_without_rows") as caught:
        open_index(str(tmp_path))
    assert caught.problem.place == str(tmp_path)


def test_opening_again_reads_no_row(tmp_path: Path) -> None:
    source = write(tmp_path, "rows.json", RECORDS)
    seen: list[tuple[int, str]] = []
    first = open_index(source, visit=lambda number, name, *_: seen.append((number, name)))
    assert seen == list(enumerate(RECORDS))
    again = open_index(source, visit=lambda *_: pytest.fail("the index was built again"))
    assert rows_of(again) == rows_of(first) == list(RECORDS.items())
    assert again.fingerprint == first.fingerprint


def test_a_changed_source_is_indexed_again_and_the_old_index_is_removed(tmp_path: Path, private_cache: Path) -> None:
    source = write(tmp_path, "rows.json", RECORDS)
    before = open_index(source)
    write(tmp_path, "rows.json", {**RECORDS, "more": {"question": "q"}})
    after = open_index(source)
    assert len(after) == len(before) + 1
    assert after.fingerprint != before.fingerprint
    assert [file.stem for file in (private_cache / "rows").glob("*.arrow")] == [after.file.stem]


def test_the_fingerprint_depends_on_content_not_on_folder_or_layout(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = open_index(write(tmp_path, "rows.json", RECORDS))
    spaced = json.dumps(RECORDS).replace('}, "case', '},\n\n "case')
    assert open_index(write(tmp_path / "other", "copy.json", spaced)).fingerprint == one.fingerprint


@pytest.mark.parametrize("damage", ["arrow", "json"])
def test_a_damaged_index_is_built_again(tmp_path: Path, damage: str) -> None:
    source = write(tmp_path, "rows.json", RECORDS)
    file = open_index(source).file.with_suffix(f".{damage}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert rows_of(open_index(source)) == list(RECORDS.items())


def test_a_failed_build_leaves_no_index(tmp_path: Path, private_cache: Path) -> None:
    source = write(tmp_path, "rows.json", json.dumps([{"x": n} for n in range(100)])[:-5])
    for _ in range(2):
        with raises(DataError, "data.json_invalid"):
            open_index(source)
    assert list((private_cache / "rows").iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", write(tmp_path, "file", "not a folder"))
    with raises(DataError, "data.index_not_writable") as caught:
        open_index(write(tmp_path, "rows.json", RECORDS))
    assert "TOOLKIT_CACHE" in caught.problem.remedy


def test_an_index_can_be_pickled(tmp_path: Path) -> None:
    index = open_index(write(tmp_path, "rows.json", RECORDS))
    assert rows_of(pickle.loads(pickle.dumps(index))) == rows_of(index)


def test_half_a_surrogate_pair_in_an_id_is_kept_as_its_escape(tmp_path: Path) -> None:
    index = open_index(write(tmp_path, "rows.json", r'{"a\ud800": {"x": "\ud800"}}'))
    assert index[0] == ("a\\ud800", {"x": "\ud800"})


def test_images_inside_parquet_become_files_named_by_their_content(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": PNG, "path": "a.png"}}, {"image": {"bytes": PNG, "path": "b.png"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    index = open_index(str(tmp_path / "rows.parquet"))
    paths = {row["image"] for _, row in index}
    assert len(paths) == 1  # the same content is one image
    assert index.image_root is not None
    image = index.image_root / paths.pop()
    assert (image.read_bytes(), image.suffix) == (PNG, ".png")
    pq.write_table(pa.Table.from_pylist([{"image": {"bytes": None, "path": "a.png"}}]), tmp_path / "paths.parquet")
    index = open_index(str(tmp_path / "paths.parquet"))
    assert (index[0][1], index.image_root) == ({"image": "a.png"}, tmp_path)


def test_a_hub_dataset_is_loaded_by_name_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # load_dataset takes a folder below the working directory for the dataset of that name.
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    write(folder, "test.jsonl", '{"id": 7, "question": "q"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    index = open_index("hub:owner/name#test")
    assert list(index) == [("7", {"id": 7, "question": "q"})]
    assert index.image_root is None
    with raises(DataError, "data.hub_not_loaded") as caught:
        open_index("hub:owner/name#other")
    assert caught.problem.place == "hub:owner/name#other"


def test_a_missing_hub_dataset_and_a_malformed_name_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with raises(DataError, "data.hub_not_loaded") as caught:
        open_index("hub:nobody/nothing-of-that-name")
    assert caught.problem.place == "hub:nobody/nothing-of-that-name"
    with raises(DataError, "data.hub_name_malformed") as caught:
        open_index("hub:justaname")
    assert caught.problem.value == "hub:justaname"


def test_rows_import_neither_datasets_nor_torch() -> None:
    code = "import sys, toolkit.data, toolkit.tasks; print({'datasets', 'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
