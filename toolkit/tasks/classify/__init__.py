"""Image classification with any label set: one label per image, or several."""

from toolkit.data.task import SettingsFromRows, Task
from toolkit.tasks.classify.metrics import SET_METRICS, baseline, labels, scores, stratum
from toolkit.tasks.classify.parse import parse
from toolkit.tasks.classify.prompt import choices, instruction, question, target, truth
from toolkit.tasks.classify.rewards import ALL_OR_NOTHING, REWARD_WEIGHTS, REWARDS, WHY
from toolkit.tasks.classify.schema import (
    COLUMNS,
    Classify,
    check_settings,
    classify_settings,
    dry_run_settings,
    find_settings,
    placeholders,
    read,
    with_found,
)
from toolkit.tasks.classify.synthetic import TILES

__all__ = ["CLASSIFY"]

CLASSIFY = Task(
    name="classify",
    description="classification of images",
    columns=COLUMNS,
    required=frozenset({"image"}),
    leaking=frozenset(COLUMNS["label"]),
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
    also=("f1", "label_accuracy"),
    set_metrics=SET_METRICS,
    stratum=stratum,
    why=WHY,
    all_or_nothing=ALL_OR_NOTHING,
    settings_model=Classify,
    check=check_settings,
    settings=classify_settings,
    from_rows=SettingsFromRows(find_settings, with_found),
    choices=choices,
    truth=truth,
    synthetic=TILES,
    dry_run=dry_run_settings,
    placeholders=placeholders,
    grouped_by="the folder of each row's patient, else its first image",
)
