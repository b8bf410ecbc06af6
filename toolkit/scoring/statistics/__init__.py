"""Statistics over answers. Every figure has its n and an interval."""

from toolkit.scoring.statistics.bootstrap import Draws
from toolkit.scoring.statistics.classification import ClassificationMetrics
from toolkit.scoring.statistics.confusion_matrix import (
    ConfusionMatrix,
    confusion_matrix,
    plot_confusion_matrix,
)
from toolkit.scoring.statistics.episodes import (
    BEFORE_FAILURE,
    WHOLE,
    EpisodeMetrics,
    EpisodePosition,
    episode_metrics,
    find_scored_episodes,
)
from toolkit.scoring.statistics.intervals import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    proportion,
    t_interval,
    wilson,
)
from toolkit.scoring.statistics.paired import Paired, mcnemar_exact, paired_difference
from toolkit.scoring.statistics.probabilities import (
    OneClass,
    OperatingPoint,
    ProbabilityMetrics,
    compare_probabilities,
    disagreement,
    probability_metrics,
)
from toolkit.scoring.statistics.sets import set_differences, set_estimates
from toolkit.scoring.statistics.summary import (
    AGE_EDGES,
    Comparison,
    Metrics,
    ScoredAnswer,
    Summary,
    bin_label,
    compare,
    summarise,
)

__all__ = [
    "AGE_EDGES",
    "BEFORE_FAILURE",
    "WHOLE",
    "ClassificationMetrics",
    "Comparison",
    "ConfusionMatrix",
    "Draws",
    "EpisodeMetrics",
    "EpisodePosition",
    "Estimate",
    "Metrics",
    "OneClass",
    "OperatingPoint",
    "Paired",
    "ProbabilityMetrics",
    "ScoredAnswer",
    "Summary",
    "bin_label",
    "bootstrap_mean",
    "bootstrap_ratio",
    "compare",
    "compare_probabilities",
    "confusion_matrix",
    "disagreement",
    "episode_metrics",
    "find_scored_episodes",
    "mcnemar_exact",
    "paired_difference",
    "plot_confusion_matrix",
    "probability_metrics",
    "proportion",
    "set_differences",
    "set_estimates",
    "summarise",
    "t_interval",
    "wilson",
]
