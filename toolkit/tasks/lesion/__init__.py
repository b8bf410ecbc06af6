"""Skin lesions: diagnosis, location in words, bounding box and outline."""

from collections.abc import Mapping

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.scoring.regions import dice
from toolkit.tasks.lesion.metrics import baseline
from toolkit.tasks.lesion.parse import parse
from toolkit.tasks.lesion.prompt import instruction, target
from toolkit.tasks.lesion.rewards import REWARDS, box_overlap, diagnosis, mask_iou, place
from toolkit.tasks.lesion.rewards import format as keeps_format
from toolkit.tasks.lesion.schema import COLUMNS, read
from toolkit.tasks.lesion.settings import lesion_settings

__all__ = ["LESION"]

JACCARD_THRESHOLD = 0.65
"""ISIC 2018 task 1 counts a Jaccard index below it as 0 (arXiv 1902.03368)."""


def question(sample: Sample) -> str:
    """Return the wording that the seed chose for the row."""
    return str(sample.fields["question"])


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return accuracy, place, box_iou, mask_iou and derived scores, and format. None marks scores that do not apply."""
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


LESION = Task(
    name="lesion",
    columns=COLUMNS,
    required=frozenset({"image", "diagnosis|bbox|boxes|location"}),
    leaking=frozenset(
        name
        for field in ("diagnosis", "bbox", "boxes", "polygons", "mask", "location", "size", "features")
        for name in COLUMNS[field]
    )
    | frozenset(COLUMNS["concerning_features"]),
    read=read,
    instruction=instruction,
    question=question,
    target=target,
    parse=parse,
    rewards=REWARDS,
    scores=scores,
    primary="accuracy",
    labels=labels,
    baseline=baseline,
    also=("place", "box_iou", "mask_iou"),
    stratum=stratum,
    settings=lesion_settings,
    grouped_by="each row's patient, else its lesion, else its image",
)
