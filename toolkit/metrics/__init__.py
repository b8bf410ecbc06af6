"""Metrics report: statistics over many answers, each with its n and an interval."""

from toolkit.metrics.estimate import Estimate, bootstrap_mean, share, wilson
from toolkit.metrics.labels import Confusion, Majority, confusion, macro_f1, macro_f1_estimate, majority
from toolkit.metrics.paired import Paired, mcnemar_exact, paired_difference
from toolkit.metrics.summary import Comparison, Failure, Figures, Judged, Summary, compare, summarise

__all__ = [
    "Comparison",
    "Confusion",
    "Estimate",
    "Failure",
    "Figures",
    "Judged",
    "Majority",
    "Paired",
    "Summary",
    "bootstrap_mean",
    "compare",
    "confusion",
    "macro_f1",
    "macro_f1_estimate",
    "majority",
    "mcnemar_exact",
    "paired_difference",
    "share",
    "summarise",
    "wilson",
]
