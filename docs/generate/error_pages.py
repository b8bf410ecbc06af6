"""The reference of error codes and the lists of the troubleshooting guide."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from docs.generate.error_codes import AREAS, Entry, entries

HEAD = """# Error codes

Every error, warning and finding has a stable code, printed in brackets at the end of the message.
Scripts can compare codes. The wording may change in any release.

- [Troubleshooting](../guides/troubleshooting.md) explains how to read a message, and lists codes by symptom.
- `…` is a value, which the message shows. Texts separated by `/` are different cases of one code.
- `NAME` in a code is one of a few fixed words.
- A code marked *warning* does not end a command.
- A code marked *row* makes one row unusable. Rows are counted by code, and `data.max_dropped` limits their number.
- The text after → is the remedy. Without one, correct what the rule says.

This page is generated from the source by `python -m docs.generate`.
"""

NOTES: Mapping[str, str] = {
    "recipe": "All errors of a recipe are reported together, with file and key. The exit code is 2.",
    "data": "Codes without a mark stop the run, or describe what was found in the rows, in the log and in "
    "`toolkit data inspect RECIPE`.",
    "tasks": "`toolkit data inspect RECIPE` counts them with examples.",
    "plan": "`toolkit plan RECIPE` lists them. `toolkit run` stops only for definite errors.",
    "NAME": "Your own tasks (`tasks`), rewards (`rewards`) and metrics (`evaluate`).",
    "doctor": "`toolkit doctor` prints them, with or without a problem.",
}
"""Area -> what all its codes have in common."""

SYMPTOMS: Mapping[str, tuple[str, ...]] = {
    "model": (
        "plan.model_not_found",
        "plan.model_gated",
        "plan.hub_unreachable",
        "plan.model_folder_missing",
        "plan.weights_not_cached",
        "plan.weights_incomplete",
        "plan.model_type_unsupported",
        "model.family_not_trainable",
        "model.library_missing",
        "install.extra_missing",
    ),
    "gpu": (
        "doctor.gpu_none",
        "doctor.driver_none",
        "doctor.torch_without_cuda",
        "doctor.gpu_memory_in_use",
        "plan.gpu_memory_too_small",
        "training.out_of_memory",
        "training.out_of_memory_at_end",
        "training.batch_halved",
        "training.rollout_halved",
    ),
    "rows": (
        "recipe.rows_missing",
        "data.file_type_unknown",
        "data.columns_do_not_fit",
        "data.image_root_missing",
        "data.image_not_found",
        "data.unusable",
        "data.row_leaks",
        "data.patients_in_two_splits",
    ),
    "learning": (
        "plan.rewards_all_or_nothing",
        "plan.answers_cut_off",
        "plan.small_updates_lost",
        "evaluate.completions_truncated",
        "evaluate.completions_unreadable",
        "training.NAME_not_finite",
    ),
    "resume": (
        "run.recipe_changed",
        "run.schema_version",
        "run.disk_full",
        "run.weights_damaged",
        "training.checkpoint_incomplete",
    ),
    "export": (
        "export.base_quantized",
        "export.converter_failed",
        "export.gguf_family_unsupported",
        "export.not_verified",
        "export.damaged",
    ),
}
"""Symptom of the troubleshooting guide -> its codes."""


def errors_page() -> str:
    """Return the page with every code."""
    parts = [HEAD]
    for area, group in groupby(entries().values(), lambda entry: entry.area):
        parts += [f"## {AREAS[area]}\n", *([f"{NOTES[area]}\n"] if area in NOTES else [])]
        parts += ["\n".join(_line(entry, anchor=True) for entry in group), ""]
    return "\n".join(parts)


def symptom_list(symptom: str) -> str:
    """Return the codes of a symptom as a list."""
    return "\n".join(_line(entries()[code]) for code in SYMPTOMS[symptom])


def area_table() -> str:
    """Return a table of the first words of codes, with the number of codes."""
    counts = {area: sum(entry.area == area for entry in entries().values()) for area in AREAS}
    rows = [
        f"| `{area}.` | [{title}](../reference/errors.md#{title.lower().replace(' ', '-')}) | {counts[area]} |"
        for area, title in AREAS.items()
        if counts[area]
    ]
    return "\n".join(["| code begins with | concerns | codes |", "|---|---|---|", *rows])


def _line(entry: Entry, *, anchor: bool = False) -> str:
    """Return the entry of a list."""
    mark = next((kind for kind in ("warning", "row") if entry.kinds - {""} == {kind}), "")
    name = f'<a id="{entry.code}"></a>`{entry.code}`' if anchor else f"`{entry.code}`"
    text = f"{name}{f' (*{mark}*)' if mark else ''}: {_several(entry.rules)}"
    remedy = _several(_unlike(entry.remedies))
    return f"- {text} → {remedy}" if remedy else f"- {text}"


def _unlike(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts that say something without their values."""
    return (text for text in texts if re.search(r"[a-z]{3}", text))


def _several(texts: Iterable[str]) -> str:
    return " / ".join(escape(" ".join(text.split())) for text in texts)


def escape(text: str) -> str:
    """Return a text of a message as Markdown. Code in backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\<>*\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", part) for part in parts
    )
