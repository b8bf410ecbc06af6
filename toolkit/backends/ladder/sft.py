"""TRL's SFTTrainer on the ladder."""

from collections.abc import Mapping, Sequence
from typing import Any

from trl import SFTTrainer

from toolkit.backends.ladder.cut import PICTURES
from toolkit.backends.ladder.passes import Ladder
from toolkit.errors import TrainingError


class SftLadder(Ladder, SFTTrainer):  # type: ignore[misc]
    """See ``passes``. The loss is a sum over tokens, divided by those of the whole step: parts simply add up."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See ``Ladder.compute_loss``."""
        if num_items_in_batch is None and self.model.training:
            raise TrainingError("the loss of a step must be told how many answer tokens the step has")
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def given(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """Without the number of pictures, which no model knows."""
        return {name: value for name, value in part.items() if name != PICTURES}

    def share(self, part: Mapping[str, Any], whole: Mapping[str, Any]) -> float:
        """See the class."""
        return 1.0

    def weights(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        """Answer tokens, which TRL's entropy and accuracy are means over."""
        return {"tokens": [float((part["labels"][:, 1:] != -100).sum()) for part in parts]}

    def longest_batch(self, rows: Sequence[int]) -> tuple[Any, int]:
        """See ``Ladder.longest_batch``."""
        used = rows[: self.args.per_device_train_batch_size]
        return self._prepare_inputs(self.data_collator([{"index": row} for row in used])), len(used)
