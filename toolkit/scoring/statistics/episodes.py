"""Answers that follow each other: whether all of a chain are right, and at which place it fails first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from toolkit.scoring.statistics.intervals import Estimate, bootstrap_mean, proportion
from toolkit.scoring.statistics.summary import ScoredAnswer

WHOLE = "whole"
BEFORE_FAILURE = "before_failure"
"""The scores of a chain as ``Chain.judged`` names them."""


@dataclass(frozen=True, slots=True)
class EpisodePosition:
    """Where an answer is in its chain: at ``place`` of ``length``, counted from 1."""

    chain: str
    place: int
    length: int


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of which every answer is there. ``failed_at``: the first place that is not right; None: all are."""

    name: str
    group: str
    length: int
    failed_at: int | None
    by: Mapping[str, str] = field(default_factory=dict)
    """The columns in which all of its answers have one value."""

    @property
    def before_failure(self) -> float:
        """The fraction of its answers that stand before the first failure; 1 if all are right."""
        return 1.0 if self.failed_at is None else (self.failed_at - 1) / self.length

    def judged(self) -> ScoredAnswer:
        """Return the chain as one judged row: whole (0 or 1) and before_failure (in [0, 1])."""
        scores = {WHOLE: float(self.failed_at is None), BEFORE_FAILURE: self.before_failure}
        return ScoredAnswer(self.name, self.group, scores, by=self.by)


@dataclass(frozen=True, slots=True)
class EpisodeMetrics:
    """What is known of chains. Every figure has its n (chains) and its interval.

    Attributes:
        n: chains of which every answer is there.
        incomplete: chains that lack one. They are in no figure.
        whole: fraction of chains with every answer right.
        before_failure: mean of ``Chain.before_failure``.
        first_failure: mean place of the first failure, over the chains that fail. Not in [0, 1].
        failing: place -> chains that fail there first.
        survival: place -> fraction of chains that are right up to it, among those that have it.
        by: column -> value -> ``whole`` of the chains with this value.
    """

    n: int
    incomplete: int
    whole: Estimate
    before_failure: Estimate
    first_failure: Estimate
    failing: Mapping[int, int]
    survival: Mapping[int, Estimate]
    by: Mapping[str, Mapping[str, Estimate]]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries for JSON."""
        return asdict(self)


def find_scored_episodes(
    rows: Sequence[ScoredAnswer], stands: Mapping[str, EpisodePosition], score: str
) -> tuple[list[Chain], int]:
    """Return the chains whose answers are all there, and how many others there are.

    An answer is right where ``score`` is 1. An answer that could not be read is there, and wrong.

    Args:
        rows: judged answers, in any order.
        stands: id -> where it stands.
        score: a name in ``ScoredAnswer.scores``.
    """
    parts: dict[str, list[ScoredAnswer]] = {}
    for row in rows:
        parts.setdefault(stands[row.id].chain, []).append(row)
    chains = []
    for name, part in parts.items():
        part.sort(key=lambda row: stands[row.id].place)
        length = stands[part[0].id].length
        if [stands[row.id].place for row in part] == list(range(1, length + 1)):
            chains.append(_chain(name, part, score))
    return chains, len(parts) - len(chains)


def episode_metrics(
    rows: Sequence[ScoredAnswer], stands: Mapping[str, EpisodePosition], score: str, resamples: int, seed: int
) -> EpisodeMetrics:
    """Return all figures of the chains that these answers form; ``resamples`` and ``seed`` are those of the bootstrap."""
    chains, incomplete = find_scored_episodes(rows, stands, score)
    groups = [chain.group for chain in chains]
    failed = [chain for chain in chains if chain.failed_at is not None]
    places = range(1, max((chain.length for chain in chains), default=0) + 1)
    counted = Counter(chain.failed_at for chain in failed if chain.failed_at is not None)
    return EpisodeMetrics(
        n=len(chains),
        incomplete=incomplete,
        whole=_whole(chains, resamples, seed),
        before_failure=proportion([chain.before_failure for chain in chains], groups, resamples, seed),
        first_failure=bootstrap_mean(
            [float(chain.failed_at or 0) for chain in failed], [chain.group for chain in failed], resamples, seed
        ),
        failing={place: counted[place] for place in places if counted[place]},
        survival={place: _surviving(chains, place, resamples, seed) for place in places},
        by=_by(chains, resamples, seed),
    )


def _chain(name: str, part: Sequence[ScoredAnswer], score: str) -> Chain:
    wrong = [place for place, row in enumerate(part, start=1) if row.scores.get(score) != 1]
    first = part[0]
    shared = {column: value for column, value in first.by.items() if all(row.by.get(column) == value for row in part)}
    return Chain(name, first.group, len(part), wrong[0] if wrong else None, shared)


def _whole(chains: Sequence[Chain], resamples: int, seed: int) -> Estimate:
    return proportion(
        [float(chain.failed_at is None) for chain in chains], [chain.group for chain in chains], resamples, seed
    )


def _surviving(chains: Sequence[Chain], place: int, resamples: int, seed: int) -> Estimate:
    having = [chain for chain in chains if chain.length >= place]
    right = [float(chain.failed_at is None or chain.failed_at > place) for chain in having]
    return proportion(right, [chain.group for chain in having], resamples, seed)


def _by(chains: Sequence[Chain], resamples: int, seed: int) -> dict[str, dict[str, Estimate]]:
    parts: dict[str, dict[str, list[Chain]]] = {}
    for chain in chains:
        for column, value in chain.by.items():
            parts.setdefault(column, {}).setdefault(value, []).append(chain)
    return {
        column: {value: _whole(part, resamples, seed) for value, part in sorted(values.items())}
        for column, values in parts.items()
    }
