"""Compare the plan's GPU memory with an allocation trace, for every shipped recipe for a GPU.

    python tests/benchmarks/bench_memory.py [--recipe medgemma_grpo] [--stage grpo] [--dtype bfloat16]
        [--backend unsloth] [--json OUT] [--again OUT ...] [--counts] [--top 10]

Each stage is traced at the recipe's own sizes in a process of its own (``tests/fake_cuda``), without a GPU: one to four
minutes and up to 2 GB each, on one core. Stages with equal settings are traced once. Needs gcc. Prints the parts, a
table of the peaks, and the table of the documentation. The exit code is 1 if the plan breaks a limit, a stage cannot be
traced, or a recipe leaves less than 5 % of its GPU.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.fake_cuda.compare import GIB, Comparison, compare
from tests.fake_cuda.trace import Spec, Traced, trace
from tests.helpers.recipes_on_shapes import GIGABYTES, RECIPES, SHAPE_OF
from toolkit.planning.architecture import Architecture, build_architecture
from toolkit.planning.gpu import usable_bytes
from toolkit.planning.memory import CONTEXT, estimate
from toolkit.planning.model_files import UNQUANTIZED_MODULES
from toolkit.planning.stages import Setting, memory_settings, planned_backend
from toolkit.planning.tokens import longest_possible_row
from toolkit.recipe import load_recipe
from toolkit.tasks import TASKS

SHAPES = RECIPES.parent / "toolkit/planning/shapes"
DTYPES = ("bfloat16", "float32")
SPARE = 0.05
"""Of its GPU that a recipe leaves, by the trace."""


@dataclass(frozen=True, slots=True)
class Case:
    """One stage of a recipe on one kind of GPU."""

    recipe: str
    stage: str
    dtype: str
    gigabytes: int
    fields: dict[str, Any]
    model: Architecture
    setting: Setting
    planned: bool
    """The backend is the one that the recipe runs, and the GPU has bfloat16."""


def cases(chosen: argparse.Namespace) -> Iterator[Case]:
    """Training stages of the shipped recipes of a real model."""
    for file in sorted(RECIPES.glob("*.toml")):
        recipe = load_recipe(file, tasks=TASKS)
        if recipe.model.name not in SHAPE_OF or chosen.recipe not in (None, file.stem):
            continue
        shape = SHAPE_OF[recipe.model.name]
        fields = json.loads((SHAPES / f"{shape}.json").read_text(encoding="utf-8"))
        for backend, unquantized in (("hf", ()), ("unsloth", UNQUANTIZED_MODULES)):
            model = build_architecture(fields, unquantized)
            tokens = longest_possible_row(recipe, model)
            changes: dict[str, object] = {"model": recipe.model.model_copy(update={"backend": backend})}
            if recipe.grpo is not None:  # the simulated device has no packed rows
                changes["grpo"] = recipe.grpo.model_copy(update={"packing": False})
            evaluated = recipe.model_copy(update=changes)
            for dtype in DTYPES:
                if (backend, dtype) == ("unsloth", "float32"):
                    continue  # float16 takes the same bytes; where Gemma overflows, modules of Unsloth's own run
                settings = memory_settings(evaluated, model, tokens, bf16=dtype == "bfloat16")
                for stage, setting in settings.items():
                    if not setting.trains or chosen.stage not in (None, stage):
                        continue
                    if chosen.dtype not in (None, dtype) or chosen.backend not in (None, backend):
                        continue
                    planned = planned_backend(recipe) == backend and dtype == "bfloat16"
                    yield Case(file.stem, stage, dtype, GIGABYTES[shape], fields, model, setting, planned)


Found = tuple[Case, Comparison | None]
NONE = "-"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe")
    parser.add_argument("--stage", choices=("sft", "grpo"))
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--backend", choices=("hf", "unsloth"))
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument(
        "--again", type=Path, nargs="+", help="trace nothing: compare with the traces of earlier --json"
    )
    parser.add_argument("--counts", action="store_true", help="print FLOPs, bytes and kernels by phase")
    parser.add_argument("--top", type=int, default=0, help="print the largest storages of each peak")
    chosen = parser.parse_args()
    known = {key: traced for file in chosen.again or () for key, traced in _read(file).items()}
    found: list[Found] = []
    for case in cases(chosen):
        one = _traced(case, known, chosen)
        comparison = None if one is None else compare(case.model, case.setting, usable_bytes(case.gigabytes), one)
        found.append((case, comparison))
        if chosen.json:
            _write(chosen.json, found)
        print(_describe(case, comparison, chosen), flush=True)
    print("\n" + table(*peaks(found)))
    print("\n" + table(*fits(found)))
    broken = [text for case, one in found for text in _broken(case, one)]
    print("\n".join(["", *broken]) if broken else "\nall limits hold")
    return bool(broken)


def _traced(case: Case, known: dict[str, Traced], chosen: argparse.Namespace) -> Traced | None:
    """The case's trace, an earlier one if there is one. None: it failed, or nothing is to be traced."""
    key = _key(case)
    if key not in known and not chosen.again:
        spec = Spec(case.fields, case.setting, usable_bytes(case.gigabytes) - CONTEXT, chosen.top)
        try:
            known[key] = trace(spec)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{_name(case)}: {error}", flush=True)
    return known.get(key)


