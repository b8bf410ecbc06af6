"""Take a small model of each family through plan, SFT, GRPO, evaluation and export, and write a table.

    python -m tests.families_table              every family, some minutes
    python -m tests.families_table llava …      these families; the other rows stay
    python -m tests.families_table --gguf …     the column GGUF alone

Every cell is measured by the run of this file, or says "untried". tests/test_families_matrix.py compares the rows. The
column GGUF needs the converter (extra gguf) and tokenizers of real models (TOOLKIT_SHARED_DATA). Without them it stays.
"""

import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.exports import export_of, merged_of, verified
from tests.helpers.real_processors import unpack_processors
from tests.helpers.recipes import make_recipe
from tests.helpers.tiny_families import TINY, build_tiny
from tests.helpers.tiny_parts import Words
from tests.helpers.training import Tables, recipe_on_files, small_recipe
from toolkit import tiny
from toolkit.errors import ToolkitError
from toolkit.models.llamacpp.convert import is_installed
from toolkit.pipeline import run_recipe
from toolkit.pipeline.architecture_check import make_check
from toolkit.pipeline.plan import plan_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, find_run, read_json, write_json

SHARED_DATA = Path(os.environ.get("TOOLKIT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "model_families.md"
GGUF = "GGUF"
COLUMNS = ("plan", "SFT", "evaluate", "GRPO", "merged", GGUF)
STEPS = 2
NAMES: Mapping[str, str] = {"gemma3": "Gemma 3, MedGemma", **{kind: family.name for kind, family in TINY.items()}}
"""Names for the documentation, by model_type."""
WORKS, UNTRIED, CONVERTED = "works", "untried", "converted"
VOCABULARIES: Mapping[str, str] = {
    **dict.fromkeys(("gemma4", "paligemma"), "tiny"),
    **dict.fromkeys(("smolvlm", "idefics3"), "smolvlm_256m_idefics3"),
}
"""model_type -> processor with the vocabulary for the converter, which rejects unknown ones. Others: Qwen3-VL's."""
LANGUAGE_MODELS: Mapping[str, str] = {
    **dict.fromkeys(("smolvlm", "idefics3"), "VLlama3ForCausalLM"),
    **dict.fromkeys(("llava_onevision", "ovis2"), "Qwen2ForCausalLM"),
    "internvl": "Qwen3ForCausalLM",
    "lfm2_vl": "Lfm2ForCausalLM",
    "llava": "LlamaForCausalLM",
    "llava_next": "MistralForCausalLM",
}
"""model_type -> class of the language model in config.json on the Hub, by which the converter chooses its own class."""
_STAGES: Mapping[str, str] = {"SFT": "sft", "evaluate": "evaluate-sft", "GRPO": "grpo", "merged": "export"}
"""Columns in the order of a run, with their folder in the run."""
Row = Mapping[str, str]
"""Column -> cell."""


def measure(family: str, folder: Path) -> Row:
    """Return the row of a family without GGUF.

    Args:
        family: The model_type.
        folder: An empty folder.
    """
    recipe = _recipe(family, folder)
    cells = dict.fromkeys((column for column in COLUMNS if column != GGUF), UNTRIED)
    problems = [finding.code for finding in plan_recipe(recipe, None).problems]
    cells["plan"] = _rejected(*problems) if problems else WORKS
    if problems:  # `toolkit run` stops here too
        return cells
    try:
        run_recipe(recipe, STAGES)
        stopped = ""
    except ToolkitError as error:
        stopped = error.code
    run = find_run(recipe.run_folder)
    for column, stage in _STAGES.items():
        if not (run.path / "stages" / stage / "done.json").is_file():
            cells[column] = _rejected(stopped)
            break
        cells[column] = WORKS
    _check(cells, run)
    return cells


def measure_gguf(family: str, folder: Path, shared_data: Path) -> str:
    """Return the cell GGUF of a family: that of the check on the real architecture, whatever a plan says.

    Args:
        family: The model_type.
        folder: An empty folder.
        shared_data: The folder with the processors of real models.
    """
    model = tiny.FOLDER
    if family != "gemma3":
        name = VOCABULARIES.get(family, "qwen3_vl")
        known = tiny.FOLDER if name == "tiny" else unpack_processors(shared_data, folder) / "processors" / name
        model = build_tiny(family, folder, Words(known))
        _name_language_model(family, model / "config.json")
    tables: Tables = {
        "model": {"name": str(model), "max_tokens": 1500, "backend": "hf"},
        "lora": {"targets": ["q_proj", "v_proj"]},
        "export": {"to": ["gguf"]},
    }
    sections = small_recipe(folder, tables).model_dump()
    found = make_check(make_recipe({**sections, "grpo": None, "evaluate": None}), folder / "check")
    if "gguf" in found.tried:
        return CONVERTED
    codes = [one.value.partition(":")[0] for one in found.failures if one.part == "gguf"]
    return _rejected(*codes) if codes else UNTRIED


def _name_language_model(family: str, file: Path) -> None:
    if family in LANGUAGE_MODELS:
        fields = read_json(file)
        text = {**fields["text_config"], "architectures": [LANGUAGE_MODELS[family]]}
        write_json(file, {**fields, "text_config": text})


def _rejected(*codes: str) -> str:
    return f"stops: {', '.join(codes)}"


def _check(cells: Row, run: RunFolder) -> None:
    """Check that stages which ended have trained, and that the merged model answers like the adapter."""
    for stage in ("sft", "grpo"):
        if cells[{"sft": "SFT", "grpo": "GRPO"}[stage]] == WORKS:
            losses = [line["loss"] for line in run.metrics() if line["stage"] == stage and "loss" in line]
            assert len(losses) == STEPS
            assert all(math.isfinite(loss) for loss in losses)
    if cells["merged"] == WORKS:
        assert verified(merged_of(export_of(run))).differing == 0


def _recipe(family: str, folder: Path) -> Recipe:
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    sizes = ((64, 64), (120, 56), (56, 100))
    rows = {}
    for number in range(12):
        names = [f"{number}-{place}.png" for place in range(1 + number % 2)]
        for place, name in enumerate(names):
            width, height = sizes[(number + place) % len(sizes)]
            Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(images / name)
        question = f"case {number}: " + "which tissue is shown? " * (1 + number % 3)
        answer = {"options": ["A. lung", "B. skin"], "correct_answer": "AB"[number % 2]}
        rows[f"case-{number}"] = {"question": question, "ImagePath": names, **answer}
    for name, part in {"train": list(rows)[:8], "test": list(rows)[8:]}.items():
        (images / f"{name}.json").write_text(json.dumps({key: rows[key] for key in part}), encoding="utf-8")
    model = tiny.FOLDER if family == "gemma3" else build_tiny(family, folder)
    tables: Tables = {
        "run": {"log_steps": 1},
        "model": {"name": str(model), "max_tokens": 1500, "backend": "hf"},
        "lora": {"targets": ["q_proj", "v_proj"]},
        "sft": {"max_steps": STEPS, "batch_size": 2, "accumulation": 1},
        "grpo": {
            "max_steps": STEPS,
            "prompts_per_step": 2,
            "generations": 2,
            "micro_batch": 1,
            "max_completion_tokens": 6,
        },
        "evaluate": {"limit": 3, "batch_size": 3, "max_completion_tokens": 6, "before": False},
        "export": {"to": ["merged"], "verify": 2},
    }
    return recipe_on_files(folder, images, tables)


def written() -> dict[str, Row]:
    """Return the rows of the documentation's table by model_type."""
    found: dict[str, Row] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 2 + len(COLUMNS) and (kind := re.fullmatch(r"`(\w+)`", cells[1])) and kind[1] != "model_type":
            found[kind[1]] = dict(zip(COLUMNS, cells[2:], strict=True))
    return found


def write(rows: Mapping[str, Row]) -> None:
    """Replace the table of the documentation."""
    known = {**written(), **rows}
    head = ["family", "`model_type`", *COLUMNS]
    lines = [head, ["---"] * len(head)]
    for kind, name in NAMES.items():
        row = known.get(kind, dict.fromkeys(COLUMNS, UNTRIED))
        lines.append([name, f"`{kind}`", *(row[column] for column in COLUMNS)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    text = PAGE.read_text(encoding="utf-8").splitlines()
    places = [number for number, line in enumerate(text) if line.startswith("|")]
    assert all(after == before + 1 for before, after in pairwise(places)), "the page must have one table"
    PAGE.write_text("\n".join([*text[: places[0]], table, *text[places[-1] + 1 :], ""]), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Measure families and write their rows. Return the exit code."""
    families = [name for name in arguments if name != "--gguf"]
    if unknown := set(families) - NAMES.keys():
        print(f"unknown: {', '.join(sorted(unknown))}. Families: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for family in families or NAMES:
        if family in TINY and not TINY[family].installed:
            print(f"{family}: skipped, because {TINY[family].package} is missing", file=sys.stderr)
            continue
        row = {**written().get(family, dict.fromkeys(COLUMNS, UNTRIED)), **_measured(family, "--gguf" in arguments)}
        print(f"{family}: {', '.join(f'{column} {cell}' for column, cell in row.items())}", flush=True)
        write({family: row})
    return 0


def _measured(family: str, gguf_alone: bool) -> Row:
    """Return the cells that can be measured on this machine."""
    cells: dict[str, str] = {}
    if not gguf_alone:
        with tempfile.TemporaryDirectory() as folder:
            cells |= measure(family, Path(folder))
    if is_installed() and SHARED_DATA.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            cells[GGUF] = measure_gguf(family, Path(folder), SHARED_DATA)
    return cells


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
