"""Boxes of any classes in medical images."""

from toolkit.data.task import SettingsFromRows, Task
from toolkit.tasks.detect.metrics import SET_METRICS, baseline, labels, scores, stratum
from toolkit.tasks.detect.parse import parse
from toolkit.tasks.detect.prompt import instruction, question, target
from toolkit.tasks.detect.rewards import ALL_OR_NOTHING, REWARD_WEIGHTS, REWARDS, WHY
from toolkit.tasks.detect.schema import (
    COLUMNS,
    Detect,
    check_settings,
    detect_settings,
    dry_run_settings,
    find_settings,
    notes,
    placeholders,
    read,
    with_found,
)
from toolkit.tasks.detect.shapes import shapes
from toolkit.tasks.detect.synthetic import SYNTHETIC_BOXES

__all__ = ["DETECT"]

DETECT = Task(
    name="detect",
    description="boxes of findings in medical images",
    columns=COLUMNS,
    required=frozenset({"image", "boxes|bbox|objects"}),
    leaking=frozenset(name for field in ("bbox", "boxes", "labels", "objects") for name in COLUMNS[field]),
    read=read,
    instruction=instruction,
    question=question,
    target=target,
    parse=parse,
    rewards=REWARDS,
    reward_weights=REWARD_WEIGHTS,
    scores=scores,
    primary="f1",
    labels=labels,
    baseline=baseline,
    also=("iou",),
    set_metrics=SET_METRICS,
    stratum=stratum,
    why=WHY,
    all_or_nothing=ALL_OR_NOTHING,
    settings_model=Detect,
    check=check_settings,
    settings=detect_settings,
    from_rows=SettingsFromRows(find_settings, with_found),
    synthetic=SYNTHETIC_BOXES,
    dry_run=dry_run_settings,
    placeholders=placeholders,
    has_boxes=True,
    needs_image=True,
    notes=notes,
    shapes=shapes,
)
