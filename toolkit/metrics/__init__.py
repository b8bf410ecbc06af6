"""Metrics report: statistics over many answers, each with its n and an interval."""

from toolkit.metrics.bands import AGE_EDGES, NOT_GIVEN, band
from toolkit.metrics.chains import BEFORE_FAILURE, WHOLE, ChainFigures, Stand, chain_figures, read_chains
from toolkit.metrics.classes import AgainstRest, LabelFigures, label_figures, macro_f1, macro_f1_estimate
from toolkit.metrics.estimate import Estimate, bootstrap_mean, share, wilson
from toolkit.metrics.labels import Confusion, Majority, confusion, majority
from toolkit.metrics.paired import Paired, mcnemar_exact, paired_difference
from toolkit.metrics.picture import draw_confusion
from toolkit.metrics.summary import Comparison, Failure, Figures, Judged, Summary, compare, summarise

__all__ = [
    "AGE_EDGES",
    "BEFORE_FAILURE",
    "NOT_GIVEN",
    "WHOLE",
    "AgainstRest",
    "ChainFigures",
    "Comparison",
    "Confusion",
    "Estimate",
    "Failure",
    "Figures",
    "Judged",
    "LabelFigures",
    "Majority",
    "Paired",
    "Stand",
    "Summary",
    "band",
    "bootstrap_mean",
    "chain_figures",
    "compare",
    "confusion",
    "draw_confusion",
    "label_figures",
    "macro_f1",
    "macro_f1_estimate",
    "majority",
    "mcnemar_exact",
    "paired_difference",
    "read_chains",
    "share",
    "summarise",
    "wilson",
]