def _broken(case: Case, one: Comparison | None) -> Iterator[str]:
    """Limits that do not hold."""
    if one is None:
        yield f"{_name(case)}: not traced"
        return
    yield from (f"{_name(case)}: {text}" for text in one.broken)
    if case.planned and _filled(case, one) > 1 - SPARE:
        yield f"{_name(case)}: {1 - _filled(case, one):.1%} of the GPU are left"


def peaks(found: list[Found]) -> tuple[list[str], list[list[str]]]:
    """The peaks of every case, traced and planned, in GiB."""
    header = ["recipe", "stage", "backend", "dtype", "rollout", "training", "reserved"]
    rows = []
    for case, one in found:
        cells = ["not traced"] * 3
        if one is not None:
            cells = [f"{mine / GIB:.2f} / {plan / GIB:.2f}" if mine else NONE for mine, plan in one.pairs()]
        rows.append([case.recipe, case.stage, case.setting.backend, case.dtype, *cells])
    return header, rows


def fits(found: list[Found]) -> tuple[list[str], list[list[str]]]:
    """The documentation's table: what each recipe leaves of its GPU, on the backend that it runs."""
    header = ["recipe", "stage", "GPU", "rollout", "training", "reserved, traced", "reserved, planned", "free"]
    rows = []
    for case, one in found:
        if not case.planned:
            continue
        plan = estimate(case.model, case.setting, usable_bytes(case.gigabytes))
        traced = [NONE, "not traced", "not traced"]
        free = NONE
        if one is not None:
            moments = one.traced.moments
            sizes = (moments.get("rollout"), moments["training pass"], one.traced.reserved)
            traced = [NONE if size is None else f"{size / GIB:.2f}" for size in sizes]
            free = f"{1 - _filled(case, one):.0%}"
        reserved = max(moment.reserved for moment in plan.moments) / GIB
        name = f"`{case.recipe}`"
        rows.append([name, case.stage, f"{case.gigabytes} GB", *traced, f"{reserved:.2f}", free])
    return header, rows


def _key(case: Case) -> str:
    model = case.model
    facts = [model.model_type, model.parameters, model.quantized, case.gigabytes, dataclasses.asdict(case.setting)]
    return json.dumps(facts)


def _read(file: Path) -> dict[str, Traced]:
    return {one["key"]: Traced(**one["traced"]) for one in json.loads(file.read_text(encoding="utf-8"))}


def _filled(case: Case, one: Comparison) -> float:
    return (one.traced.reserved + CONTEXT) / usable_bytes(case.gigabytes)


def _name(case: Case) -> str:
    return f"{case.recipe} {case.stage} {case.setting.backend} {case.dtype}"


def _describe(case: Case, one: Comparison | None, chosen: argparse.Namespace) -> str:
    if one is None:
        return f"{_name(case)}: not traced"
    row = case.setting.row
    lines = [f"{_name(case)}: {row.text}+{row.images}+{row.answer} tokens, {one.traced.seconds:.0f} s"]
    lines += [f"    {line}" for line in one.lines()]
    if chosen.top:
        lines += [f"    {moment}: {line}" for moment, storages in one.traced.top.items() for line in storages]
    if chosen.counts:
        lines += [f"    {phase}: {dict(counts)}" for phase, counts in one.traced.counts.items()]
    return "\n".join(lines)


def _write(file: Path, found: list[Found]) -> None:
    written = [
        {
            "recipe": case.recipe,
            "stage": case.stage,
            "backend": case.setting.backend,
            "dtype": case.dtype,
            "gigabytes": case.gigabytes,
            "runs": case.planned,
            "key": _key(case),
            "setting": dataclasses.asdict(case.setting),
            "traced": dataclasses.asdict(one.traced),
            "planned": {"parts": dict(one.parts), "moments": dict(one.moments), "reserved": one.reserved},
            "broken": list(one.broken),
            "not_traced": list(one.not_traced),
        }
        for case, one in found
        if one is not None
    ]
    temporary = file.with_suffix(".partial")
    temporary.write_text(json.dumps(written, indent=1), encoding="utf-8")
    temporary.replace(file)


if __name__ == "__main__":
    sys.exit(main())
