"""Small good datasets of every task and of the main formats, which the fuzzers change."""

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w
from PIL import Image

from tests.faults.children import run_command

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Base:
    """Synthetic data of a task.

    Args:
        kind: its name for `toolkit data synthetic`.
        size: width of its images.
        data: more keys of [data].
    """

    kind: str
    size: int
    data: Mapping[str, Any] = field(default_factory=dict)


BASES: Mapping[str, Base] = {
    "mcq": Base("chest", 64),
    "vqa": Base("chest_vqa", 64),
    "chat": Base("chest_chat", 64),
    "classify": Base("tissue", 64),
    "detect": Base("boxes", 96, {"boxes": "xyxy"}),
    "lesion": Base("lesion", 96, {"boxes": "xyxy", "lesion": {"answer": ["diagnosis", "location", "bbox"], "grid": 3}}),
    "report_generation": Base("chest_reports", 64),
    "steps": Base("steps", 112, {"steps": {"answer": ["short_term", "long_term", "predicted"]}}),
}
TRAIN, TEST = 8, 3


@cache
def _session() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="toolkit-fuzz-")


@cache
def base_folder(task: str) -> Path:
    """Return the folder with the task's synthetic data. It must not be changed."""
    folder = Path(_session().name) / task
    base = BASES[task]
    counts = ["--train", str(TRAIN), "--test", str(TEST), "--size", str(base.size)]
    ended = run_command(["data", "synthetic", base.kind, "--out", str(folder), *counts], folder.parent, 60)
    assert ended.status == 0, ended.stderr
    return folder


@cache
def _rows_text(task: str, split: str) -> tuple[str, ...]:
    file = next(base_folder(task).glob(f"{split}.*"))
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as handle:
            return tuple(json.dumps(row) for row in csv.DictReader(handle))
    content = json.loads(file.read_text(encoding="utf-8"))
    return tuple(json.dumps(row) for row in (content.values() if isinstance(content, dict) else content))


def rows_of(task: str, split: str = "train") -> list[Row]:
    """Return the rows of a task, which may be changed."""
    return [json.loads(text) for text in _rows_text(task, split)]


def copy_images(task: str, folder: Path) -> None:
    """Copy everything but the rows to the folder."""
    for path in base_folder(task).iterdir():
        if path.is_dir():
            shutil.copytree(path, folder / path.name)


def recipe_text(task: str, data: Mapping[str, Any], **sections: Any) -> str:
    """Return a recipe that trains the tiny model on these data."""
    base = BASES[task]
    content = {
        "run": {"name": "fuzz"},
        "model": {"name": "tiny", "max_tokens": 2048},
        "data": {"task": task, **base.data, **data},
        "images": {"max_side": 64},
        "sft": {"max_steps": 2, "batch_size": 2, "accumulation": 1, "gradient_checkpointing": False},
        **sections,
    }
    return tomli_w.dumps(content)


def write_csv(rows: list[Row], printed: bool = False, separator: str = ",") -> bytes:
    """Return a table. Lists and objects are JSON, or printed by Python."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    table = csv.writer(text, delimiter=separator)
    table.writerow(columns)
    for row in rows:
        table.writerow([_cell(row.get(column), printed) for column in columns])
    return text.getvalue().encode("utf-8", "surrogatepass")


def _cell(value: Any, printed: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace("\0", "")
    return repr(value) if printed else json.dumps(value)


def write_parquet(rows: list[Row]) -> bytes:
    """Return a Parquet file. A column of several types has its values as texts, in which other types are JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(key for row in rows for key in row))
    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
            texts = [value if isinstance(value, str | None) else json.dumps(value) for value in values]
            arrays.append(pa.array(texts))
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, names=columns), stream)
    return stream.getvalue()


def write_keyed(rows: list[Row]) -> bytes:
    """Return a JSON object of rows by their id."""
    return json.dumps({f"row{number}": row for number, row in enumerate(rows)}).encode()


TABLES: Mapping[str, Callable[[list[Row]], bytes]] = {
    "rows.json": lambda rows: json.dumps(rows).encode(),
    "keyed.json": write_keyed,
    "rows.jsonl": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "rows.csv": write_csv,
    "printed.csv": lambda rows: write_csv(rows, printed=True),
    "rows.tsv": lambda rows: write_csv(rows, separator="\t"),
    "rows.parquet": write_parquet,
}
"""File name -> rows to bytes."""


def _images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((64, 48)).rotate(number).save(file)


