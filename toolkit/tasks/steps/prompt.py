"""Prompt of a GUI step (goal, screenshot and memories in sections), and the SFT target.

The sections use ``sample.fields`` alone, so nothing of the reference enters a prompt.
"""

from collections.abc import Mapping
from typing import Any

from toolkit.data.sample import Sample
from toolkit.tasks.steps.agent_memory import compact
from toolkit.tasks.steps.json_format import PARTS
from toolkit.tasks.steps.schema import StepSettings

TEMPLATE: Mapping[str, str] = {
    "goal": "Goal: {goal}",
    "image": "The image shows the current screen.",
    "short_term": "Short-term memory: {short_term}",
    "long_term": "Long-term memory: {long_term}",
}
"""Section -> its text. The recipe selects the sections. Without the section ``image`` there is no image."""

_FORMAT: Mapping[str, str] = {
    "short_term": '"Short Term":{…}',
    "long_term": '"Long Term":{…}',
    "reason": '"Reason":"…"',
    "predicted": '"Predicted":{"predicted_action":{"action":"…","target":"…","coords":POINT}}',
}


def question(sample: Sample) -> str:
    """Return the sections that the recipe names, one per line."""
    memory, settings = sample.fields["memory"], sample.fields["settings"]
    texts = {
        "goal": sample.fields["question"],
        "short_term": compact(memory.short_term),
        "long_term": compact(memory.long_term),
    }
    return "\n".join(text.format_map(texts) for name, text in TEMPLATE.items() if name in settings.sections)


def instruction(sample: Sample) -> str:
    """Return the answer format. It is equal for all steps of a recipe except for the range of coordinates."""
    settings: StepSettings = sample.fields["settings"]
    frame = sample.fields["frame"]
    point = frame.coordinates.point.replace(" ", "")
    lines = [
        "What is the next step? Answer with JSON in one line:",
        "{" + ",".join(_FORMAT[part].replace("POINT", point) for part in settings.answer) + "}",
    ]
    if {"short_term", "long_term"} & set(settings.answer):
        lines.append("The memories are what the step after this one has to know.")
    lines.append(f"Actions: {', '.join(settings.actions)}.")
    lines.append(f"coords: {frame.ranges}, from the upper left corner; null for no place.")
    return "\n".join(lines)


def target(sample: Sample) -> str:
    """Return the reference as JSON in one line: the parts that the recipe names and the row has, in the row's order."""
    reference, settings, frame = sample.reference, sample.fields["settings"], sample.fields["frame"]
    place = None if reference["place"] is None else frame.write(reference["place"])
    action = {"action": reference["action"], "target": reference["target"], "coords": place}
    content: dict[str, Any] = {**reference, "predicted": {"predicted_action": action}}
    empty: dict[str, Any] = {"short_term": {}, "long_term": {}, "reason": ""}
    parts = [part for part in reference["parts"] if part in settings.answer]
    return compact({PARTS[part]: empty[part] if content[part] is None else content[part] for part in parts})
