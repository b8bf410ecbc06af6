"""Reward hacking becomes visible to the judge, and the guards stop it. See tests/long/run.

The arm is online reward-weighted regression on the selector's mean score alone: no policy, no lower bound. It is no
method of the package.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.helpers.imagegen_models import SFT, evaluation_of
from tests.helpers.imagegen_runs import RECIPE
from tests.helpers.recipes import load_recipe
from toolkit.imagegen.context import StageContext
from toolkit.imagegen.evaluation.statistics import Bootstrap, compare_arms
from toolkit.imagegen.generators.ddim import make_schedule
from toolkit.imagegen.generators.lora import copy_lora, reset_lora, restore_lora
from toolkit.imagegen.generators.sampling import generate
from toolkit.imagegen.seeds import derive_seed
from toolkit.imagegen.settings import guard_settings
from toolkit.imagegen.stages import RunSession, run_stage
from toolkit.imagegen.training.arm import ArmContext
from toolkit.imagegen.training.guards import Evaluation, Verdict, best_evaluation, check_guards, is_best
from toolkit.imagegen.training.sft import EncodedImages, SftImages, encode_training_images, sft_round
from toolkit.imagegen.training.update_state import start_update
from toolkit.runfolder import StopRequest, start_run

WEAK = (
    "imagegen.synthetic.images=500",
    "imagegen.selector.epochs=10",
    "imagegen.policy.epochs=1",
    "imagegen.judge.fractions.selector=0.15",
    "imagegen.judge.fractions.judge=0.65",
    "imagegen.judge.images=96",
    "imagegen.judge.features=8",
    "imagegen.judge.bootstrap=200",
)
"""A selector of few ratings, whose errors can be exploited, and a judge of many."""
TOTAL, IMAGES, TEMPERATURE = 6, 192, 0.04
SETTINGS = replace(SFT, steps_per_round=16, batch_size=64, micro_batch=64, learning_rate=6e-3)


@dataclass(frozen=True, slots=True)
class Course:
    """What an arm went through.

    Attributes:
        history: evaluations, from round 0, the base.
        selector: mean selector score of each.
        verdicts: of the guards on each.
        oracle: mean oracle score of the base and after the last round.
        restored: the evaluation after the best round was restored.
    """

    history: tuple[Evaluation, ...]
    selector: tuple[float, ...]
    verdicts: tuple[tuple[Verdict, ...], ...]
    oracle: tuple[float, float]
    restored: Evaluation


@pytest.fixture(scope="module")
def arm_context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArmContext]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe = load_recipe(RECIPE, [*WEAK, f'run.folder="{tmp_path_factory.mktemp("hacking")}"'])
    with start_run(recipe) as run, StopRequest() as stop:
        session = RunSession(StageContext(recipe, run, stop))
        for stage in ("ratings", "scorers"):
            run_stage(session, stage)
        yield session.arm_context
    torch.set_num_threads(before)


def oracle_score(arm_context: ArmContext) -> float:
    """Return what simulated experts without errors would say. Nothing is trained on it or chosen by it."""
    oracle = arm_context.figures("sft").oracle
    assert oracle is not None
    assert oracle.value is not None
    return oracle.value


def weighted_images(arm_context: ArmContext, number: int) -> EncodedImages:
    """Generate a round's images, each with the softmax of the selector's score as its weight."""
    schedule = make_schedule(arm_context.generator.scheduler, arm_context.context.section.generator.steps)
    prompts = tuple(arm_context.prompts[row % len(arm_context.prompts)] for row in range(IMAGES))
    images = generate(arm_context.generator, schedule, prompts, derive_seed(0, "hacking", number), 64)
    scores_N: Tensor = arm_context.models.selector.score(images).scores_N
    weights = tuple(torch.softmax(scores_N / TEMPERATURE, 0).tolist())
    chosen = SftImages(lambda rows: images[list(rows)], tuple(range(IMAGES)), prompts, weights)
    return encode_training_images(arm_context.generator, chosen, 64)


def update(arm_context: ArmContext, action: str) -> Course:
    """Update the base until the last round, or until a guard stops it, and restore the best round."""
    guards = guard_settings(load_recipe(RECIPE, [*WEAK, f'imagegen.guards.action="{action}"']))
    reset_lora(arm_context.generator.network, 1)
    state, oracle = start_update(arm_context.generator, SETTINGS.learning_rate), oracle_score(arm_context)
    metrics = arm_context.evaluate_round("sft", state.round)
    history, selector = [evaluation_of(metrics, 0, None, None)], [metrics.selector.value or 0.0]
    verdicts: list[tuple[Verdict, ...]] = [()]
    best = copy_lora(arm_context.generator.network)
    while state.round < TOTAL and not any(verdict.stops for verdict in verdicts[-1]):
        sft_round(state, SETTINGS, weighted_images(arm_context, state.round))
        metrics = arm_context.evaluate_round("sft", state.round)
        history.append(evaluation_of(metrics, state.round, None, None))
        selector.append(metrics.selector.value or 0.0)
        verdicts.append(check_guards(history, guards))
        if is_best(history, verdicts[-1]):
            best = copy_lora(arm_context.generator.network)
    oracles = (oracle, oracle_score(arm_context))
    restore_lora(arm_context.generator.network, best)
    restored = evaluation_of(arm_context.evaluate_round("sft", state.round), state.round, None, None)
    return Course(tuple(history), tuple(selector), tuple(verdicts), oracles, restored)


@pytest.fixture(scope="module")
def unguarded(arm_context: ArmContext) -> Course:
    return update(arm_context, "log")


def test_without_guards_the_judge_ends_below_its_best_by_more_than_the_interval(unguarded: Course) -> None:
    assert len(unguarded.history) == TOTAL + 1
    best, last = best_evaluation(unguarded.history), unguarded.history[-1]
    fall = compare_arms(best.judge_scores, last.judge_scores, Bootstrap(), min_pairs=1).difference
    print(f"\njudge {[round(one.judge, 3) for one in unguarded.history]}")
    print(f"selector {[round(one, 3) for one in unguarded.selector]}")
    print(f"oracle, base and last {[round(one, 3) for one in unguarded.oracle]}")
    print(f"last minus best (round {best.round}): {fall.value:+.3f} [{fall.low:+.3f} to {fall.high:+.3f}]")
    assert fall.high is not None
    assert fall.high < 0
    # The reward says that the images are better than the base's, and the oracle that they are worse.
    assert unguarded.selector[-1] > unguarded.selector[0]
    assert unguarded.oracle[1] < unguarded.oracle[0]
    assert any(verdict.status == "fired" for verdict in unguarded.verdicts[-1])


def test_with_guards_the_same_arm_stops_before_that_and_restores_its_best_round(
    arm_context: ArmContext, unguarded: Course
) -> None:
    guarded = update(arm_context, "stop")
    stopped = guarded.history[-1]
    fired = [verdict for verdict in guarded.verdicts[-1] if verdict.stops]
    print(f"\nstopped after round {stopped.round}: {[(verdict.guard, verdict.text) for verdict in fired]}")
    assert fired
    assert stopped.round < TOTAL
    best = best_evaluation(guarded.history[:-1])
    assert guarded.restored.judge_scores == best.judge_scores
    assert guarded.restored.judge > unguarded.history[-1].judge
