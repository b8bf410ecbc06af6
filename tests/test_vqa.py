"""Open and closed questions: rows of VQA-RAD and SLAKE, and accepted answers."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.problems import raises
from toolkit.data.sample import Sample
from toolkit.errors import RowProblem
from toolkit.tasks import TASKS, RowOrigin
from toolkit.tasks.vqa.parse import BOTH, NO_ANSWER, SEVERAL_SOLUTIONS, TAG_UNPAIRED

VQA = TASKS["vqa"]
ROOT = Path("/data")
COLUMNS = {
    "question": "question",
    "answer": "answer",
    "answer_type": "answer_type",
    "question_type": "question_type",
    "image": "image_name",
}
ROW = {
    "qid": 1,
    "image_name": "synpic54610.jpg",
    "answer": "Yes",
    "answer_type": "CLOSED ",
    "question_type": "PRES",
    "question": "Are regions of the brain infarcted?",
}


def read(row: Mapping[str, Any], columns: Mapping[str, str] = COLUMNS, **settings: Any) -> Sample:
    return VQA.read("r1", row, RowOrigin(ROOT / "rows.json", ROOT, columns, **settings))


def sample(answer: str, closed: bool, question_type: str = "") -> Sample:
    fields = {"question": "?", "answer_type": "closed" if closed else "open"}
    if question_type:
        fields["question_type"] = question_type
    return Sample("r1", "vqa", "g", (), fields, {"answer": answer, "closed": closed})


CLOSED, OPEN = sample("Yes", True), sample("right lower lobe", False)


def test_a_row_of_vqa_rad_becomes_a_sample() -> None:
    found = read(ROW)
    assert found.fields == {
        "question": "Are regions of the brain infarcted?",
        "answer_type": "closed",
        "question_type": "PRES",
    }
    assert (found.reference, found.group) == ({"answer": "Yes", "closed": True}, "synpic54610.jpg")
    assert (VQA.question(found), VQA.target(found)) == (ROW["question"], "Yes")


@pytest.mark.parametrize(
    ("answer", "stated", "expected"),
    [
        (2, "OPEN", ("2", False)),
        (0, "", ("0", False)),
        (True, "", ("yes", True)),
        (False, None, ("no", True)),
        ("No", None, ("No", True)),
        ("No.", "something", ("No.", True)),
        ("left", "CLOSED", ("left", True)),
        ("left", None, ("left", False)),
        ("yes", "open", ("yes", False)),
    ],
)
def test_numbers_and_booleans_are_answers_and_the_type_is_stated_or_inferred(
    answer: object, stated: object, expected: tuple[str, bool]
) -> None:
    reference = read({**ROW, "answer": answer, "answer_type": stated}).reference
    assert (reference["answer"], reference["closed"]) == expected


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"question": None}, "data.question_missing"),
        ({"answer": " "}, "data.answer_missing"),
        ({"answer": float("nan")}, "data.answer_missing"),
        ({"image_name": ["a.png", ""]}, "data.image_path_missing"),
        ({"image_name": "../x.jpg"}, "data.image_outside_root"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_reason(change: dict[str, Any], code: str) -> None:
    with raises(RowProblem, code):
        read({**ROW, **change})


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        ("NO", "no"),
        ("No, the lungs are clear", "no"),
        ("Yes, there is no doubt", "yes"),
        ("Answer: yes", "yes"),
        ("The answer is no.", "no"),
        ("There is no effusion", "no"),
        ("**Yes**", "yes"),
        ("```\nyes\n```", "yes"),
        ("<SOLUTION>\nno\n</SOLUTION>", "no"),
        ("<start_working_out>yes or no?<end_working_out>no", "no"),
        ("left", "left"),
        ("knowledge", "knowledge"),
        ("No. 5 rib", "No. 5 rib"),
        ("non-contrast", "non-contrast"),
    ],
)
def test_a_closed_answer_is_its_clear_yes_or_no_otherwise_its_text(completion: str, text: str) -> None:
    answer = VQA.parse(completion, CLOSED)
    assert (answer.values["text"], answer.problem) == (text, None)


def test_left_or_right_is_closed_and_not_answered_by_yes_or_no() -> None:
    either = sample("left", closed=True)
    for completion in ("left, no shift", "No, left", "yes or no"):
        assert VQA.parse(completion, either).values["text"] == completion
    assert VQA.scores(either, VQA.parse("Left.", either))["closed_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("right lower lobe", "right lower lobe"),
        ("Answer: Right lower lobe.", "Right lower lobe"),
        ("The opacity is seen.\nFinal answer: left base", "left base"),
        ("```text\nleft base```", "left base"),
        ("3.4 cm.", "3.4 cm"),
        ('"MRI"', "MRI"),
        ("No evidence of it, yes", "No evidence of it, yes"),
        ("肺", "肺"),
    ],
)
def test_an_open_answer_is_its_text_without_tags_and_quotes(completion: str, text: str) -> None:
    answer = VQA.parse(completion, OPEN)
    assert (answer.values["text"], answer.problem) == (text, None)


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        ("", NO_ANSWER),
        (" \n", NO_ANSWER),
        (".", NO_ANSWER),
        ("Answer:", NO_ANSWER),
        ("yes and no", BOTH),
        ("no or yes", BOTH),
        ("It may be no, it may be yes", BOTH),
        ("<SOLUTION>yes", TAG_UNPAIRED.format(tag="<SOLUTION>")),
        ("<start_working_out>The heart", TAG_UNPAIRED.format(tag="<start_working_out>")),
        ("<SOLUTION>yes</SOLUTION><SOLUTION>no</SOLUTION>", SEVERAL_SOLUTIONS),
    ],
)
def test_an_unparsed_answer_has_a_problem_and_scores_0(completion: str, problem: str) -> None:
    answer = VQA.parse(completion, CLOSED)
    assert answer.problem == problem
    assert VQA.scores(CLOSED, answer)["score"] == 0
    assert VQA.labels(CLOSED, answer) == ("yes", None)


@given(text=st.text(max_size=40) | st.text("yesno .<>/SOLUTIN`:answer\n", max_size=30), closed=st.booleans())
def test_the_parser_returns_a_text_or_a_problem_for_any_text(text: str, closed: bool) -> None:
    answer = VQA.parse(text, CLOSED if closed else OPEN)
    assert (answer.problem is None) == bool(answer.values.get("text"))


def test_closed_questions_are_scored_by_exact_match_and_open_ones_by_token_f1() -> None:
    right = VQA.scores(CLOSED, VQA.parse("yes.", CLOSED))
    assert right == {"score": 1.0, "closed_accuracy": 1.0, "open_token_f1": None, "format": 1.0}
    partly = VQA.scores(OPEN, VQA.parse("the lower lobe", OPEN))
    # "lower lobe" has 2 of 2 words in common with the 3 of the reference: 2 * 2 / 5.
    assert partly == {"score": 0.8, "closed_accuracy": None, "open_token_f1": 0.8, "format": 1.0}


def test_labels_are_given_for_yes_no_questions_only() -> None:
    assert VQA.labels(CLOSED, VQA.parse("no", CLOSED)) == ("yes", "no")
    assert VQA.labels(CLOSED, VQA.parse("left", CLOSED)) == ("yes", None)
    either = sample("left", closed=True)
    assert VQA.labels(either, VQA.parse("left", either)) is None
    assert VQA.labels(OPEN, VQA.parse("no", OPEN)) is None


def test_the_baseline_is_the_most_frequent_answer_of_the_kind_of_question() -> None:
    train = [sample(answer, True, "PRES") for answer in ("No", "no.", "yes")]
    train += [sample(answer, False, "ORGAN") for answer in ("lung", "lung", "brain")]
    train += [sample("axial", False, "PLANE")]
    baseline = VQA.baseline(train)
    kinds = [(True, "PRES"), (False, "ORGAN"), (False, "PLANE"), (False, "COLOR"), (True, "")]
    # A type that training never saw gets the most frequent answer of all open or closed questions.
    assert [baseline(sample("?", closed, kind)) for closed, kind in kinds] == ["No", "lung", "axial", "lung", "No"]


def load_all(file: Path, columns: Mapping[str, str]) -> tuple[list[Sample], Counter[str]]:
    source = RowOrigin(file, file.parent, columns)
    samples, codes = [], Counter[str]()
    for row in json.loads(file.read_text(encoding="utf-8")):
        try:
            samples.append(VQA.read(str(row["qid"]), row, source))
        except RowProblem as problem:
            codes[problem.code] += 1
    return samples, codes


@pytest.mark.parametrize(("name", "count", "closed"), [("trainset", 3064, 1823), ("testset", 451, 272)])
def test_all_questions_of_vqa_rad_are_read(shared_data: Path, name: str, count: int, closed: int) -> None:
    samples, codes = load_all(shared_data / "cxr/vqa_rad" / f"{name}.json", COLUMNS)
    assert (len(samples), codes) == (count, {})
    # 1,821 rows say CLOSED and 2 "CLOSED ". The test file has 272.
    assert sum(one.reference["closed"] for one in samples) == closed
    for one in samples:  # a reference answer scores 1 when it is given as the completion
        assert VQA.scores(one, VQA.parse(VQA.target(one), one))["score"] == 1, one


def test_slake_is_read_in_both_languages(shared_data: Path) -> None:
    columns = {**COLUMNS, "image": "img_name", "question_type": "content_type"}
    samples, codes = load_all(shared_data / "cxr/slake/Slake1.0/train.json", columns)
    assert (len(samples), codes) == (9834, {"data.answer_missing": 1})  # one answer of the 9,835 is empty
    perfect = sum(VQA.scores(one, VQA.parse(VQA.target(one), one))["score"] == 1 for one in samples)
    assert perfect == len(samples)
