"""Skin lesions: diagnosis, location in words, bounding box and outline."""

from toolkit.data.boxes import small_boxes
from toolkit.data.task import Task
from toolkit.tasks.lesion.metrics import POSITIVE, RESULTS_BY, baseline, labels, scores, stratum
from toolkit.tasks.lesion.parse import parse
from toolkit.tasks.lesion.prompt import instruction, prompt_key, question, target
from toolkit.tasks.lesion.rewards import ALL_OR_NOTHING, REWARD_WEIGHTS, REWARDS, WHY
from toolkit.tasks.lesion.schema import (
    COLUMNS,
    Lesion,
    check_settings,
    dry_run_settings,
    lesion_settings,
    placeholders,
    read,
)
from toolkit.tasks.lesion.shapes import shapes
from toolkit.tasks.lesion.synthetic import LESIONS

__all__ = ["LESION"]

LESION = Task(
    name="lesion",
    description="lesions in images: diagnosis and location",
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
    reward_weights=REWARD_WEIGHTS,
    scores=scores,
    primary="accuracy",
    labels=labels,
    baseline=baseline,
    also=("place", "box_iou", "mask_iou"),
    stratum=stratum,
    why=WHY,
    all_or_nothing=ALL_OR_NOTHING,
    results_by=RESULTS_BY,
    positive=POSITIVE,
    settings_model=Lesion,
    check=check_settings,
    settings=lesion_settings,
    synthetic=LESIONS,
    dry_run=dry_run_settings,
    placeholders=placeholders,
    has_boxes=True,
    notes=lambda sample: small_boxes(sample) if "bbox" in sample.fields["requested"] else (),
    needs_image=True,
    prompt_key=prompt_key,
    shapes=shapes,
)
