"""The judge: a selector that scores results and is never a reward.

A generator that is optimised against a selector learns the selector's errors too. Only a model with other errors can
notice, so the judge has its own seed, its own encoder and its own partition of the ratings.
"""

from collections.abc import Iterable

from toolkit.errors import DataError, ModelError
from toolkit.imagegen.selector import SelectorSettings
from toolkit.imagegen.towers import CNN

_EXAMPLES = 3


def check_independent(
    selector: SelectorSettings,
    judge: SelectorSettings,
    selector_groups: Iterable[str],
    judge_groups: Iterable[str],
) -> None:
    """Raise an error if the judge shares its seed, its encoder or a group of ratings with the selector.

    Two small CNNs of different width are different encoders.

    Raises:
        ModelError: The seed or the encoder is the same.
        DataError: A group is in both partitions.
    """
    if selector.seed == judge.seed:
        raise ModelError(
            "imagegen.judge_shares_seed",
            "the judge must have another seed than the selector",
            place="judge.seed",
            value=judge.seed,
            remedy="Change one of the seeds.",
        )
    if _encoder(selector) == _encoder(judge):
        raise ModelError(
            "imagegen.judge_shares_encoder",
            "the judge must have another encoder than the selector",
            place="judge.encoder",
            value=judge.tower.encoder,
            remedy="Change one of the encoders, or the width of one CNN.",
        )
    if shared := sorted(set(selector_groups) & set(judge_groups)):
        raise DataError(
            "imagegen.judge_shares_groups",
            f"ratings of the judge and the selector must be of different groups ({len(shared)} are in both)",
            place="ratings",
            value=shared[:_EXAMPLES],
            remedy="Split the ratings by patient or image.",
        )


def _encoder(settings: SelectorSettings) -> tuple[str, str | None, int]:
    tower = settings.tower
    return tower.encoder, tower.revision, tower.width if tower.encoder == CNN else 0
