"""Metrics report: statistics over many answers, each with its n and an interval."""

from toolkit.scoring.statistics.bins import AGE_EDGES, NOT_GIVEN, band
from toolkit.scoring.statistics.classification import (
    AgainstRest,
    LabelFigures,
    label_figures,
    macro_f1,
    macro_f1_estimate,
)
from toolkit.scoring.statistics.confusion import Confusion, Majority, confusion, majority
from toolkit.scoring.statistics.confusion_plot import draw_confusion
from toolkit.scoring.statistics.episodes import BEFORE_FAILURE, WHOLE, ChainFigures, Stand, chain_figures, read_chains
from toolkit.scoring.statistics.intervals import Estimate, bootstrap_mean, share, wilson
from toolkit.scoring.statistics.paired import Paired, mcnemar_exact, paired_difference
from toolkit.scoring.statistics.summary import Comparison, Failure, Figures, Judged, Summary, compare, summarise

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
