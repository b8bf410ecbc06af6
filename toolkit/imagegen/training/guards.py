"""Guards against over-optimisation: pure functions from the evaluations of a run to typed verdicts.

A generator that is optimised against a selector first gets better and then learns the selector's errors. Signs of
it are that the judge's score falls, images of a prompt become alike, the generator moves far from its base, or it
reproduces training images. Each guard either stops the update or only logs, as the recipe says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from toolkit.imagegen.evaluation.statistics import Bootstrap, ImageKey, compare_arms
from toolkit.scoring.statistics import Estimate

GuardName = Literal["judge", "diversity", "kl", "copies", "advantage_clip"]
Action = Literal["stop", "log"]
Status = Literal["passed", "fired", "not measured"]


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """The action and the limit of each guard.

    Attributes:
        judge: If the judge's score is below the best evaluation's by more than the interval of the paired difference,
            in each of the last ``judge_evaluations`` evaluations.
        diversity: If the distance between images of a prompt is below ``min_diversity`` times that of real images.
        kl: If the divergence from the base generator is above ``max_kl``, in the unit of the update.
        copies: If more than ``max_copies`` of the images are as close to a training image as the closest 1 % of real
            images are to each other.
        advantage_clip: If more than ``max_clipped`` of the advantages of a round were clipped.
        bootstrap: Settings of the judge's interval.
    """

    judge: Action
    judge_evaluations: int
    diversity: Action
    min_diversity: float
    kl: Action
    max_kl: float
    copies: Action
    max_copies: float
    advantage_clip: Action
    max_clipped: float
    bootstrap: Bootstrap


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measurements after a round of updates. Round 0 is the base. A value that was not measured is None.

    Attributes:
        round: Number of the round.
        judge_scores: The judge's score of each image. All evaluations have the same prompts and noise.
        diversity: Mean distance of features between generated images of a prompt.
        real_diversity: The same for real images.
        kl: Divergence from the base generator.
        below_floor: Fraction of images at most as far from a training image as the floor (``CopyFigures``).
        clipped_advantages: Fraction of the round's advantages that were clipped.
        most_clipped: The largest fraction that can be clipped (``recipe.imagegen_sections.most_clipped``).
    """

    round: int
    judge_scores: Mapping[ImageKey, float]
    diversity: float | None = None
    real_diversity: float | None = None
    kl: float | None = None
    below_floor: float | None = None
    clipped_advantages: float | None = None
    most_clipped: float | None = None

    @property
    def judge(self) -> float:
        """The judge's mean score."""
        return sum(self.judge_scores.values()) / len(self.judge_scores)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of a guard about the last evaluation.

    Attributes:
        guard: Name of the guard.
        round: Round of the evaluation.
        status: "fired" if the limit is exceeded.
        action: The action to take if it fired.
        value: The value that is compared with the limit.
        limit: The limit, in the same unit.
        text: The rule with its figures, or why it was not measured.
        interval: The interval of the judge's paired difference.
    """

    guard: GuardName
    round: int
    status: Status
    action: Action
    value: float | None
    limit: float | None
    text: str
    interval: Estimate | None = None

    @property
    def stops(self) -> bool:
        """Whether the update must stop and restore the best checkpoint."""
        return self.status == "fired" and self.action == "stop"


def check_guards(history: Sequence[Evaluation], settings: GuardSettings) -> tuple[Verdict, ...]:
    """Return the verdict of every guard about the last evaluation of ``history``, which is in the order of rounds.

    Raises:
        ValueError: There is no evaluation, or the rounds do not increase.
        TrainingError: Evaluations differ in their prompts or noise.
    """
    rounds = [evaluation.round for evaluation in history]
    if not rounds or rounds != sorted(set(rounds)):
        raise ValueError(f"evaluations must be in the order of their rounds, got rounds {rounds}")
    last = history[-1]
    return (
        _judge(history, settings),
        _diversity(last, settings),
        _above("kl", last, last.kl, settings.max_kl, settings.kl),
        _above("copies", last, last.below_floor, settings.max_copies, settings.copies),
        _clipped(last, settings),
    )


def best_evaluation(history: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation with the highest mean judge score, the earliest of equal ones."""
    return max(history, key=lambda evaluation: (evaluation.judge, -evaluation.round))


def is_best(history: Sequence[Evaluation], verdicts: Sequence[Verdict]) -> bool:
    """Return whether the last evaluation is the best one.

    A round that a guard stops never is, whatever its judge score.
    """
    return best_evaluation(history) is history[-1] and not any(verdict.stops for verdict in verdicts)


def _judge(history: Sequence[Evaluation], settings: GuardSettings) -> Verdict:
    last, count = history[-1], settings.judge_evaluations
    if len(history) <= count:
        return _not_measured("judge", last, f"it takes more than {count} evaluations", settings.judge)
    best, recent = best_evaluation(history), history[-count:]
    falls = [_fall(best, evaluation, settings.bootstrap) for evaluation in recent]
    if any(fall.high is None for fall in falls):
        return _not_measured("judge", last, "an interval takes 2 prompts or more", settings.judge)
    fired = all(fall.high is not None and fall.high < 0 for fall in falls)
    change = falls[-1]
    text = (
        f"judge score {last.judge:.3f}, {change.value:+.3f} [{change.low:+.3f} to {change.high:+.3f}] against round "
        f"{best.round}, the best one"
    )
    return Verdict("judge", last.round, "fired" if fired else "passed", settings.judge, change.value, 0.0, text, change)


def _fall(best: Evaluation, evaluation: Evaluation, bootstrap: Bootstrap) -> Estimate:
    return compare_arms(best.judge_scores, evaluation.judge_scores, bootstrap, min_pairs=1).difference


def _diversity(last: Evaluation, settings: GuardSettings) -> Verdict:
    if last.diversity is None or not last.real_diversity:
        reason = "the distance between images of a prompt is not known for generated and real images"
        return _not_measured("diversity", last, reason, settings.diversity)
    ratio, limit = last.diversity / last.real_diversity, settings.min_diversity
    text = f"diversity {ratio:.2f} of that of real images, the limit is {limit:g}"
    status: Status = "passed" if ratio >= limit else "fired"  # NaN must not pass.
    return Verdict("diversity", last.round, status, settings.diversity, ratio, limit, text)


def _above(guard: GuardName, last: Evaluation, value: float | None, limit: float, action: Action) -> Verdict:
    if value is None:
        return _not_measured(guard, last, "no value", action)
    status: Status = "passed" if value <= limit else "fired"  # NaN must not pass.
    return Verdict(
        guard, last.round, status, action, value, limit, f"{_WHAT[guard]} {value:.4g}, the limit is {limit:g}"
    )


def _clipped(last: Evaluation, settings: GuardSettings) -> Verdict:
    """The text has an addition if the guard can never fire: advantages of a group have a standard deviation of 1."""
    found = _above("advantage_clip", last, last.clipped_advantages, settings.max_clipped, settings.advantage_clip)
    if last.most_clipped is None or last.most_clipped > settings.max_clipped:
        return found
    reason = f"It cannot fire, because at most {last.most_clipped:.2g} of the advantages can be beyond the clip"
    return replace(found, text=f"{found.text}. {reason}")


_WHAT: Mapping[GuardName, str] = {
    "kl": "divergence from the base",
    "copies": "fraction of images close to a training image",
    "advantage_clip": "fraction of clipped advantages",
}


def _not_measured(guard: GuardName, last: Evaluation, reason: str, action: Action) -> Verdict:
    return Verdict(guard, last.round, "not measured", action, None, None, reason)
