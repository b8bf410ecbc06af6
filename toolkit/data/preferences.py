"""Preferences: a chosen and a rejected answer to the question of a row, for DPO."""

from dataclasses import dataclass, replace

from toolkit.data.cells import NOT_TEXT, is_missing, text_of
from toolkit.data.json_stream import Row
from toolkit.data.placeholders import PLACEHOLDER, check_placeholders
from toolkit.data.sample import Preference, Sample
from toolkit.data.task import Task
from toolkit.errors import RowProblem


@dataclass(frozen=True, slots=True)
class PreferenceColumns:
    """The columns of the rejected and of the chosen answer. ``chosen``: None is the answer that SFT learns."""

    rejected: str
    chosen: str | None = None

    @property
    def keys(self) -> dict[str, str]:
        """Return key of the recipe -> its column."""
        named = {"dpo.rejected": self.rejected, "dpo.chosen": self.chosen}
        return {key: column for key, column in named.items() if column is not None}


def with_preference(task: Task, sample: Sample, row: Row, columns: PreferenceColumns | None) -> Sample:
    """Return the sample with the two answers of its row. Without columns, the sample is returned unchanged.

    Args:
        task: The task of the sample.
        sample: The sample.
        row: The row that the sample was read from.
        columns: The columns of the answers.

    Raises:
        RowProblem: An answer is missing or not a text, has the placeholder of an image, or equals the other one.
    """
    if columns is None:
        return sample
    rejected = _answer(row, columns.rejected, "rejected")
    chosen = task.target(sample) if columns.chosen is None else _answer(row, columns.chosen, "chosen")
    if chosen == rejected:
        rule, remedy = "the rejected answer must differ from the chosen one", "Correct the row, or remove it."
        raise RowProblem("data.preference_equal", rule, value=rejected, remedy=remedy)
    return replace(sample, preference=Preference(chosen, rejected))


def _answer(row: Row, column: str, kind: str) -> str:
    value = row.get(column)
    if is_missing(value):
        rule = f"the row must have a {kind} answer in the column {column}"
        remedy = "Add the answer, or leave the row out of the training rows of a recipe with [dpo]."
        raise RowProblem("data.preference_missing", rule, value=value, remedy=remedy)
    if not isinstance(value, str):
        rule = f"the {kind} answer in the column {column} must be a text"
        remedy = "Store the text of the answer alone, without its role and as the model would write it."
        raise RowProblem(NOT_TEXT, rule, value=value, remedy=remedy)
    text = text_of(value)
    if "<" in text:
        check_placeholders(text)
        if found := PLACEHOLDER.search(text):
            rule, remedy = "an image placeholder must be in a user turn", "Remove it from the answer."
            raise RowProblem("data.image_outside_user_turn", rule, place=kind, value=found[0], remedy=remedy)
    return text
