"""Prompt of the task: the classes and the format of the model family, and the SFT target."""

from toolkit.data.sample import Sample
from toolkit.scoring.regions import NONE, Frame, Labelled, write_boxes

QUESTION = "Which findings does this image show, and where?"


def question(sample: Sample) -> str:
    """Return the question."""
    return str(sample.fields["question"])


def instruction(sample: Sample) -> str:
    """Return the answer format, the classes and the range of coordinates."""
    frame: Frame = sample.fields["frame"]
    key, corners = sample.fields["settings"].key, frame.coordinates.corners
    if frame.coordinates.tokens:
        example, empty = f"{corners} class", NONE
        form = f"Answer with one entry for each finding, separated by semicolons: {example}"
    elif key:
        example, empty = f'[{{"{key}": {corners}, "label": "class"}}]', "[]"
        form = f"Answer with a JSON list of all findings: {example}"
    else:
        example, empty = f"class <bbox>{corners}</bbox>", NONE
        form = f"Answer with one line for each finding: {example}"
    classes = ", ".join(sample.fields["classes"])
    lines = [f"{form}. Without a finding, answer {empty}."]
    if classes:
        lines.append(f"Classes: {classes}.")
    lines.append(f"Coordinates: {frame.ranges}, from the upper left corner.")
    return "\n".join(lines)


def target(sample: Sample) -> str:
    """Return the reference boxes from top to bottom, so that their order is the same in every row."""
    ordered = sorted(references(sample), key=lambda pair: (pair[1][1], pair[1][0], pair[1], pair[0]))
    return write_boxes(ordered, sample.fields["frame"], sample.fields["settings"].key)


def references(sample: Sample) -> list[Labelled]:
    """Return class and box of the reference, in the order of the row."""
    pairs = zip(sample.reference["labels"], sample.reference["boxes"], strict=True)
    return [(label, (x1, y1, x2, y2)) for label, (x1, y1, x2, y2) in pairs]
