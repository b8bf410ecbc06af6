"""The stage ``ddpo``: rounds of generating, gating, rewarding, updating and evaluating, watched by guards.

The gate: an image that the selector does not pass is never reinforced. It can still be discouraged, so that a weak base
has something to learn from.

The best round is chosen by the judge on noise of its own. The table is made on other noise, so that the choice does not
flatter it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from toolkit.errors import warn
from toolkit.imagegen.evaluation.evaluate import ImageMetrics
from toolkit.imagegen.generators.lora import copy_lora, restore_lora
from toolkit.imagegen.scorers.reward import RewardSettings, passes, rewards
from toolkit.imagegen.settings import ddpo_settings, guard_settings
from toolkit.imagegen.training.arm import ArmContext, ArmFigures, begin_arm, resume_round, save_round
from toolkit.imagegen.training.ddpo import (
    DdpoRound,
    DdpoSettings,
    Rollout,
    Score,
    roll_out,
    update_policy,
)
from toolkit.imagegen.training.guards import Evaluation, Verdict, check_guards, is_best
from toolkit.imagegen.training.refresh import Refreshed, RefreshOutcome, refresh_scorers
from toolkit.imagegen.training.update_state import UpdateState
from toolkit.recipe.imagegen_sections import most_clipped
from toolkit.scoring.statistics import Estimate

ARM = "ddpo"


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round of ``ddpo``, evaluated after its update. Round 0 is the base.

    Attributes:
        round: the number of the round.
        update: measurements of the update. None for round 0.
        passed: fraction of the round's images that the selector passed. None for round 0.
        judge: mean judge score of the evaluation.
        selector: mean selector score of the evaluation.
        diversity: distance of features within prompts.
        real_diversity: the same distance of the reference images.
        evaluation: the measurements that the guards check.
        verdicts: the verdicts of the guards.
        refreshed: outcomes of the refresh of selector and policy, if it is enabled.
        threshold: the lowest score that passes the selector, if a refresh of this round chose it again.
    """

    round: int
    update: DdpoRound | None
    passed: float | None
    judge: Estimate
    selector: Estimate
    diversity: float | None
    real_diversity: float | None
    evaluation: "RoundScores"
    verdicts: tuple[Verdict, ...] = ()
    refreshed: tuple[RefreshOutcome, ...] = ()
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class RoundScores:
    """An ``Evaluation`` as JSON has it.

    Attributes:
        judge_scores: the judge's scores in the order of the evaluation's images, which all rounds have in common.
        kl: the divergence from the base generator.
        below_floor: the fraction of images that are close to a training image.
        clipped_advantages: the fraction of the round's advantages that were clipped.
    """

    judge_scores: tuple[float, ...]
    kl: float | None
    below_floor: float | None
    clipped_advantages: float | None


@dataclass(frozen=True, slots=True)
class DdpoResult:
    """The result of ``ddpo``.

    Attributes:
        rounds: all rounds, from round 0, the base.
        best_round: the round whose parameters the arm ends with.
        stopped: the verdicts that stopped the update before its last round.
        figures: the figures of the best round, for the table.
    """

    rounds: tuple[RoundResult, ...]
    best_round: int
    stopped: tuple[Verdict, ...]
    figures: ArmFigures


@dataclass(frozen=True, slots=True, eq=False)
class DdpoProgress:
    """The finished rounds, and the LoRA of the best one, as a checkpoint has them."""

    rounds: tuple[RoundResult, ...]
    best: dict[str, Tensor]
    best_round: int

    @property
    def threshold(self) -> float | None:
        """The threshold that the last refresh chose. None: that of stage 1."""
        return next((one.threshold for one in reversed(self.rounds) if one.threshold is not None), None)

    @property
    def stopped(self) -> tuple[Verdict, ...]:
        """The guards that stop the update."""
        return tuple(verdict for verdict in self.rounds[-1].verdicts if verdict.stops)


def train_ddpo(arm_context: ArmContext) -> DdpoResult:
    """Update the base by DDPO, and evaluate its best round.

    Raises:
        TrainingError: gradients are not finite.
        Interrupted: a signal came. The last finished round is saved.
    """
    context, generator = arm_context.context, arm_context.generator
    settings = ddpo_settings(context.recipe)
    state = begin_arm(arm_context, ARM, settings.learning_rate)
    progress = resume_round(arm_context, ARM, state, DdpoProgress) or _begin(arm_context)
    total = context.section.update.rounds
    while state.round < total and not progress.stopped:
        context.stop.check(f"round {state.round} of {ARM} is saved")
        progress = _round(arm_context, state, settings, progress)
        # Before the save, so that no round is missing from the metrics, whenever the run is killed.
        _report(arm_context, progress.rounds[-1], total)
        save_round(arm_context, ARM, state, progress)
    restore_lora(generator.network, progress.best)
    generator.save_lora(context.run.weights_folder(ARM))
    return DdpoResult(progress.rounds, progress.best_round, progress.stopped, arm_context.figures(ARM))


def _begin(arm_context: ArmContext) -> DdpoProgress:
    metrics = arm_context.evaluate_round(ARM, 0)
    first = _round_result(0, metrics, RoundScores(metrics.judge_scores, None, metrics.copies.below_floor.value, None))
    return DdpoProgress((first,), copy_lora(arm_context.generator.network), 0)


