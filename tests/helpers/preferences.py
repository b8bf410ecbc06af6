"""Rows with a chosen and a rejected answer: synthetic X-rays with questions, and a recipe that trains on them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.helpers.recipes import load_recipe, make_recipe
from tests.helpers.training import small_recipe
from toolkit.recipe import Recipe, SyntheticData, dump_recipe
from toolkit.tasks import TASKS

OPPOSITE = {"yes": "no", "no": "yes", "left": "right", "right": "left"}


def write_pairs(folder: Path, rows: int = 12, **changes: Mapping[str, Any]) -> dict[str, Path]:
    """Write rows of the task vqa with images, whose columns ``good`` and ``bad`` are a right and a wrong answer.

    Args:
        folder: The folder to write to.
        rows: The number of training rows. All of them are closed questions, or their answer is a side.
        changes: Row number, such as ``row_3`` -> columns to change in it. A column that is None is removed.
    """
    synthetic = TASKS["vqa"].synthetic
    assert synthetic is not None
    folder.mkdir(parents=True, exist_ok=True)
    files = synthetic.write(folder, SyntheticData(kind=synthetic.kind, train=6 * rows, test=12, size=64), 1)
    written = json.loads(Path(files["train"]).read_text(encoding="utf-8"))
    known = {name: row for name, row in written.items() if row["answer"] in OPPOSITE}
    kept = dict(list(known.items())[:rows])
    assert len(kept) == rows
    for number, row in enumerate(kept.values()):
        row |= {"good": row["answer"], "bad": OPPOSITE[row["answer"]], **changes.get(f"row_{number}", {})}
        for column in [name for name, value in row.items() if value is None]:
            del row[column]
    Path(files["train"]).write_text(json.dumps(kept), encoding="utf-8")
    return dict(files)


def dpo_recipe(folder: Path, name: str = "pairs", tables: Mapping[str, Any] | None = None, rows: int = 12) -> Recipe:
    """Return a recipe that trains DPO alone on ``write_pairs``. A section in ``tables`` that is None is off."""
    images = folder / "rows"
    files = {split: images / f"{split}.json" for split in ("train", "test")}
    if not files["train"].is_file():
        write_pairs(images, rows)
    changes = dict(tables or {})
    base = small_recipe(folder, {}, name).model_dump()
    dpo = {
        "rejected": "bad",
        "learning_rate": 1e-3,
        "max_steps": 4,
        "batch_size": 2,
        "accumulation": 2,
        "gradient_checkpointing": False,
    }
    sections: dict[str, Any] = {
        **base,
        "data": {"task": "vqa", **{split: str(file) for split, file in files.items()}},
        "lora": {"r": 4, "alpha": 8},
        "sft": None,
        "grpo": None,
        "evaluate": None,
        "dpo": dpo,
        "rewards": {},
    }
    for section, keys in changes.items():
        sections[section] = keys if keys is None else {**(sections.get(section) or {}), **keys}
    file = folder / f"{name}.toml"
    file.write_text(dump_recipe(make_recipe(sections)), encoding="utf-8")
    return load_recipe(file)
