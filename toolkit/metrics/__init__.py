"""Metrics report: statistics over many answers, each with its n and an interval."""

from toolkit.metrics.bands import AGE_EDGES, NOT_GIVEN, band
from toolkit.metrics.classes import AgainstRest, LabelFigures, label_figures, macro_f1, macro_f1_estimate
from toolkit.metrics.estimate import Estimate, bootstrap_mean, share, wilson
from toolkit.metrics.labels import Confusion, Majority, confusion, majority
from toolkit.metrics.paired import Paired, mcnemar_exact, paired_difference
from toolkit.metrics.picture import draw_confusion
from toolkit.metrics.summary import Comparison, Failure, Figures, Judged, Summary, compare, summarise

__all__ = [
    "AGE_EDGES",
    "NOT_GIVEN",
    "AgainstRest",
    "Comparison",
    "Confusion",
    "Estimate",
    "Failure",
    "Figures",
    "Judged",
    "LabelFigures",
    "Majority",
    "Paired",
    "Summary",
    "band",
    "bootstrap_mean",
    "compare",
    "confusion",
    "draw_confusion",
    "label_figures",
    "macro_f1",
    "macro_f1_estimate",
    "majority",
    "mcnemar_exact",
    "paired_difference",
    "share",
    "summarise",
    "wilson",
]