def make_coco(folder: Path) -> Row:
    """Write COCO instances."""
    _images(folder, *(f"{number}.png" for number in range(6)))
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(6)],
        "annotations": [
            {"id": n, "image_id": n % 6, "category_id": 1 + n % 2, "bbox": [n, 5, 20, 10], "area": 200, "iscrowd": 0}
            for n in range(8)
        ],
        "categories": [{"id": 1, "name": "nodule"}, {"id": 2, "name": "effusion"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return {"task": "detect", "train": str(folder / "instances.json")}


_VOC = """<annotation><folder>x</folder><filename>{n}.png</filename>
<size><width>64</width><height>48</height><depth>1</depth></size>
<object><name>nodule</name><difficult>0</difficult>
<bndbox><xmin>{n}</xmin><ymin>5</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def make_voc(folder: Path) -> Row:
    """Write Pascal VOC."""
    _images(folder, *(f"JPEGImages/{number}.png" for number in range(5)))
    (folder / "Annotations").mkdir()
    for number in range(5):
        (folder / "Annotations" / f"{number}.xml").write_text(
            _VOC.format(n=number + 1).replace(f"{number + 1}.png", f"{number}.png")
        )
    return {"task": "detect", "train": str(folder)}


def make_yolo(folder: Path) -> Row:
    """Write YOLO."""
    _images(folder, *(f"images/train/{number}.png" for number in range(5)))
    (folder / "labels" / "train").mkdir(parents=True)
    for number in range(5):
        (folder / "labels" / "train" / f"{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.2 0.{number + 1}\n")
    (folder / "data.yaml").write_text("names: [nodule, effusion]\npath: .\ntrain: images/train\n")
    return {"task": "detect", "train": str(folder)}


def make_classes(folder: Path) -> Row:
    """Write folders of classes."""
    _images(folder, *(f"{name}/{number}.png" for name in ("normal", "tumour") for number in range(4)))
    return {"task": "classify", "train": str(folder)}


def make_metadata(folder: Path) -> Row:
    """Write the table of an image folder of Hugging Face."""
    _images(folder, *(f"{number}.png" for number in range(6)))
    lines = [f"{number}.png,{'ab'[number % 2]}" for number in range(6)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    return {"task": "classify", "train": str(folder)}


def make_llava(folder: Path) -> Row:
    """Write conversations."""
    _images(folder, *(f"{number}.png" for number in range(6)))
    rows = [
        {
            "id": f"c{n}",
            "image": f"{n}.png",
            "conversations": [{"from": "human", "value": f"<image>\nIs {n} normal?"}, {"from": "gpt", "value": "Yes."}],
        }
        for n in range(6)
    ]
    (folder / "llava.json").write_text(json.dumps(rows))
    return {"task": "vqa", "train": str(folder / "llava.json")}


def make_splits(folder: Path) -> Row:
    """Write a JSON object of splits, as report datasets have."""
    _images(folder, *(f"{number}.png" for number in range(6)))
    rows = [{"id": f"r{n}", "image_path": [f"{n}.png"], "report": f"Lungs clear. Number {n}."} for n in range(6)]
    (folder / "annotation.json").write_text(json.dumps({"train": rows[:4], "val": rows[4:5], "test": rows[5:]}))
    return {"task": "report_generation", "train": str(folder / "annotation.json")}


def make_zip(folder: Path) -> Row:
    """Write a ZIP of rows and images."""
    import zipfile

    _images(folder / "tmp", *(f"{number}.png" for number in range(4)))
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.write(folder / "tmp" / f"{number}.png", f"set/{number}.png")
        rows = [{"image": f"{n}.png", "question": f"Is {n} normal?", "answer": "yes"} for n in range(4)]
        archive.writestr("set/rows.json", json.dumps(rows))
    shutil.rmtree(folder / "tmp")
    return {"task": "vqa", "train": str(folder / "set.zip")}


def make_gzip(folder: Path) -> Row:
    """Write compressed JSON lines."""
    import gzip

    _images(folder, *(f"{number}.png" for number in range(4)))
    rows = [{"image": f"{n}.png", "question": f"Is {n} normal?", "answer": "yes"} for n in range(4)]
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return {"task": "vqa", "train": str(folder / "rows.jsonl.gz")}


DATASETS: tuple[Callable[[Path], Row], ...] = (
    *(make_coco, make_voc, make_yolo, make_classes, make_metadata, make_llava, make_splits, make_zip, make_gzip),
)
"""Writes a dataset below a folder, and returns the keys of [data] that it needs, with the task."""
