"""The work of the stages of [imagegen]: optimizer steps, generated images, and passes of the generator."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.planning.imagegen.ratings import RatingsFacts
from toolkit.recipe.imagegen import Imagegen


@dataclass(frozen=True, slots=True)
class StageWork:
    """Counts of one stage.

    Attributes:
        steps: optimizer steps.
        images_per_step: images of an optimizer step.
        rounds: rounds of ``ddpo``.
        evaluations: evaluations, each of ``judge.images`` generated images.
        generated: images that are generated, in rounds and evaluations.
        updated: image passes forward and backward, each at one denoising step.
        encoded: training images that become latents, at most.
    """

    steps: int = 0
    images_per_step: int = 0
    rounds: int = 0
    evaluations: int = 0
    generated: int = 0
    updated: int = 0
    encoded: int = 0


def imagegen_stages(section: Imagegen) -> tuple[str, ...]:
    """Return the stages in their order, as ``imagegen.stages.stage_names`` does without torch."""
    arms = [method for method in ("sft", "ddpo") if method in section.update.methods]
    return ("ratings", "scorers", "base", *(["control"] if section.update.control else []), *arms)


def plan_work(section: Imagegen, ratings: RatingsFacts | None) -> Mapping[str, StageWork]:
    """Return stage -> counts. Steps of ``scorers`` are 0 if the ratings cannot be read."""
    counts = {"ratings": StageWork(), "scorers": _scorers(section, ratings), "base": _evaluations(section, 1)}
    counts |= {"control": _sft(section, ratings), "sft": _sft(section, ratings), "ddpo": _ddpo(section)}
    return {name: counts[name] for name in imagegen_stages(section)}


def _scorers(section: Imagegen, ratings: RatingsFacts | None) -> StageWork:
    """Return the optimizer steps of selector, policy and judge."""
    if ratings is None:
        return StageWork()
    own, judges = ratings.ratings_of("train"), ratings.ratings_of("judge_train")
    selector, policy = section.selector, section.policy
    steps = math.ceil(own / selector.batch_size) * selector.epochs + math.ceil(own / policy.batch_size) * policy.epochs
    steps += math.ceil(judges / selector.batch_size) * section.judge.epochs
    return StageWork(steps=steps, images_per_step=selector.batch_size)


def _evaluations(section: Imagegen, count: int) -> StageWork:
    return StageWork(evaluations=count, generated=count * section.judge.images)


def _sft(section: Imagegen, ratings: RatingsFacts | None) -> StageWork:
    """Return the work of ``sft``. The selector can pass every image of its splits."""
    keys = section.update
    pool = 0 if ratings is None else ratings.images_of("train", "validation")
    return StageWork(
        steps=keys.sft_steps,
        images_per_step=keys.sft_batch_size,
        evaluations=1,
        generated=section.judge.images,
        updated=keys.sft_steps * keys.sft_batch_size,
        encoded=pool,
    )


def _ddpo(section: Imagegen) -> StageWork:
    """Return the work of ``ddpo``. The base and every round share one noise, and the table has another."""
    keys = section.update
    evaluations = keys.rounds + 2
    images = keys.rounds * keys.images_per_round
    return StageWork(
        steps=keys.rounds * keys.updates_per_round,
        images_per_step=keys.images_per_round // keys.updates_per_round,
        rounds=keys.rounds,
        evaluations=evaluations,
        generated=evaluations * section.judge.images + images,
        updated=images * section.generator.steps,
    )
