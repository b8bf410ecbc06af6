"""Completions of 120,000 characters: the work is bounded, and the values are those of a short completion."""

import pytest

from toolkit.data.sample import Sample
from toolkit.scoring.regions import COORDINATES, Frame, parse_boxes
from toolkit.scoring.regions.box_lists import BRACES, CUT_OFF, NO_LIST
from toolkit.tasks import TASKS
from toolkit.tasks.classify.parse import LINE_MALFORMED, find_answers
from toolkit.tasks.lesion.parse import BRACKETS, MAX_STARTS, TAG_UNPAIRED, find_parts
from toolkit.tasks.mcq.parse import has_format

LENGTH = 120_000
FRAME = Frame((100, 100), (100, 100), COORDINATES["thousand"])


def repeated(text: str) -> str:
    return text * (LENGTH // len(text))


def parse(task: str, text: str) -> str | None:
    sample = Sample("", task, "", (), {"settings": None, "frame": FRAME}, {})
    return TASKS[task].parse(text, sample).problem


@pytest.mark.parametrize(("text", "problem"), [("[", BRACKETS), ("{", BRACKETS), ("<bbox>", None)])
def test_brackets_and_tags_of_a_lesion_are_tried_a_limited_number_of_times(text: str, problem: str | None) -> None:
    assert parse("lesion", repeated(text)) == (problem or TAG_UNPAIRED.format(tag=text))
    unread: list[str] = []
    assert find_parts("[ " * (MAX_STARTS - 1) + '{"diagnosis": "mel"}', unread) == [{"diagnosis": "mel"}]
    assert unread == []


@pytest.mark.parametrize(("text", "problem"), [("{", NO_LIST), ("<bbox>", CUT_OFF)])
def test_braces_and_tags_of_a_list_of_boxes_are_tried_a_limited_number_of_times(text: str, problem: str) -> None:
    assert parse_boxes(repeated(text), FRAME).problem == problem
    found = parse_boxes(f'{{"label": "mass", "bbox": [1, 2, 30, 40]}} {repeated("{a} ")}', FRAME)
    assert (len(found.boxes), found.unread) == (1, (BRACES,))


def test_other_long_answers_have_the_problem_of_short_ones() -> None:
    for text in ("<solution>", "<start_working_out>"):
        assert parse("vqa", repeated(text)) == parse("vqa", text)
    assert find_answers(repeated("- "), ["edema"]) == ({}, LINE_MALFORMED)
    assert not has_format(repeated("<end_working_out><SOLUTION>"))
