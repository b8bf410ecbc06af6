"""TRL's SFTTrainer on the ladder."""

from collections.abc import Mapping, Sequence
from typing import Any

from trl import SFTTrainer

from toolkit.backends.ladder.cut import PICTURES
from toolkit.backends.ladder.passes import Ladder


class SftLadder(Ladder, SFTTrainer):  # type: ignore[misc]
    """See ``passes``. The loss is a sum over tokens, divided by those of the whole step: parts simply add up.

    A model whose loss is not told their number (some of Unsloth's) gives the mean of its pass: then parts weigh by
    their tokens.
    """

    _mean = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See ``Ladder.compute_loss``."""
        self._mean = num_items_in_batch is None or not self.model_accepts_loss_kwargs
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def given(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """Without the number of pictures, which no model knows."""
        return {name: value for name, value in part.items() if name != PICTURES}

    def share(self, part: Mapping[str, Any], whole: Mapping[str, Any]) -> float:
        """See the class."""
        return _answer_tokens(part) / max(_answer_tokens(whole), 1.0) if self._mean else 1.0

    def weights(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        """Answer tokens, which TRL's entropy and accuracy are means over."""
        return {"tokens": [_answer_tokens(part) for part in parts]}

    def longest_batch(self, rows: Sequence[int]) -> tuple[Any, int]:
        """See ``Ladder.longest_batch``."""
        used = rows[: self.args.per_device_train_batch_size]
        return self._prepare_inputs(self.data_collator([{"index": row} for row in used])), len(used)


def _answer_tokens(part: Mapping[str, Any]) -> float:
    return float((part["labels"][:, 1:] != -100).sum())
