"""What a report draws over a screenshot: the place of the action, and the box that must contain it."""

from collections.abc import Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.data.shapes import Shape, box_shape


def shapes(sample: Sample, answer: Answer | None) -> tuple[Shape, ...]:
    """Return the target of the GUI step. ``answer`` is None for the reference."""
    reference = sample.reference
    gesture = bool(reference.get("gesture"))
    if answer is not None:
        return _at(answer.values.get("place"), gesture, answer.values.get("action") or "")
    place = _at(reference["place"], gesture, reference["action"])
    box = reference["box"]
    return place if box is None or box == reference["place"] else (box_shape(box), *place)


def _at(place: Sequence[float] | None, gesture: bool, label: str) -> tuple[Shape, ...]:
    """Return the shape of 2 or 4 coordinates. Four of them are a box, or the start and end of a gesture."""
    if place is None:
        return ()
    if len(place) == 2:
        return (Shape("point", tuple(map(float, place)), label),)
    return (Shape("arrow", tuple(map(float, place)), label),) if gesture else (box_shape(place, label),)
