"""The tables of model families: those of the README from the measured table, and traits from the code."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.models.families import FAMILIES

PAGE = Path(__file__).resolve().parents[1] / "reference" / "model_families.md"


def family_table() -> str:
    """Return the families by how far each was taken, with the families of equal results in one row."""
    groups: dict[str, list[str]] = {}
    for name, cells in _families():
        groups.setdefault(_result(cells), []).append(name)
    lines = [f"| {result} | {', '.join(names)} |" for result, names in groups.items()]
    return "\n".join(["| tested on a CPU | families |", "|---|---|", *lines])


def trait_table() -> str:
    """Return what the code knows of each family that concerns the choice of a model."""
    lines = [
        "| `model_type` | float16 overflows | 4-bit training | vLLM rollouts | GGUF | training |",
        "|---|---|---|---|---|---|",
    ]
    for kind, family in FAMILIES.items():
        gguf = {True: "yes", False: "no", None: ""}[family.gguf]
        vllm = "yes, never run" if family.vllm else ""
        four = "advised against" if family.not_4bit else ""
        stops = "rejected" if family.untrainable else ""
        lines.append(f"| `{kind}` | {'yes' if family.overflows else ''} | {four} | {vllm} | {gguf} | {stops} |")
    return "\n".join(lines)


def _families() -> Iterator[tuple[str, Mapping[str, str]]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    for cells in rows[2:]:
        yield cells[0], dict(zip(rows[0][2:], cells[2:], strict=True))


def _result(cells: Mapping[str, str]) -> str:
    """Return the columns that work. A model that no converter knows can be trained and merged all the same."""
    works = [column for column, cell in cells.items() if cell in ("works", "converted")]
    stopped = any(cell.startswith("stops") for column, cell in cells.items() if column != "GGUF")
    if stopped:
        return "rejected with an error before training" if not works else f"{', '.join(works)}, then an error"
    return ", ".join(works) or "untried"
