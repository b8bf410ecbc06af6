"""Open and closed questions: rows of VQA-RAD and SLAKE, and accepted answers."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.problems import raises
from toolkit.data.sample import Sample
from toolkit.errors import RowProblem
from toolkit.evaluation.answers import score_answer
from toolkit.tasks import TASKS, RowOrigin
from toolkit.tasks.vqa.parse import BOTH, NO_ANSWER, SEVERAL_SOLUTIONS, TAG_UNPAIRED
from toolkit.tasks.vqa.schema import Vqa

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
    assert found.reference == {"answer": "Yes", "closed": True, "answer_type": "closed"}
    assert found.group == "synpic54610.jpg"
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
        ({"answer": "<think>It is dense.</think>yes"}, "tasks.vqa.reasoning_in_answer"),
        ({"image_name": ["a.png", ""]}, "data.image_path_missing"),
        ({"image_name": "../x.jpg"}, "data.image_outside_root"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_reason(change: dict[str, Any], code: str) -> None:
    with raises(RowProblem, code):
        read({**ROW, **change})


@pytest.mark.parametrize(
    ("completion", "meaning"),
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
        ("It may be no, it may be yes", "both"),
        ("left", None),
        ("knowledge", None),
        ("No. 5 rib", None),
        ("non-contrast", None),
        ("SI joint", None),
        ("Sí, no hay duda", "yes"),
        ("Nein.", "no"),
        ("Oui, un nodule", "yes"),
        ("Hayır", "no"),
        ("不包含", "no"),
        ("是的，左肺", "yes"),
        ("はい。", "yes"),
        ("нет", "no"),
        ("لا، لا يوجد", "no"),
        ("نَعَم", "yes"),
        ("नहीं। साफ है", "no"),
        ("Oui — un nodule", "yes"),
        ("Ja (links)", "yes"),
        ("Sí\nHay un nódulo", "yes"),
        ("Да - есть", "yes"),
        ("ΟΧΙ", "no"),
        ("да/нет", None),
        ("non–contrast CT", None),
    ],
)
def test_a_clear_yes_or_no_is_found_without_the_reference(completion: str, meaning: str | None) -> None:
    answers = [VQA.parse(completion, one) for one in (CLOSED, OPEN, Sample("p", "vqa", "g", (), {}, {}))]
    assert [(answer.values.get("yes_no"), answer.problem) for answer in answers] == [(meaning, None)] * 3


def test_left_or_right_is_closed_and_not_answered_by_yes_or_no() -> None:
    either = sample("left", closed=True)
    for completion in ("left, no shift", "No, left", "yes or no, I cannot say"):
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
        ("T2*", "T2*"),
        ("**T2***", "T2*"),
        ("*T2*.", "T2"),
        ("`T2*`", "T2*"),
        ("* left base", "left base"),
        ('"*left base*."', "left base"),
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


def test_a_completion_with_both_yes_and_no_scores_0_and_has_no_label() -> None:
    answer = VQA.parse("It may be no, it may be yes", CLOSED)
    assert VQA.scores(CLOSED, answer) == {"score": 0, "closed_accuracy": 0, "open_token_f1": None, "format": 0}
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


@pytest.mark.parametrize(("words", "kinds"), [(("Sí", "No"), 2), (("Ja", "Nein"), 2), (("Yes", "No", "Uncertain"), 3)])
def test_the_baseline_without_an_answer_type_never_reads_the_reference_that_it_answers(
    words: tuple[str, ...], kinds: int
) -> None:
    columns = {"question": "question", "answer": "answer", "image": "image_name"}
    train = [read({**ROW, "answer": words[min(i % 4, 1) if i < 8 else -1]}, columns) for i in range(10)]
    test = [read({**ROW, "answer": word}, columns) for word in words]
    baseline = VQA.baseline(train)
    assert len({baseline(one) for one in test}) == 1
    scores = [VQA.scores(one, VQA.parse(baseline(one), one))["score"] for one in test]
    assert (scores.count(1), len(scores)) == (1, kinds)


def test_all_words_for_yes_are_one_answer_of_the_baseline() -> None:
    train = [sample(answer, True) for answer in ("Sí", "sí.", "oui", "No", "no", "nein", "ja")]
    assert VQA.baseline(train)(CLOSED) == "Sí"
    assert VQA.scores(sample("oui", True), VQA.parse("Sí", CLOSED))["score"] == 1
    assert VQA.labels(sample("不是", True), VQA.parse("nein", CLOSED)) == ("no", "no")


@pytest.mark.parametrize(
    ("value", "extra", "expected"),
    [
        ("lung, mediastinum#spine and contents", {}, ("lung, mediastinum", ("spine and contents",), ())),
        ("mr#mr flair#t2", {}, ("mr", ("mr flair", "t2"), ())),
        ("#3", {}, ("#3", (), ())),
        ("C#", {}, ("C#", (), ())),
        ("fracture #2", {}, ("fracture #2", (), ())),
        ("Mass", {"alternatives": ["mass.", "tumour"]}, ("Mass", ("tumour",), ())),
        ("Mass", {"alternatives": "['a', 'b']"}, ("Mass", ("a", "b"), ())),
        (["yes"], {}, ("yes", (), ())),
        ("['yes', 'Yes.']", {}, ("yes", (), ())),
        (
            ["atelectasis", "effusion"],
            {"semantic_type": "query"},
            ("atelectasis, effusion", (), ("atelectasis", "effusion")),
        ),
    ],
)
def test_several_answers_are_alternatives_or_parts_if_it_is_certain(
    value: object, extra: dict[str, Any], expected: tuple[str, tuple[str, ...], tuple[str, ...]]
) -> None:
    columns = {**COLUMNS, "alternatives": "alternatives", "semantic_type": "semantic_type"}
    found = read({**ROW, "answer_type": None, "answer": value, **extra}, columns)
    reference = found.reference
    assert (reference["answer"], reference.get("alternatives", ()), reference.get("parts", ())) == expected
    assert VQA.target(found) == expected[0]
    assert VQA.scores(found, VQA.parse(expected[0], found))["score"] == 1


@pytest.mark.parametrize("value", [["a lesion", "a cyst"], '["a", "b"]', "lesion # cyst"])
def test_answers_with_two_readings_are_unusable_until_the_recipe_says_which(value: object) -> None:
    with raises(RowProblem, "tasks.vqa.answers_ambiguous") as caught:
        read({**ROW, "answer": value}, settings=Vqa())
    assert str(cast(list[str], caught.problem.value)[0]).startswith("any of ")
    either = read({**ROW, "answer": value}, settings=Vqa(answers="any")).reference
    assert len(either["alternatives"]) == 1
    every = read({**ROW, "answer": value}, settings=Vqa(answers="all")).reference
    assert ("alternatives" not in every, len(every["parts"])) == (True, 2)


@pytest.mark.parametrize("value", [[], "[]", [None]])
def test_an_empty_list_of_answers_is_unusable(value: object) -> None:
    with raises(RowProblem, "data.answer_missing"):
        read({**ROW, "answer": value})


def test_any_alternative_is_correct_and_all_parts_must_be_named() -> None:
    either = read({**ROW, "answer": "face, sinuses, and neck#skull and contents", "answer_type": None})
    scores = [VQA.scores(either, VQA.parse(text, either))["score"] for text in ("Skull and contents.", "skull", "lung")]
    assert scores == [1, 0.5, 0]  # skull: 1 of 1 and 3 tokens
    parts = read({**ROW, "answer": ["left", "Right"], "answer_type": "closed"}, settings=Vqa(answers="all"))
    completions = ("right, left", "left and right", "left", "left, right, both")
    assert [VQA.scores(parts, VQA.parse(text, parts))["score"] for text in completions] == [1, 1, 0, 0]


def test_the_derived_answer_type_is_part_of_the_reference_and_never_of_the_prompt() -> None:
    found = read({**ROW, "answer_type": None})
    assert "answer_type" not in found.fields
    assert score_answer(VQA, found, VQA.parse("yes", found), ("answer_type",)).by == {"answer_type": "closed"}


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


@pytest.mark.parametrize("value", ["pulmonary embolism|PE", "cyst | mass"])
def test_a_bar_between_texts_has_two_readings(value: str) -> None:
    with raises(RowProblem, "tasks.vqa.answers_ambiguous"):
        read({**ROW, "answer": value}, settings=Vqa())
    either = read({**ROW, "answer": value}, settings=Vqa(answers="any"))
    assert either.reference["alternatives"] == (value.split("|")[1].strip(),)
    every = read({**ROW, "answer": value}, settings=Vqa(answers="all"))
    assert every.reference["parts"] == tuple(part.strip() for part in value.split("|"))
    assert read({**ROW, "answer": "a|b"}).reference["answer"] == "a|b"


def test_all_answers_of_vqa_med_2019_must_be_named_if_the_recipe_says_so() -> None:
    every = read({**ROW, "answer": "lung#heart", "answer_type": None}, settings=Vqa(answers="all"))
    assert (every.reference["answer"], every.reference["parts"]) == ("lung, heart", ("lung", "heart"))


@pytest.mark.parametrize(("value", "expected"), [([True], "yes"), ("[False]", "no"), ([True, "Yes"], "yes")])
def test_truth_values_in_a_list_are_yes_or_no(value: object, expected: str) -> None:
    reference = read({**ROW, "answer": value, "answer_type": None}).reference
    assert (reference["answer"], reference["closed"]) == (expected, True)


@pytest.mark.parametrize("value", ["\u200b", "\ufeff", " \ufeff\u200b "])
def test_characters_without_width_are_no_answer(value: str) -> None:
    with raises(RowProblem, "data.answer_missing"):
        read({**ROW, "answer": value})


def test_alternatives_of_an_answer_with_parts_are_not_lost() -> None:
    row = {**ROW, "answer": ["left", "right"], "alternatives": "both"}
    with raises(RowProblem, "tasks.vqa.alternatives_of_parts") as caught:
        read(row, {**COLUMNS, "alternatives": "alternatives"}, settings=Vqa(answers="all"))
    assert caught.problem.value == ("both",)


@pytest.mark.parametrize(
    "words", ["Da Nu", "да не", "taip ne", "jah ei", "jā nē", "มี ไม่มี", "있음 없음", "ある ない", "ہاں نہیں", "有 没"]
)
def test_yes_and_no_are_labels_of_both_classes(words: str) -> None:
    yes, no = (read({**ROW, "answer": word, "answer_type": None}) for word in words.split())
    assert VQA.labels(yes, VQA.parse(VQA.target(yes), yes)) == ("yes", "yes")
    assert VQA.labels(no, VQA.parse(VQA.target(no), no)) == ("no", "no")
