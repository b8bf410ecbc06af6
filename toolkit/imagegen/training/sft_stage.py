"""The stages ``sft`` and ``control``: fine-tuning on images that the selector passes, and on as many random ones.

Both are trained on images of the selector's splits (``train`` and ``validation``) alone. The judge's images would
flatter a generator that imitates them, because the judge was trained on them. The test split is where the judge itself
is tested, and with the judge's images it is the reference of KID, FID and diversity. No evaluation therefore knows an
image that a generator was trained on, except the distance to copies, which is searched for among the training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from toolkit.errors import TrainingError
from toolkit.imagegen.ratings.load import RatedImage
from toolkit.imagegen.scorers.fitting import as_floats
from toolkit.imagegen.scorers.reward import RewardSettings, passes, rewards
from toolkit.imagegen.seeds import seed_of
from toolkit.imagegen.settings import sft_settings
from toolkit.imagegen.training.arm import ArmContext, ArmFigures, begin_arm, resume_round, save_round
from toolkit.imagegen.training.sft import SftImages, SftRound, encode_training_images, random_control, sft_round


@dataclass(frozen=True, slots=True)
class SftResult:
    """The result of ``sft`` or of its control.

    Attributes:
        images: training images.
        pool: images of the selector's splits, from which they were chosen.
        rounds: the measurements of each round.
        figures: the figures for the table.
    """

    images: int
    pool: int
    rounds: tuple[SftRound, ...]
    figures: ArmFigures


@dataclass(frozen=True, slots=True)
class SftProgress:
    """The finished rounds of an arm, as a checkpoint has them."""

    rounds: tuple[SftRound, ...] = ()


def train_sft(arm_context: ArmContext, arm: Literal["sft", "control"]) -> SftResult:
    """Fine-tune the base on images of the selector's splits, and evaluate it.

    Raises:
        TrainingError: the selector passes no image, or gradients are not finite.
        Interrupted: a signal came. The last finished round is saved.
    """
    context, generator = arm_context.context, arm_context.generator
    settings = sft_settings(context.recipe)
    state = begin_arm(arm_context, arm, settings.learning_rate)
    progress = resume_round(arm_context, arm, state, SftProgress) or SftProgress()
    pool = arm_context.prepared.trainable
    images = _training_images(arm_context, pool, arm)
    total = context.section.update.sft_steps // settings.steps_per_round
    encoded = encode_training_images(generator, images, context.section.generator.batch_size)
    while state.round < total:
        context.stop.check(f"round {state.round} of {arm} is saved")
        last = sft_round(state, settings, encoded)
        progress = SftProgress((*progress.rounds, last))
        figures = {"loss": last.loss, "gradient_norm": last.gradient_norm, "learning_rate": last.learning_rate}
        if arm == "sft":
            figures["pass_rate"] = len(images.numbers) / len(pool)
        # Before the save, so that no round is missing from the metrics, whenever the run is killed.
        context.report(arm, state.round, total, figures)
        save_round(arm_context, arm, state, progress)
    generator.save_lora(context.run.weights_folder(arm))
    return SftResult(len(images.numbers), len(pool), progress.rounds, arm_context.figures(arm))


def _training_images(arm_context: ArmContext, pool: tuple[RatedImage, ...], arm: str) -> SftImages:
    """Return the images that the selector passes, weighted by their reward, or for ``control`` as many random ones."""

    def load(numbers: Sequence[int]) -> Tensor:
        return as_floats(arm_context.prepared.images([pool[number] for number in numbers])).expand(-1, 3, -1, -1)

    weights_N, passed_N = _weights(arm_context, pool)
    numbers = passed_N.nonzero()[:, 0].tolist()
    if not numbers:
        raise TrainingError(
            "imagegen.no_image_passes",
            "the selector must pass at least one image",
            place="imagegen.selector.target_precision",
            value=f"0 of {len(pool)} images score {arm_context.scorers.selector_threshold:.3f} or more",
            remedy="Start a new run with a lower imagegen.selector.target_precision, or rate more images.",
        )
    prompts = [image.prompt for image in pool]
    images = SftImages(
        load, tuple(numbers), tuple(prompts[number] for number in numbers), tuple(weights_N[passed_N].tolist())
    )
    if arm == "sft":
        return images
    everything = SftImages(load, tuple(range(len(pool))), tuple(prompts), (1.0,) * len(pool))
    return random_control(images, everything, seed_of(arm_context.context.recipe, "sft"))


def _weights(arm_context: ArmContext, pool: tuple[RatedImage, ...]) -> tuple[Tensor, Tensor]:
    """Return each image's reward times the mean weight of its experts, and whether the selector passes the image."""
    keys, images_NCHW = arm_context.context.section.update, arm_context.prepared.images(pool)
    with arm_context.models.resident("selector", "policy"):
        selected = arm_context.models.selector.score(images_NCHW)
        agreed = arm_context.models.policy.score(images_NCHW, [image.prompt for image in pool])
    rewards_N = rewards(selected, agreed, RewardSettings(keys.selector_power, keys.policy_power))
    weights = arm_context.prepared.weights
    experts_N = torch.tensor(
        [sum(weights[one.expert_level] for one in image.ratings) / len(image.ratings) for image in pool]
    )
    return rewards_N * experts_N, passes(selected, arm_context.scorers.selector_threshold)
