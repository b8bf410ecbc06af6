"""The sections of the model card on intended use, loading and serving, and verification."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.exporting.card.facts import CardFacts
from toolkit.exporting.card.licence import licence_of
from toolkit.exporting.card.markdown import bullets, cell, table
from toolkit.exporting.serving import commands, fill_folder
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
_SHOWN_ELSEWHERE = frozenset(
    ("folder", "megabytes", "questions", "differing", "bits", "verified", "dequantised", "next", "digest", "held_out")
)
_NAMES: Mapping[str, str] = {
    "gap": "largest difference of a token's log-probability",
    "mean_gap": "mean difference of a token's log-probability",
    "differing": "different completions",
}


def intended_use(facts: CardFacts) -> str:
    """Return the title, the intended use and the licence."""
    licence = licence_of(facts.recipe.model.name)
    terms = f"`{licence.name or licence.id}`" if licence else "unknown to the program that wrote this card"
    link = f", see {licence.link}" if licence and licence.link else ""
    return "\n\n".join(
        (
            f"# {cell(facts.name)}",
            f"`{facts.base}`, trained for {TASKS[facts.recipe.dataset.task].description}. Format: {_format(facts)}.",
            "## Intended use",
            "Research and method development, on data like that described below.",
            NO_DEVICE,
            f"Licence of the base model: {terms}{link}. It also applies to these files, besides the terms of the data.",
        )
    )


def usage(folder: Path, facts: CardFacts) -> str:
    """Return how to load the files, and the commands that serve them."""
    parts = ["## How to use it"]
    if facts.format_name in LOADING:
        parts.append(LOADING[facts.format_name].format(base=facts.base))
    if facts.format_name == "adapter" and "/" not in facts.base:
        parts.append(f"`{facts.base}` is not a name on the Hub. Use the folder of this base model.")
    found = [fill_folder(command, ".") for command in commands(facts.format_name, folder, facts.serving)]
    if found:
        parts.append("Serve it, with this folder as the working directory:\n\n```bash\n" + "\n".join(found) + "\n```")
    elif facts.format_name == "adapter" and facts.serving.vision:
        parts.append("vLLM does not support an adapter of the vision tower. Serve the merged weights.")
    if facts.format_name == "gguf":
        parts.append(
            "After `ollama create`, `ollama show` must list *vision* among the capabilities. Some versions of Ollama "
            "ignore the projector (ollama#9967). Test the model with an image before you rely on it."
        )
    parts.append(
        "The model was trained with one prompt. `toolkit predict` uses this prompt, and "
        "`toolkit data inspect RECIPE --show 1` prints it."
    )
    return "\n\n".join(parts)


def verification(facts: CardFacts) -> str:
    """Return how the exported files were compared with the run's weights."""
    found = facts.verification
    if not facts.verified:
        return (
            "## Verification of this export\n\n**It is not verified.** These files were not reloaded after the export."
        )
    same = found["questions"] - found.get("differing", 0)
    whose = "merged" if facts.format_name == "gguf" else "run's"
    bits = f" The weights have {found['bits']} bits." if "bits" in found else ""
    kind = "held-out" if found.get("held_out", True) else "training"
    text = (
        f"These files were reloaded and evaluated on {found['questions']:,} {kind} samples with their images: {same:,} "
    )
    text += f"greedy completions were those of the {whose} weights.{bits}"
    more = {name: value for name, value in found.items() if name not in _SHOWN_ELSEWHERE}
    rounded = ["**The base is stored quantized.** Its dequantized weights were merged, and its rounding errors remain."]
    return "\n\n".join(
        ["## Verification of this export", text, *(rounded if found.get("dequantised") else []), *_further(more)]
    )


def _format(facts: CardFacts) -> str:
    names = {"adapter": "a LoRA adapter (PEFT)", "merged": "merged weights (safetensors)", "gguf": "GGUF"}
    return names.get(facts.format_name, facts.format_name)


def _further(found: Mapping[str, Any]) -> list[str]:
    """Return the other figures of the export's record: single ones as a list, lists of records as tables."""
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
    """Return whether a value is shown: figures, and texts with these names. The record also has completions and ids."""
    return isinstance(value, int | float) or (isinstance(value, str) and name in _SHOWN_TEXTS)


def _words(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
