"""Formats of rows are recognized by content, and each gives the rows that its own library or paper describes."""

import json
from pathlib import Path

from toolkit.data import open_index
from toolkit.data.formats import FORMATS, Look
from toolkit.data.formats.containers import container_of


def write(file: Path, content: object) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(file)


def look(path: Path) -> Look:
    return Look(path, container_of(path))


def test_the_index_keeps_the_name_of_the_format(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", '{"question": "q"}\n')
    for _ in range(2):
        assert open_index(source).description == f"{source}: JSON lines, 1 rows"


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