def _round(arm_context: ArmContext, state: UpdateState, settings: DdpoSettings, progress: DdpoProgress) -> DdpoProgress:
    """Generate, score, update, refresh the scorers, evaluate, and check the guards."""
    if progress.threshold is not None:
        arm_context = _with_threshold(arm_context, progress.threshold)
    rollout = _gated_rollout(arm_context, state, settings)
    update = update_policy(state, settings, rollout)
    refreshed = Refreshed()
    if arm_context.context.section.update.refresh.enabled:
        refreshed = refresh_scorers(arm_context, rollout.images_NCHW, rollout.prompts, state.round)
    if refreshed.threshold is not None:
        arm_context = _with_threshold(arm_context, refreshed.threshold.value)
    metrics = arm_context.evaluate_round(ARM, state.round)
    scores = RoundScores(
        metrics.judge_scores, update.kl_to_base, metrics.copies.below_floor.value, update.clipped_advantages
    )
    result = replace(
        _round_result(state.round, metrics, scores),
        update=update,
        passed=None if rollout.passed_N is None else float(rollout.passed_N.float().mean()),
        refreshed=refreshed.outcomes,
        threshold=None if refreshed.threshold is None else refreshed.threshold.value,
    )
    # All evaluations have the same prompts and noise, so that the keys of this one are those of the earlier rounds.
    most = most_clipped(settings.advantage_clip, max(Counter(rollout.prompts).values()))
    history = [_guard_input(one, metrics, most) for one in (*progress.rounds, result)]
    verdicts = check_guards(history, guard_settings(arm_context.context.recipe))
    rounds = (*progress.rounds, replace(result, verdicts=verdicts))
    if is_best(history, verdicts):
        return DdpoProgress(rounds, copy_lora(state.generator.network), state.round)
    return DdpoProgress(rounds, progress.best, progress.best_round)


def _gated_rollout(arm_context: ArmContext, state: UpdateState, settings: DdpoSettings) -> Rollout:
    """Return the round's images with their rewards, and whether the selector passes each."""
    models = arm_context.models
    rollout = roll_out(state.generator, settings, arm_context.prompts, _reward(arm_context), state.round)
    with models.resident("selector"):
        passed_N = passes(models.selector.score(rollout.images_NCHW), arm_context.scorers.selector_threshold)
    if not bool(passed_N.any()):
        rule = "the selector passes no image, so the round reinforces none"
        warn("imagegen.round_without_passing_images", rule, place=f"ddpo round {state.round + 1}")
    return replace(rollout, passed_N=passed_N)


def _with_threshold(arm_context: ArmContext, value: float) -> ArmContext:
    return replace(arm_context, scorers=replace(arm_context.scorers, selector_threshold=value))


def _reward(arm_context: ArmContext) -> Score:
    """Return the reward of a rollout: selector and policy, each by its lower bound."""
    keys, models = arm_context.context.section.update, arm_context.models
    settings = RewardSettings(keys.selector_power, keys.policy_power)

    def reward(images_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        with models.resident("selector", "policy"):
            return rewards(models.selector.score(images_NCHW), models.policy.score(images_NCHW, prompts), settings)

    return reward


def _round_result(number: int, metrics: ImageMetrics, scores: RoundScores) -> RoundResult:
    return RoundResult(
        round=number,
        update=None,
        passed=None,
        judge=metrics.judge,
        selector=metrics.selector,
        diversity=metrics.diversity.distance.value,
        real_diversity=metrics.real_diversity.distance.value,
        evaluation=scores,
    )


def _guard_input(result: RoundResult, same_keys: ImageMetrics, most: float) -> Evaluation:
    """Return the figures of a round for the guards.

    Args:
        result: the round.
        same_keys: any evaluation, for the prompts and the noise.
        most: the largest fraction of advantages that can be clipped.
    """
    scores = result.evaluation
    return Evaluation(
        round=result.round,
        judge_scores=dict(zip(same_keys.keys, scores.judge_scores, strict=True)),
        diversity=result.diversity,
        real_diversity=result.real_diversity,
        kl=scores.kl,
        below_floor=scores.below_floor,
        clipped_advantages=scores.clipped_advantages,
        most_clipped=most,
    )


def _report(arm_context: ArmContext, result: RoundResult, total: int) -> None:
    """Log the round's figures and every guard that fired."""
    figures = {"judge": result.judge.value, "selector": result.selector.value, "diversity": result.diversity}
    if result.update is not None:
        figures |= {
            "reward_mean": result.update.reward_mean,
            "pass_rate": result.passed,
            "kl": result.update.kl_to_base,
            "ratio_deviation": result.update.first_ratio_deviation,
            "loss": result.update.loss,
            "learning_rate": result.update.learning_rate,
        }
    shown = {name: value for name, value in figures.items() if value is not None}
    arm_context.context.report(ARM, result.round, total, shown)
    for verdict in result.verdicts:
        if verdict.status == "fired":
            what = "stops the update" if verdict.stops else "only logs"
            rule = f"guard {verdict.guard} fired and {what}: {verdict.text}"
            warn("imagegen.guard_fired", rule, place=f"ddpo round {result.round}")
