"""Parse the boxes of a completion. Unparsed parts and unknown classes are reported, never guessed."""

from collections.abc import Sequence

from toolkit.data.cells import fold
from toolkit.data.sample import Answer, Sample
from toolkit.scoring.reasoning import without_reasoning
from toolkit.scoring.regions import Labelled, parse_boxes

UNKNOWN = "a label is none of the classes"


def parse(completion: str, sample: Sample) -> Answer:
    """Return the boxes of an answer, in pixels of the image.

    ``values``: labels (the class, or the text of the answer if it is no class), boxes, and unread (why a part was not
    parsed). Case, blanks and punctuation of a label do not matter. Coordinates outside the image are kept.
    """
    text, problem = without_reasoning(completion)
    if problem is not None:
        return Answer(completion, {}, problem)
    found = parse_boxes(text, sample.fields["frame"])
    if found.problem is not None:
        return Answer(completion, {}, found.problem)
    known = sample.fields["classes"]
    # Rewards of a single row, without the training rows, know only the classes of its reference.
    classes = {fold(name): name for name in known or sample.reference.get("labels", ())}
    labels = [classes.get(fold(label), label) for label, _ in found.boxes]
    unread = [*found.unread, *(UNKNOWN for label in labels if known and label not in known)]
    boxes = [list(box) for _, box in found.boxes]
    return Answer(completion, {"labels": labels, "boxes": boxes, "unread": unread})


def answers(answer: Answer) -> Sequence[Labelled]:
    """Return label and box of an answer, in its order."""
    pairs = zip(answer.values.get("labels", ()), answer.values.get("boxes", ()), strict=True)
    return [(label, (x1, y1, x2, y2)) for label, (x1, y1, x2, y2) in pairs]
