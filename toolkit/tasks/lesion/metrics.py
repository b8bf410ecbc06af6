"""Scores and labels of lesions, and their majority baseline: the most frequent diagnosis and place, the median box."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.regions import dice, format_location, write_box
from toolkit.tasks.lesion.rewards import box_overlap, diagnosis, mask_iou, place
from toolkit.tasks.lesion.rewards import format as keeps_format

RESULTS_BY = ("sex", "age_band", "site", "source")
"""Columns with a separate result for each value."""
POSITIVE = "mel"
"""The positive class of binary metrics."""
JACCARD_THRESHOLD = 0.65
"""ISIC 2018 task 1 counts a Jaccard index below it as 0 (arXiv 1902.03368)."""


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return accuracy, place, box_iou, mask_iou and derived scores, and format. None marks scores that do not apply.

    Scores:
        accuracy: reward ``diagnosis``
        place: reward ``place``
        place_exact: 1 if every lesion is in the right cell of the grid
        box_iou: reward ``box_iou``
        box_iou_over_0.5: 1 if ``box_iou`` is at least 0.5
        box_iou_over_0.75: 1 if ``box_iou`` is at least 0.75
        mask_iou: reward ``mask_iou``, the Jaccard index
        thresholded_jaccard: ``mask_iou``, but 0 below 0.65 (ISIC 2018, task 1)
        dice: Dice coefficient, 2 J / (1 + J) for a Jaccard index J
        format: reward ``format``
    """
    overlap, outlined = box_overlap(sample, answer), mask_iou(sample, answer)
    return {
        "accuracy": diagnosis(sample, answer),
        "place": place(sample, answer),
        "place_exact": _exact(place(sample, answer)),
        "box_iou": overlap,
        "box_iou_over_0.5": None if overlap is None else float(overlap >= 0.5),
        "box_iou_over_0.75": None if overlap is None else float(overlap >= 0.75),
        "mask_iou": outlined,
        "thresholded_jaccard": None if outlined is None else outlined * (outlined >= JACCARD_THRESHOLD),
        "dice": None if outlined is None else dice(outlined),
        "format": keeps_format(sample, answer),
    }


def _exact(score: float | None) -> float | None:
    return None if score is None else float(score == 1)


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None] | None:
    """Return the reference and the parsed code, or None if the recipe requests no diagnosis."""
    if "diagnosis" not in sample.fields["requested"]:
        return None
    return sample.reference["diagnosis"], answer.values.get("diagnosis")


def stratum(sample: Sample) -> str:
    """Return the diagnosis."""
    return str(sample.reference["diagnosis"])


def baseline(samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """Return sample -> an answer with one lesion, equal for every image except for the image's size.

    Each edge of the box is the median over the largest lesions of the training rows, as a fraction of the side. The
    median is the constant with the smallest mean distance to the edges.
    """
    diagnoses: Counter[str] = Counter()
    places: Counter[tuple[int, ...]] = Counter()
    edges: list[list[float]] = []
    for sample in samples:
        reference, (width, height) = sample.reference, sample.fields["size"]
        if reference["diagnosis"]:
            diagnoses[reference["diagnosis"]] += 1
        if reference["places"]:
            places[tuple(reference["places"][0])] += 1
        if reference["boxes"]:
            x1, y1, x2, y2 = reference["boxes"][0]
            edges.append([x1 / width, y1 / height, x2 / width, y2 / height])
    code = diagnoses.most_common(1)[0][0] if diagnoses else None
    row, column = places.most_common(1)[0][0] if places else (1, 1)
    box = [median(values) for values in zip(*edges, strict=True)] if edges else None

    def complete(sample: Sample) -> str:
        settings, (width, height) = sample.fields["settings"], sample.fields["size"]
        parts = [f"<location>{format_location((row, column), settings.grid)}</location>"]
        if code is not None:
            parts.insert(0, f"<diagnosis>{settings.labels.name(code)}</diagnosis>")
        if box is not None:
            pixels = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
            parts.append(f"<bbox>{write_box(sample.fields['frame'], pixels)}</bbox>")
        return " ".join(parts)

    return complete
