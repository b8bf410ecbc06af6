"""Rows of one source with the same images and the same prompt, but different answers.

A model cannot learn both answers, and one of them is scored as wrong. Rows with equal keys of images and question are
found by sorting, so that only these rows are read again.
"""

from collections.abc import Hashable
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from toolkit.data.row_counts import MAX_EXAMPLES, MAX_VALUE, RowCount
from toolkit.data.sample import Sample
from toolkit.data.sample_set import SampleSet
from toolkit.data.splits import MIX, RowKeys, text_key
from toolkit.errors import shorten
from toolkit.identifiers import shown_cell

MAX_FRACTION = 0.1
"""Largest fraction of the rows that is read again. With more candidates, the count is a minimum."""
MIN_ROWS = 2_000
"""Rows that are read again in any case."""


def find_conflicts(samples: SampleSet, keys: RowKeys, prompts: NDArray[np.int64] | None = None) -> tuple[RowCount, ...]:
    """Return the rows whose images and prompt are those of another row with another answer, or nothing.

    Args:
        samples: the usable rows of a source.
        keys: their keys.
        prompts: the keys of their prompts. Default: the keys of their questions.
    """
    candidates = _candidates(keys, keys.questions if prompts is None else prompts)
    most = max(MIN_ROWS, int(len(samples) * MAX_FRACTION))
    found: dict[Hashable, _Prompt] = {}
    for position in candidates[:most].tolist():
        sample = samples[position]
        found.setdefault(_prompt_of(samples, sample), _Prompt()).add(
            samples.table.place(int(samples.rows[position])), samples.task.target(sample)
        )
    conflicts = [one for one in found.values() if len(one.answers) > 1]
    if not conflicts:
        return ()
    shown = conflicts[:MAX_EXAMPLES]
    at_least = "" if len(candidates) <= most else f" (of the {most:,} rows that were compared)"
    return (
        RowCount(
            samples.table.source,
            f"rows with the same images and the same prompt should have the same answer{at_least}",
            sum(one.rows for one in conflicts),
            tuple(" and ".join(one.answers.values()) for one in shown),
            "data.answers_differ",
            tuple(_difference(*one.texts) for one in shown),
            "Merge them into one row, or name the column that distinguishes them in prompt.context.",
        ),
    )


class _Prompt:
    """The rows with one prompt: their number, and the first row of each of at most two different answers."""

    def __init__(self) -> None:
        self.rows = 0
        self.answers: dict[int, str] = {}
        self.texts: list[str] = []

    def add(self, place: str, target: str) -> None:
        self.rows += 1
        key = text_key(_folded(target))
        if key not in self.answers and len(self.answers) < 2:
            self.answers[key] = place
            self.texts.append(target)


def _difference(first: str, second: str) -> str:
    """Return two answers in short, from shortly before their first difference.

    >>> _difference("no", "yes"), _difference("a" * 90 + " no", "a" * 90 + " yes")
    ("'no' or 'yes'", "'…aaaaaaaaaaaaaaaaaaa no' or '…aaaaaaaaaaaaaaaaaaa yes'")
    """
    pairs = enumerate(zip_longest(first, second))
    equal = next((number for number, (one, other) in pairs if one != other), len(first))
    start = max(equal - MAX_VALUE // 4, 0) if max(len(first), len(second)) > MAX_VALUE // 2 else 0
    lead = "…" if start else ""
    shown = (shown_cell(f"{lead}{text[start:]}" if lead else text) for text in (first, second))
    return " or ".join(shorten(one, MAX_VALUE // 2) for one in shown)


def _candidates(keys: RowKeys, prompts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of rows whose images and prompt have the keys of another row, ascending."""
    images = np.zeros(len(keys), np.int64)
    np.add.at(images, keys.image_rows, keys.images * MIX)
    _, inverse, counts = np.unique(images * MIX + prompts, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[inverse] > 1)


def _prompt_of(samples: SampleSet, sample: Sample) -> Hashable:
    """Return a key of everything that the model is shown."""
    task = samples.task
    own = task.prompt_key(sample) if task.prompt_key else f"{task.question(sample)}\n{task.instruction(sample)}"
    context = [str(sample.fields.get(column, "")) for column in samples.origin.context]
    return sample.images, text_key(_folded("\n".join([own, *context])))


def _folded(text: str) -> str:
    """Return the text without case and additional blanks, which change neither a prompt nor an answer."""
    return " ".join(text.casefold().split())
