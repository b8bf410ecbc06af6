"""Paired differences of two generators: the same prompts and the same noise, with a bootstrap over prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.errors import TrainingError
from toolkit.imagegen.figure import Bootstrap
from toolkit.scoring.statistics import Paired, paired_difference

MIN_PAIRS = 384
"""Pairs that a table needs: a difference in judge score of about 0.02 is then visible."""


@dataclass(frozen=True, slots=True, order=True)
class ImageKey:
    """The prompt and the noise that an image is generated from."""

    prompt: str
    noise_seed: int


def compare_arms(
    before: Mapping[ImageKey, float], after: Mapping[ImageKey, float], bootstrap: Bootstrap, min_pairs: int = MIN_PAIRS
) -> Paired:
    """Return the mean of ``after - before`` over images from the same prompt and noise.

    Raises:
        TrainingError: The arms differ in prompts or noise, or there are fewer than ``min_pairs`` pairs.
    """
    if different := sorted(set(before) ^ set(after)):
        raise TrainingError(
            "imagegen.arms_differ_in_images",
            "both arms must have images from the same prompts and noise",
            place="evaluation",
            value=f"{len(different)} images are in one arm only, such as {different[0]}",
            remedy="Evaluate both arms with the same prompts, count and seed.",
        )
    if len(before) < min_pairs:
        raise TrainingError(
            "imagegen.comparison_too_small",
            f"a comparison must have at least {min_pairs} images of each arm",
            place="evaluation",
            value=len(before),
            remedy="Generate more images per prompt.",
        )
    keys = sorted(before)
    return paired_difference(
        [before[key] for key in keys],
        [after[key] for key in keys],
        [key.prompt for key in keys],
        bootstrap.resamples,
        bootstrap.seed,
        bootstrap.confidence,
    )
