"""What the model is for, how its files are used, and what proved them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.exporting.card.facts import CardFacts
from toolkit.exporting.card.licence import licence_of
from toolkit.exporting.card.markdown import bullets, cell, table
from toolkit.exporting.serving import commands, fill_in
from toolkit.tasks import TASKS

NO_DEVICE = (
    "**Not a medical device.** It is not meant for diagnosis or for decisions about patients, and no authority has "
    "cleared it."
)
LOADING: Mapping[str, str] = {
    "adapter": """```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, ".")  # this folder
processor = AutoProcessor.from_pretrained(".")
```""",
    "merged": """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")  # this folder
processor = AutoProcessor.from_pretrained(".")
```""",
}
_SHOWN_TEXTS = ("", "file", "quant", "quantisation", "type")
_TOLD_APART = frozenset(
    ("folder", "megabytes", "questions", "differing", "bits", "verified", "dequantised", "next", "digest", "held_out")
)
_NAMES: Mapping[str, str] = {
    "gap": "largest difference of a token's log-probability",
    "mean_gap": "mean difference of a token's log-probability",
    "differing": "other answers",
}


def intended_use(facts: CardFacts) -> str:
    """Title, what it is, what it is not, and under which terms."""
    licence = licence_of(facts.recipe.model.name)
    terms = f"`{licence.name or licence.id}`" if licence else "not known to the program that wrote this card"
    link = f", see {licence.link}" if licence and licence.link else ""
    return "\n\n".join(
        (
            f"# {cell(facts.name)}",
            f"`{facts.base}`, trained for {TASKS[facts.recipe.dataset.task].description}; here as {_form(facts)}.",
            "## Intended use",
            "Research and the development of methods, on data like those named below.",
            NO_DEVICE,
            f"Licence of the base model: {terms}{link}. It holds for these files too, beside the terms of the data.",
        )
    )


def usage(folder: Path, facts: CardFacts) -> str:
    """How to load the files, and the commands that serve them, with these files' names."""
    parts = ["## How to use it"]
    if facts.form in LOADING:
        parts.append(LOADING[facts.form].format(base=facts.base))
    if facts.form == "adapter" and "/" not in facts.base:
        parts.append(f"`{facts.base}` is no name on the Hub: give the folder that holds this base model.")
    found = [fill_in(command, ".") for command in commands(facts.form, folder, facts.serving)]
    if found:
        parts.append("Served, with this folder as the working directory:\n\n```bash\n" + "\n".join(found) + "\n```")
    elif facts.form == "adapter" and facts.serving.vision:
        parts.append("vLLM loads no adapter of a vision tower: serve the merged weights.")
    if facts.form == "gguf":
        parts.append(
            "After `ollama create`, `ollama show` must name *vision* among the capabilities: some versions of Ollama "
            "take the vision part and answer without it (ollama#9967). Ask about a picture before you rely on it."
        )
    parts.append(
        "The model was trained on one wording of its prompt. `toolkit predict` asks in that wording; "
        "`toolkit data inspect RECIPE --show 1` prints it."
    )
    return "\n\n".join(parts)


def proof(facts: CardFacts) -> str:
    """How what was written was compared with the run's weights."""
    found = facts.proof
    if not facts.verified:
        return "## How this export was proven\n\n**It was not.** Nothing was asked of these files after writing them."
    same = found["questions"] - found.get("differing", 0)
    whose = "merged" if facts.form == "gguf" else "run's"
    bits = f" The weights have {found['bits']} bits." if "bits" in found else ""
    kind = "questions" if found.get("held_out", True) else "questions of rows that were trained on,"
    told = f"These files were loaded again and asked {found['questions']:,} {kind} with their pictures: {same:,} "
    told += f"greedy answers were those of the {whose} weights.{bits}"
    more = {name: value for name, value in found.items() if name not in _TOLD_APART}
    rounded = ["**The base is stored quantised**, and its dequantised weights were merged, with that rounding in them."]
    return "\n\n".join(
        ["## How this export was proven", told, *(rounded if found.get("dequantised") else []), *_further(more)]
    )


def _form(facts: CardFacts) -> str:
    forms = {"adapter": "a LoRA adapter (PEFT)", "merged": "merged weights (safetensors)", "gguf": "GGUF"}
    return forms.get(facts.form, facts.form)


def _further(found: Mapping[str, Any]) -> list[str]:
    """Whatever other figures the record of the export holds: single ones as a list, lists of records as tables."""
    single = [f"{_words(name)}: {_value(value)}" for name, value in found.items() if _is_shown(name, value)]
    tables = [_records(value) for value in found.values() if isinstance(value, Mapping | Sequence) and value]
    return [part for part in (bullets(single), *(one for one in tables if one)) if part]


def _records(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [{"": name, **inner} for name, inner in value.items() if isinstance(inner, Mapping)]
    rows = [row for row in value if isinstance(row, Mapping)] if not isinstance(value, str) else []
    heads = list(dict.fromkeys(name for row in rows for name, inner in row.items() if _is_shown(name, inner)))
    if not heads:
        return ""
    return table([_words(name) for name in heads], [[_value(row.get(name, "")) for name in heads] for row in rows])


def _is_shown(name: str, value: Any) -> bool:
    """Figures, and texts under these names only: answers and ids of questions stand in the record too."""
    return isinstance(value, int | float) or (isinstance(value, str) and name in _SHOWN_TEXTS)


def _words(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
