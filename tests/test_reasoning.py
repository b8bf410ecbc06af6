"""Reasoning blocks of completions: their content is never the answer of a task."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.recipes import make_recipe
from toolkit.data.loading import load_data
from toolkit.recipe import SyntheticData
from toolkit.scoring.reasoning import NO_ANSWER, NOT_CLOSED, TAGS, without_reasoning
from toolkit.tasks import TASKS
from toolkit.tasks.chat.rewards import EXAMPLE, exact


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_reasoning_blocks_are_removed_before_an_answer_is_parsed(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    assert task.synthetic is not None
    table = SyntheticData(
        kind=task.synthetic.kind, train=12, validation=2, test=4, size=max(64, task.synthetic.min_size)
    )
    task.synthetic.write(tmp_path, table, 0)
    data = {"task": name, "synthetic": table.model_dump()}
    splits = load_data(
        make_recipe({"run": {"name": "r"}, "model": {"name": "tiny"}, "data": data, "sft": {}}), task, tmp_path
    )
    sample = splits.train[0]
    target = task.target(sample)
    wrong = next(text for text in map(task.target, splits.train) if text != target)
    plain = task.parse(target, sample)
    assert plain.problem is None
    for completion in (f"<think>{wrong}</think>\n{target}", f"{wrong}</think>{target}", f"[THINK]no[/THINK] {target}"):
        found = task.parse(completion, sample)
        assert (found.text, found.problem) == (completion, None)
        assert {**found.values, "has_format": 0} == {**plain.values, "has_format": 0}
    assert task.parse(f"<think>{wrong} {target}", sample).problem == NOT_CLOSED
    assert task.parse(f"<think>{target}</think>\n", sample).problem == NO_ANSWER


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_every_kind_of_block_is_removed(opening: str, closing: str) -> None:
    assert without_reasoning(f"{opening.upper()}a{closing} B {opening}c{closing}") == (" B ", None)
    assert without_reasoning(f"a{closing}B") == ("B", None)
    assert without_reasoning(f"B {opening}a") == ("", NOT_CLOSED)


@given(st.text())
def test_a_text_without_tags_is_returned_unchanged(text: str) -> None:
    if not any(tag in text.lower() for pair in TAGS for tag in pair):
        assert without_reasoning(text) == (text, None)


def test_an_answer_of_a_row_is_compared_without_its_reasoning() -> None:
    row = replace(EXAMPLE, reference={"answer": "<think>left?</think>right lower lobe"})
    assert exact(row, TASKS["chat"].parse(row.reference["answer"], row)) == 1.0
