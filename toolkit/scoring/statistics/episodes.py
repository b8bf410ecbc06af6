"""Metrics of episodes: whether all answers of an episode are correct, and where it fails first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from toolkit.scoring.statistics.intervals import Estimate, bootstrap_mean, proportion
from toolkit.scoring.statistics.summary import ScoredAnswer

WHOLE = "whole"
BEFORE_FAILURE = "before_failure"
"""Score names in ``ScoredEpisode.scored_answer``."""


@dataclass(frozen=True, slots=True)
class EpisodePosition:
    """Position of an answer in its episode: ``position`` of ``length``, counted from 1."""

    episode: str
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class ScoredEpisode:
    """A complete episode. ``failed_at`` is the first incorrect position, or None if all answers are correct."""

    name: str
    group: str
    length: int
    failed_at: int | None
    by: Mapping[str, str] = field(default_factory=dict)
    """Columns with the same value in all answers of the episode."""

    @property
    def before_failure(self) -> float:
        """Fraction of answers before the first failure. It is 1 if all answers are correct."""
        return 1.0 if self.failed_at is None else (self.failed_at - 1) / self.length

    def scored_answer(self) -> ScoredAnswer:
        """Return the episode as one scored row: whole (0 or 1) and before_failure (in [0, 1])."""
        scores = {WHOLE: float(self.failed_at is None), BEFORE_FAILURE: self.before_failure}
        return ScoredAnswer(self.name, self.group, scores, by=self.by)


@dataclass(frozen=True, slots=True)
class EpisodeMetrics:
    """Metrics of episodes, each with its n (episodes) and its interval.

    Attributes:
        n: Complete episodes.
        incomplete: Episodes with a missing answer. They are in no metric.
        whole: Fraction of episodes with every answer correct.
        before_failure: Mean of ``ScoredEpisode.before_failure``.
        first_failure: Mean position of the first failure over failing episodes. Not in [0, 1].
        failing: Position -> number of episodes that fail there first.
        survival: Position -> fraction of episodes without a failure up to it, among those that reach it.
        by: Column -> value -> ``whole`` of the episodes with this value.
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
        """Return plain dictionaries for JSON."""
        return asdict(self)


def find_scored_episodes(
    rows: Sequence[ScoredAnswer], positions: Mapping[str, EpisodePosition], score: str
) -> tuple[list[ScoredEpisode], int]:
    """Return the complete episodes and the number of incomplete ones.

    An answer is correct if ``score`` is 1. An unparsed answer is present, and incorrect.

    Args:
        rows: Scored answers, in any order.
        positions: Sample id -> position.
        score: A name in ``ScoredAnswer.scores``.
    """
    parts: dict[str, list[ScoredAnswer]] = {}
    for row in rows:
        parts.setdefault(positions[row.id].episode, []).append(row)
    episodes = []
    for name, part in parts.items():
        part.sort(key=lambda row: positions[row.id].position)
        length = positions[part[0].id].length
        if [positions[row.id].position for row in part] == list(range(1, length + 1)):
            episodes.append(_scored_episode(name, part, score))
    return episodes, len(parts) - len(episodes)


def episode_metrics(
    rows: Sequence[ScoredAnswer], positions: Mapping[str, EpisodePosition], score: str, resamples: int, seed: int
) -> EpisodeMetrics:
    """Return all metrics of the episodes of these answers. ``resamples`` and ``seed`` configure the bootstrap."""
    episodes, incomplete = find_scored_episodes(rows, positions, score)
    groups = [episode.group for episode in episodes]
    failed = [episode for episode in episodes if episode.failed_at is not None]
    all_positions = range(1, max((episode.length for episode in episodes), default=0) + 1)
    counted = Counter(episode.failed_at for episode in failed if episode.failed_at is not None)
    return EpisodeMetrics(
        n=len(episodes),
        incomplete=incomplete,
        whole=_whole(episodes, resamples, seed),
        before_failure=proportion([episode.before_failure for episode in episodes], groups, resamples, seed),
        first_failure=bootstrap_mean(
            [float(episode.failed_at or 0) for episode in failed],
            [episode.group for episode in failed],
            resamples,
            seed,
        ),
        failing={position: counted[position] for position in all_positions if counted[position]},
        survival={position: _surviving(episodes, position, resamples, seed) for position in all_positions},
        by=_by(episodes, resamples, seed),
    )


def _scored_episode(name: str, part: Sequence[ScoredAnswer], score: str) -> ScoredEpisode:
    wrong = [position for position, row in enumerate(part, start=1) if row.scores.get(score) != 1]
    first = part[0]
    by = {column: value for column, value in first.by.items() if all(row.by.get(column) == value for row in part)}
    return ScoredEpisode(name, first.group, len(part), wrong[0] if wrong else None, by)


def _whole(episodes: Sequence[ScoredEpisode], resamples: int, seed: int) -> Estimate:
    return proportion(
        [float(episode.failed_at is None) for episode in episodes],
        [episode.group for episode in episodes],
        resamples,
        seed,
    )


def _surviving(episodes: Sequence[ScoredEpisode], position: int, resamples: int, seed: int) -> Estimate:
    reaching = [episode for episode in episodes if episode.length >= position]
    surviving = [float(episode.failed_at is None or episode.failed_at > position) for episode in reaching]
    return proportion(surviving, [episode.group for episode in reaching], resamples, seed)


def _by(episodes: Sequence[ScoredEpisode], resamples: int, seed: int) -> dict[str, dict[str, Estimate]]:
    parts: dict[str, dict[str, list[ScoredEpisode]]] = {}
    for episode in episodes:
        for column, value in episode.by.items():
            parts.setdefault(column, {}).setdefault(value, []).append(episode)
    return {
        column: {value: _whole(part, resamples, seed) for value, part in sorted(values.items())}
        for column, values in parts.items()
    }
