"""Multiple choice: row layouts, completion format, and accepted answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from tests.helpers.problems import raises
from toolkit.data.columns import RowSettings, resolve_columns
from toolkit.data.loading import load_data
from toolkit.data.sample import Sample
from toolkit.errors import RowProblem
from toolkit.images.ref import ImageRef
from toolkit.recipe import load_recipe
from toolkit.scoring.reasoning import NO_ANSWER, NOT_CLOSED, without_reasoning
from toolkit.tasks import TASKS, RowOrigin
from toolkit.tasks.mcq.options import LETTERS
from toolkit.tasks.mcq.parse import (
    EMPTY_COMPLETION,
    EMPTY_SOLUTION,
    NO_OPTION,
    OTHER_TEXT,
    SEVERAL_OPTIONS,
    SEVERAL_SOLUTIONS,
    SOLUTION_NOT_CLOSED,
    SOLUTION_NOT_OPENED,
    TAGS_REVERSED,
    UNKNOWN_OPTION,
    choose,
)
from toolkit.tasks.mcq.prompt import requests_reasoning

MCQ = TASKS["mcq"]
ROOT = Path("/data")
OPTIONS = {"A": "Normal", "B": "Pneumonia", "C": "Pleural effusion", "D": "Pulmonary nodule"}

REXVQA = {
    "question": "What is the main finding?",
    "options": ["A. Normal", "B. Pneumonia", "C. Fracture", "D. Tumor"],
    "correct_answer": "B",
    "correct_answer_explanation": "Consolidation visible in right lower lobe",
    "ImagePath": ["p1/frontal.png", "p1/lateral.png"],
    "Indication": "Chest pain",
    "Comparison": "None.",
    "Findings": "Right lower lobe consolidation",
    "Impression": "Pneumonia",
    "PatientSex": "F",
    "PatientAge": "061Y",
}
COLUMNS = {
    "question": "question",
    "options": "options",
    "answer": "correct_answer",
    "explanation": "correct_answer_explanation",
    "image": "ImagePath",
    "findings": "Findings",
    "impression": "Impression",
}


def read(row: Mapping[str, Any], **settings: Any) -> Sample:
    columns = settings.pop("columns", COLUMNS)
    return MCQ.read("r1", row, RowOrigin(ROOT / "rows.json", ROOT, columns, **settings))


def with_options(options: Mapping[str, str], letter: str = "A", explanation: str | None = None) -> Sample:
    reference = {"letter": letter, "text": options[letter], "explanation": explanation, "report": None}
    return Sample("r1", "mcq", "g", (), {"question": "Which?", "options": dict(options)}, reference)


SAMPLE = with_options(OPTIONS, "B", "Opacity in the right lower lobe.")


def test_a_row_of_rexvqa_becomes_a_sample() -> None:
    sample = read(REXVQA)
    assert sample.group == "p1/frontal.png"
    assert sample.images == (ImageRef(ROOT / "p1/frontal.png"), ImageRef(ROOT / "p1/lateral.png"))
    assert sample.fields == {
        "question": "What is the main finding?",
        "options": {"A": "Normal", "B": "Pneumonia", "C": "Fracture", "D": "Tumor"},
    }
    assert sample.reference == {
        "letter": "B",
        "text": "Pneumonia",
        "explanation": "Consolidation visible in right lower lobe",
        "report": "Right lower lobe consolidation\nPneumonia",
    }


def test_only_the_columns_that_are_named_go_into_the_fields() -> None:
    sample = read(REXVQA, context=("Indication",), by=("PatientSex",), group="PatientAge")
    assert {name: sample.fields[name] for name in sample.fields if name not in ("question", "options")} == {
        "Indication": "Chest pain",
        "PatientSex": "F",
    }
    assert sample.group == "061Y"
    assert "Indication" not in read({**REXVQA, "Indication": " "}, context=("Indication",)).fields


@pytest.mark.parametrize("answer", ["B", "b", " B. ", "(B)", "B)", "B. Pneumonia", "(B) pneumonia", "B - Pneumonia."])
def test_the_right_letter_is_read_from_its_usual_spellings(answer: str) -> None:
    assert read({**REXVQA, "correct_answer": answer}).reference["letter"] == "B"


@pytest.mark.parametrize("answer", ["Pneumonia", "pneumonia.", " PNEUMONIA"])
def test_the_right_letter_is_found_by_the_text_of_its_option(answer: str) -> None:
    assert read({**REXVQA, "correct_answer": answer}).reference["letter"] == "B"


@pytest.mark.parametrize(
    "options",
    [
        ["A) Normal", "B) Pneumonia"],
        ["(a) Normal", "(b)  Pneumonia "],
        ["Normal", "Pneumonia"],
        {"a": "Normal", "B": "Pneumonia"},
        '["A. Normal", "B. Pneumonia"]',
        '{"A": "Normal", "B": "Pneumonia"}',
    ],
)
def test_options_come_as_list_table_or_json_text(options: object) -> None:
    assert read({**REXVQA, "options": options}).fields["options"] == {"A": "Normal", "B": "Pneumonia"}


def test_options_may_have_columns_of_their_own_and_an_index_for_the_right_one() -> None:
    columns = {"question": "q", "option_a": "opa", "option_b": "opb", "option_c": "opc", "answer_index": "cop"}
    row = {"q": "Which?", "opa": "Normal", "opb": "Pneumonia", "opc": "", "cop": 1, "image": "a.png"}
    sample = read(row, columns={**columns, "image": "image"})
    assert sample.fields["options"] == {"A": "Normal", "B": "Pneumonia"}
    assert (sample.reference["letter"], sample.reference["explanation"], sample.reference["report"]) == (
        "B",
        None,
        None,
    )


def test_texts_that_merely_begin_with_a_letter_are_not_labelled() -> None:
    # "E." and "S." are not letters of options: none of them is A.
    assert read({**REXVQA, "options": ["E. coli", "S. aureus"], "correct_answer": "A"}).fields["options"] == {
        "A": "E. coli",
        "B": "S. aureus",
    }
    mixed = read({**REXVQA, "options": ["A small mass", "Normal"], "correct_answer": "B"})
    assert mixed.fields["options"] == {"A": "A small mass", "B": "Normal"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"question": " "}, "data.question_missing"),
        ({"options": None}, "tasks.mcq.too_few_options"),
        ({"options": ["A. Normal"]}, "tasks.mcq.too_few_options"),
        ({"options": "Normal; Pneumonia"}, "tasks.mcq.options_not_list"),
        ({"options": ["A. Normal", "A. Pneumonia"]}, "tasks.mcq.option_letter_repeated"),
        ({"options": {"a": "x", "A": "y"}}, "tasks.mcq.option_letter_repeated"),
        ({"options": {"first": "x", "second": "y"}}, "tasks.mcq.option_key_not_letter"),
        ({"options": ["Normal", ""]}, "tasks.mcq.option_empty"),
        ({"options": ["Normal", "Pneumonia", "nan"]}, "tasks.mcq.option_empty"),
        ({"options": {"A": "Normal", "B": "Pneumonia", "C": None, "D": "Tumor"}}, "tasks.mcq.option_empty"),
        ({"options": "{'A': 'Normal', 'A': 'Tumor', 'B': 'Pneumonia'}"}, "tasks.mcq.options_not_list"),
        ({"options": [f"o{i}" for i in range(27)]}, "tasks.mcq.too_many_options"),
        ({"options": ["A. Normal", "B. Mass", "C. Mass"]}, "tasks.mcq.correct_option_repeated"),
        ({"options": ["A. Normal", "B. </solution>"]}, "tasks.mcq.tag_in_text"),
        ({"correct_answer_explanation": "<think>It is dense."}, "tasks.mcq.tag_in_text"),
        ({"correct_answer": None}, "data.answer_missing"),
        ({"correct_answer": float("nan")}, "data.answer_missing"),
        ({"correct_answer": "E"}, "tasks.mcq.answer_not_an_option"),
        ({"correct_answer": "Mass"}, "tasks.mcq.answer_not_an_option"),
        ({"correct_answer": 1}, "tasks.mcq.answer_is_number"),
        ({"correct_answer": "B. Normal"}, "tasks.mcq.answer_contradicts_itself"),
        ({"ImagePath": True}, "data.image_not_text"),
        ({"ImagePath": {"bytes": None}}, "data.image_object_without_path"),
        ({"ImagePath": [f"{i}.png" for i in range(9)]}, "data.too_many_images"),
        ({"ImagePath": ["a.png", None]}, "data.image_path_missing"),
        ({"ImagePath": "../a.png"}, "data.image_outside_root"),
        ({"ImagePath": ["a.png", "/etc/passwd"]}, "data.image_outside_root"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_reason(change: dict[str, Any], code: str) -> None:
    with raises(RowProblem, code) as caught:
        read({**REXVQA, **change})
    assert caught.problem.place == f"{ROOT}/rows.json"


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"options": [f"o{i}" for i in range(27)]}, 27),
        ({"options": ["A. Normal", "B. Mass", "C. Mass"]}, "Mass"),
        ({"correct_answer": "E"}, "E"),
        ({"ImagePath": [f"{i}.png" for i in range(9)]}, 9),
        ({"ImagePath": ["a.png", "/etc/passwd"]}, "absolute path"),
    ],
)
def test_the_value_that_makes_a_row_unusable_is_reported(change: dict[str, Any], value: object) -> None:
    with pytest.raises(RowProblem) as caught:
        read({**REXVQA, **change})
    assert caught.value.value == value


def test_an_empty_group_is_a_problem_when_the_recipe_names_its_column() -> None:
    with raises(RowProblem, "data.group_missing") as caught:
        read({**REXVQA, "PatientID": ""}, group="PatientID")
    assert str(caught.problem.value) == "text of 0 characters"


def test_question_and_completion_have_the_format_of_the_earlier_scripts() -> None:
    sample = read(REXVQA)
    assert MCQ.question(sample) == "What is the main finding?\nA. Normal\nB. Pneumonia\nC. Fracture\nD. Tumor"
    assert MCQ.target(sample) == (
        "<start_working_out>\nConsolidation visible in right lower lobe\n<end_working_out>\n"
        "<SOLUTION>\nB - Pneumonia\n</SOLUTION>"
    )
    answer = MCQ.parse(MCQ.target(sample), sample)
    assert answer.values == {
        "letter": "B",
        "text": "Pneumonia",
        "explanation": "Consolidation visible in right lower lobe",
        "has_format": True,
    }


# A parser is most likely to fail on option texts that look like letters, labels, several answers or tags.
tricky = st.sampled_from(
    [
        "A",
        "B",
        "A nodule",
        "a",
        "B - y",
        "or B",
        "A or B",
        "Answer: C",
        "The answer is D",
        "- x",
        "(B)",
        "B.",
        "**C**",
        "<b>",
    ]
)
option_text = (tricky | st.text(min_size=1, max_size=12) | st.text("ABab -.:()", min_size=1, max_size=8)).map(
    lambda text: " ".join(text.split())
)
option_texts = st.lists(option_text.filter(bool), min_size=2, max_size=5)


@pytest.mark.slow
@given(texts=option_texts, data=st.data())
@settings(max_examples=1000)
def test_a_reference_completion_is_read_back_as_its_reference(texts: list[str], data: st.DataObject) -> None:
    row = {**REXVQA, "options": dict(zip(LETTERS, texts, strict=False))}
    row["correct_answer"] = data.draw(st.sampled_from(LETTERS[: len(texts)]))
    row["correct_answer_explanation"] = data.draw(st.text(max_size=30))
    try:
        sample = read(row)
    except RowProblem as problem:
        event(problem.code)
        return
    assume(without_reasoning(MCQ.target(sample)) == (MCQ.target(sample), None))
    answer = MCQ.parse(MCQ.target(sample), sample)
    assert answer.problem is None
    assert (answer.values["letter"], answer.values["text"]) == (sample.reference["letter"], sample.reference["text"])
    assert answer.values["explanation"] == (sample.reference["explanation"] or "")
    assert answer.values["has_format"]
    assert MCQ.scores(sample, answer)["accuracy"] == 1


completions = st.lists(
    st.sampled_from(
        ["<start_working_out>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>", "A", "or", " - ", "B.", "\n"]
    )
    | st.text(max_size=8),
    max_size=10,
).map("".join)


@pytest.mark.slow
@given(text=completions, texts=option_texts)
@settings(max_examples=1000)
def test_the_parser_returns_a_letter_or_a_problem_for_any_text(text: str, texts: list[str]) -> None:
    options = dict(zip(LETTERS, texts, strict=False))
    answer = MCQ.parse(text, with_options(options))
    assert (answer.problem is None) == ("letter" in answer.values)
    assert answer.problem is not None or answer.values["letter"] in options
    assert answer.problem is None or answer.problem


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "B.",
        "b.",
        "(B)",
        "(b)",
        "B)",
        "b)",
        " B\n",
        "B - Pneumonia",
        "B – Pneumonia.",
        "b - pneumonia",
        "B. Pneumonia",
        "B: Pneumonia",
        "B) Pneumonia",
        "(B) Pneumonia",
        "B Pneumonia",
        "B.Pneumonia",
        "B - Pneumonia visible in right lower lobe",
        "B - opacity, no effusion and a normal heart",
        "**B**",
        "**B - Pneumonia**",
        "'B'",
        "`B`",
        "Answer: B",
        "answer: b",
        "Answer: B - Pneumonia",
        "The answer is B",
        "the answer is B.",
        "The correct answer is (B).",
        "The final answer is: **B**",
        "Option B",
        "Therefore, the best option is B",
        "Pneumonia",
        "pneumonia.",
        "The answer is pneumonia.",
        "There is an opacity at the right base. The answer is B.",
        "The answer is B because of the opacity.",
    ],
)
def test_one_option_is_parsed(text: str) -> None:
    choice = choose(text, OPTIONS)
    assert (choice.letter, choice.problem) == ("B", None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", EMPTY_SOLUTION),
        ("** **", EMPTY_SOLUTION),
        ("a nodule is seen", NO_OPTION),
        ("A nodule is seen", NO_OPTION),
        ("The answer is a nodule", NO_OPTION),
        ("No finding", NO_OPTION),
        ("C-reactive protein", NO_OPTION),
        ("B-lines on both sides", NO_OPTION),
        ("E", UNKNOWN_OPTION.format(letter="E", options="A, B, C, D")),
        ("E - Fracture", UNKNOWN_OPTION.format(letter="E", options="A, B, C, D")),
        ("The answer is E.", UNKNOWN_OPTION.format(letter="E", options="A, B, C, D")),
        ("A or B", SEVERAL_OPTIONS.format(letters="A, B")),
        ("A, B, C, D", SEVERAL_OPTIONS.format(letters="A, B, C, D")),
        ("A and B.", SEVERAL_OPTIONS.format(letters="A, B")),
        ("(A) / (B)", SEVERAL_OPTIONS.format(letters="A, B")),
        ("A B", SEVERAL_OPTIONS.format(letters="A, B")),
        ("A - Normal or B - Pneumonia", SEVERAL_OPTIONS.format(letters="A, B")),
        ("B - Pneumonia, or C.", SEVERAL_OPTIONS.format(letters="B, C")),
        ("Perhaps the answer is A. But the answer is B.", SEVERAL_OPTIONS.format(letters="A, B")),
        ("The answer is B. The answer is C.", SEVERAL_OPTIONS.format(letters="B, C")),
        ("I choose B, C", SEVERAL_OPTIONS.format(letters="B, C")),
        ("A - Pneumonia", OTHER_TEXT.format(letter="A", other="B")),
        ("B - pleural effusion.", OTHER_TEXT.format(letter="B", other="C")),
    ],
)
def test_no_or_several_named_options_are_a_problem(text: str, problem: str) -> None:
    choice = choose(text, OPTIONS)
    assert (choice.letter, choice.problem) == ("", problem)


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), ("a", "A"), ("A.", "A"), ("A - Normal", "A"), ("A - a nodule is seen", "A"), ("a) normal", "A")],
)
def test_the_letter_a_is_read_where_it_is_no_article(text: str, letter: str) -> None:
    assert choose(text, OPTIONS).letter == letter


def test_texts_of_options_may_look_like_other_answers() -> None:
    options = {"A": "Hepatitis B", "B": "A nodule", "C": "E. coli", "D": "B cell lymphoma"}
    assert choose("A - Hepatitis B", options).letter == "A"
    assert choose("Hepatitis B", options).letter == "A"
    assert choose("a nodule", options).letter == "B"
    assert choose("E. coli", options).letter == "C"
    assert choose("The answer is B cell lymphoma", options).letter == "D"
    signs = {"A": "> 5 mm", "B": "< 5 mm"}  # equal except punctuation
    assert choose("< 5 mm", signs).letter == "B"
    assert choose("5 mm", signs).problem is not None


def solution(text: str) -> str:
    return f"<start_working_out>\nOpacity.\n<end_working_out>\n<SOLUTION>\n{text}\n</SOLUTION>"


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        ("<start_working_out>\nOpacity.\n<end_working_out>\n<SOLUTION>\nB - Pneu", SOLUTION_NOT_CLOSED),
        ("<start_working_out>\nOpacity", NOT_CLOSED),
        ("<start_working_out>\nOpacity.\n<end_working_out>\n", NO_ANSWER),
        ("B</SOLUTION>", SOLUTION_NOT_OPENED),
        ("</SOLUTION>B<SOLUTION>", TAGS_REVERSED),
        (solution("A") + solution("B"), SEVERAL_SOLUTIONS),
        ("<SOLUTION></SOLUTION>", EMPTY_SOLUTION),
        (solution("A or B"), SEVERAL_OPTIONS.format(letters="A, B")),
        ("", EMPTY_COMPLETION),
    ],
)
def test_a_completion_without_exactly_one_solution_is_a_problem(completion: str, problem: str) -> None:
    answer = MCQ.parse(completion, SAMPLE)
    assert answer.problem == problem
    assert "letter" not in answer.values
    assert MCQ.scores(SAMPLE, answer)["accuracy"] == 0
    assert MCQ.labels(SAMPLE, answer) == ("B", None)


@pytest.mark.parametrize(
    ("completion", "has_format"),
    [
        (solution("B - Pneumonia"), True),
        (" " + solution("nonsense") + "\n", True),
        ("B", False),
        ("<SOLUTION>B</SOLUTION>", False),
        ("Well: " + solution("B"), False),
        (solution("B") + " Done.", False),
        (solution(""), False),
        (solution("B").replace("<start_working_out>", "<start_working_out><start_working_out>"), False),
        ("<SOLUTION>B</SOLUTION><start_working_out>Opacity.<end_working_out>", False),
        (solution("B").lower(), False),
    ],
)
def test_the_format_is_one_reasoning_block_one_solution_and_nothing_else(completion: str, has_format: bool) -> None:
    assert MCQ.parse(completion, SAMPLE).values["has_format"] is has_format


def test_tags_in_other_case_and_reasoning_without_its_end_are_parsed() -> None:
    assert MCQ.parse(solution("B").lower(), SAMPLE).values["letter"] == "B"
    answer = MCQ.parse("<start_working_out> Opacity. <SOLUTION>B</SOLUTION>", SAMPLE)
    assert (answer.values["letter"], answer.values["explanation"]) == ("B", "Opacity.")


def test_scores_are_those_of_the_rewards() -> None:
    answer = MCQ.parse(solution("B - Pneumonia"), SAMPLE)
    # "Opacity." has 1 word in common with the 5 of "Opacity in right lower lobe" (no article): F1 = 2 * 1 / (1 + 5).
    assert MCQ.scores(SAMPLE, answer) == {"accuracy": 1.0, "token_f1": pytest.approx(1 / 3), "format": 1.0}
    assert MCQ.scores(with_options(OPTIONS, "B"), answer)["token_f1"] is None


def letters_of(baseline: Any, samples: list[Sample]) -> list[str]:
    return [str(MCQ.parse(baseline(sample), sample).values["letter"]) for sample in samples]


def test_the_baseline_is_the_most_frequent_letter_where_texts_do_not_repeat() -> None:
    train = [with_options({"A": f"x{i}", "B": f"y{i}", "C": f"z{i}"}, letter) for i, letter in enumerate("CCAB")]
    baseline = MCQ.baseline(train)
    assert letters_of(baseline, train) == ["C"] * 4
    assert letters_of(baseline, [with_options({"A": "x", "B": "y"})]) == ["A"]  # no C: the next frequent, ties by name


def test_the_baseline_is_the_most_frequent_text_where_that_is_right_more_often() -> None:
    # The letters are balanced, and "Normal" is right in 4 of 6.
    layouts = [("Normal", "Mass", "A"), ("Mass", "Normal", "B"), ("Normal", "Cyst", "A"), ("Cyst", "Normal", "B")]
    layouts += [("Mass", "Normal", "A"), ("Normal", "Mass", "B")]
    train = [with_options({"A": a, "B": b}, letter) for a, b, letter in layouts]
    baseline = MCQ.baseline(train)
    assert letters_of(baseline, [with_options({"A": "Cyst", "B": "normal."}), with_options({"A": "?", "B": "!"})]) == [
        "B",
        "A",
    ]
    assert MCQ.parse(baseline(train[0]), train[0]).values["has_format"]


def test_csv_cells_with_json_lists_are_read(tmp_path: Path) -> None:
    row = {**REXVQA, "options": json.dumps(REXVQA["options"]), "ImagePath": json.dumps(REXVQA["ImagePath"])}
    assert read(row) == read(REXVQA)


def fresh(row: Mapping[str, Any]) -> Sample:
    """Return the row with its columns found by their usual names."""
    columns, _ = resolve_columns(MCQ, RowSettings({}), list(row))
    return read(row, columns=columns)


@pytest.mark.parametrize("answer", ["A. > 5 mm", "A - > 5 mm"])
def test_signs_distinguish_options(answer: str) -> None:
    options = ["A. < 5 mm", "B. > 5 mm", "C. = 5 mm"]
    sample = fresh({"question": "Size?", "options": options, "answer": "B. > 5 mm", "image": "a.png"})
    assert sample.reference["letter"] == "B"
    wrong = MCQ.parse(f"<SOLUTION>{answer}</SOLUTION>", sample)
    assert wrong.problem == OTHER_TEXT.format(letter="A", other="B")
    assert MCQ.parse("<SOLUTION>B - > 5 mm</SOLUTION>", sample).values["letter"] == "B"
    with raises(RowProblem, "tasks.mcq.answer_contradicts_itself"):
        fresh({"question": "Size?", "options": options, "answer": answer, "image": "a.png"})


QUESTION = {"question": "Which?", "image": "a.png"}


def test_option_columns_may_go_beyond_h_and_end_with_the_last_one() -> None:
    columns = {f"option_{letter}": letter * 3 for letter in "abcdefghij"} | {"option_x": "stray", "K": "3", "M": "f"}
    sample = fresh({**QUESTION, **columns, "answer": "J"})
    assert "".join(sample.fields["options"]) == "ABCDEFGHIJ"
    assert sample.reference["text"] == "jjj"
    many = {f"option_{letter}": letter * 3 for letter in LETTERS[:19].lower()}
    with raises(RowProblem, "tasks.mcq.options_not_list"):
        fresh({**QUESTION, **many, "answer": "A"})


@pytest.mark.parametrize(
    "options",
    [
        [{"letter": "A", "content": "Normal"}, {"letter": "B", "content": "Mass"}],
        "[{'letter': 'A', 'content': 'Normal'}, {'letter': 'B', 'content': 'Mass'}]",
        {"label": ["A", "B"], "text": ["Normal", "Mass"]},
        "['Normal', 'Mass']",
        {"A": "Normal", "B": "Mass", "C": None},
        {"A": "A. Normal", "B": "B. Mass"},
        ["A:Normal", " B:Mass "],
        "A. Normal\nB. Mass",
        ["A、Normal", "B、Mass"],
        ["（A）Normal", "（B）Mass"],
    ],
)
def test_options_may_be_objects_python_text_or_labelled(options: object) -> None:
    sample = fresh({**QUESTION, "options": options, "answer": "B"})
    assert sample.fields["options"] == {"A": "Normal", "B": "Mass"}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((" A:Blue ", " B:Red "), {"A": "Blue", "B": "Red"}),
        (("A. baumannii", "None"), {"A": "A. baumannii", "B": "None"}),
        (("E. coli", "B. cereus"), {"A": "E. coli", "B": "B. cereus"}),
    ],
)
def test_labels_are_cut_from_option_columns_if_every_one_has_its_own_letter(
    texts: tuple[str, str], expected: Mapping[str, str]
) -> None:
    row = {"Figure_path": "a.png", "Question": "Which?", "Choice A": texts[0], "Choice B": texts[1], "Answer": "B"}
    assert fresh(row).fields["options"] == expected


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        (["E. coli", "A. baumannii", "S. aureus", "K. pneumoniae"], "A", ("A", "E. coli")),
        (["E. coli", "A. baumannii", "S. aureus", "K. pneumoniae"], "A. baumannii", ("B", "A. baumannii")),
        (["A-P", "P-A", "Lateral"], "P-A", ("B", "P-A")),
        (["A: left B: right", "A: right B: left"], "A: right B: left", ("B", "A: right B: left")),
        (["C) x", "A) y"], "C", ("C", "x")),
        (["निमोनिया", "नमन या"], "नमन या", ("B", "नमन या")),
        (["İnfarkt", "Kanama"], "infarkt", ("A", "İnfarkt")),
        ([True, False], False, ("B", "False")),
        (["True", "False"], "true", ("A", "True")),
        (["Yes", "No"], False, ("B", "No")),
        ([1, 2, 3], 2.0, ("B", "2")),
        (["1.5", "2.0"], "2", ("B", "2.0")),
        (["Normal", "Mass"], ["B"], ("B", "Mass")),
        (["O", "A", "B", "AB"], "AB", ("D", "AB")),
    ],
)
def test_initials_letters_and_numbers_in_options_are_read_as_they_are_meant(
    options: list[object], answer: object, expected: tuple[str, str]
) -> None:
    reference = fresh({**QUESTION, "options": options, "answer": answer}).reference
    assert (reference["letter"], reference["text"]) == expected


@pytest.mark.parametrize(
    ("row", "code", "value"),
    [
        ({"options": ["O", "A"], "answer": "A"}, "tasks.mcq.answer_ambiguous", {"A": "O", "B": "A"}),
        (
            {"options": ["B. burgdorferi", "A. baumannii"], "answer": "A"},
            "tasks.mcq.options_ambiguous",
            [{"B": "burgdorferi", "A": "baumannii"}, {"A": "B. burgdorferi", "B": "A. baumannii"}],
        ),
        ({"options": ["x", "y", "z"], "answer": "A, B"}, "tasks.mcq.several_answers", "A, B"),
        ({"options": ["x", "y", "z"], "answer": ["A", "B"]}, "tasks.mcq.several_answers", ["A", "B"]),
        (
            {"options": ["x", "y"], "answer": "x", "Answer_label": "B"},
            "tasks.mcq.answer_contradicts_itself",
            ["B", "x"],
        ),
        ({"options": ["x", "y"], "Answer_label": "C"}, "tasks.mcq.answer_not_an_option", "C"),
        (
            {"options": [{"letter": "A", "content": "x"}, {"letter": "A", "content": "y"}], "answer": "A"},
            "tasks.mcq.option_letter_repeated",
            ["A) x", "A) y"],
        ),
        ({"options": ["x", ["y"]], "answer": "A"}, "data.value_not_text", ["y"]),
    ],
)
def test_a_row_with_two_readings_is_unusable_and_shows_both(row: dict[str, Any], code: str, value: object) -> None:
    with raises(RowProblem, code) as caught:
        fresh({**QUESTION, **row})
    assert caught.problem.value == value


def test_a_column_of_letters_decides_between_two_readings() -> None:
    row = {**QUESTION, "options": ["O", "A"], "answer": "A", "Answer_label": "B"}
    assert fresh(row).reference["text"] == "A"
    assert fresh({**row, "Answer_label": "A"}).reference["text"] == "O"
    by_name = {**QUESTION, "options": ["O", "A"], "label": ["A"]}
    assert fresh(by_name).reference["text"] == "O"


def test_full_width_labels_are_read_in_answers_and_completions() -> None:
    sample = fresh({**QUESTION, "options": ["A．正常", "B．肿块"], "answer": "B、肿块"})
    assert (sample.fields["options"], sample.reference["letter"]) == ({"A": "正常", "B": "肿块"}, "B")
    assert MCQ.parse("B、肿块", sample).values["letter"] == "B"


def test_options_that_a_question_repeats_are_cut_from_it() -> None:
    row = {**QUESTION, "options": {"A": "Graves disease", "B": "Iron deficiency"}, "answer": "B"}
    listed = "Which?\nAnswer Choices: (A) Graves disease (B) Iron deficiency"
    assert fresh({**row, "question": listed}).fields["question"] == "Which?"
    other = listed.replace("Iron", "Zinc")
    assert fresh({**row, "question": other}).fields["question"] == other


def test_without_explanations_nothing_requests_or_rewards_reasoning() -> None:
    sample = fresh({**QUESTION, "options": ["Normal", "Mass"], "answer": "B", "Findings": "A mass."})
    assert (MCQ.target(sample), "<start" in MCQ.instruction(sample)) == ("B - Mass", False)
    right, tagged = (MCQ.parse(text, sample) for text in (MCQ.target(sample), "<SOLUTION>B - Mass</SOLUTION>"))
    rewards = {name: reward(sample, right) for name, reward in MCQ.rewards.items()}
    assert rewards == {"letter": 1, "explanation": None, "evidence": None, "format": 1, "brevity": 1}
    assert (MCQ.scores(sample, tagged)["accuracy"], MCQ.scores(sample, tagged)["format"]) == (1, 0)
    assert MCQ.baseline([sample])(sample) == "B - Mass"


def test_the_training_rows_decide_about_reasoning_for_all_splits(tmp_path: Path) -> None:
    row = {"options": ["Normal", "Mass"], "answer": "B", "question": "Which?"}
    for explanation, setting, expected in (("", "auto", False), ("because", "auto", True), ("", "true", True)):
        for name in ("train", "test"):
            rows = [{**row, "image": f"{name}.png"} | ({"explanation": explanation} if name == "train" else {})]
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        (tmp_path / "r.toml").write_text(
            '[run]\nname = "r"\n[data]\ntask = "mcq"\ntrain = "train.json"\ntest = "test.json"\n[evaluate]\n'
        )
        recipe = load_recipe(tmp_path / "r.toml", [f"data.mcq.reasoning={setting}"], tasks=TASKS)
        data = load_data(recipe, MCQ)
        assert [requests_reasoning(split[0]) for split in (data.train, data.test)] == [expected] * 2


def test_training_rows_without_the_explanation_that_others_have_are_reported(tmp_path: Path) -> None:
    row = {"image": "a.png", "options": ["Normal", "Mass"], "answer": "B"}
    for explanations, value in ((("because", "", ""), "2 of 3 checked rows have none"), (("a", "b", "c"), None)):
        rows = [{**row, "question": f"{n}?", "explanation": text} for n, text in enumerate(explanations)]
        (tmp_path / "train.json").write_text(json.dumps(rows))
        (tmp_path / "r.toml").write_text(
            '[run]\nname = "r"\n[data]\ntask = "mcq"\ntrain = "train.json"\nsplit = { test = 0.0 }\n[sft]\n'
        )
        warnings = load_data(load_recipe(tmp_path / "r.toml", tasks=TASKS), MCQ).warnings
        found = [one.value for one in warnings if one.code == "tasks.mcq.explanation_missing"]
        assert found == ([] if value is None else [value])


def test_a_row_with_half_a_surrogate_pair_is_unusable() -> None:
    with raises(RowProblem, "data.text_not_unicode"):
        fresh({"question": "bad \ud800 x", "options": ["a", "b"], "answer": "A", "image": "a.png"})


@pytest.mark.parametrize(
    ("options", "answer", "text"),
    [
        ([{"id": "B", "text": "Mass"}, {"id": "A", "text": "Cyst"}], "B", "Mass"),
        ([{"option_id": "b", "content": "Mass"}, {"option_id": "a", "content": "Cyst"}], "B", "Mass"),
        ([{"id": 7, "text": "Mass"}, {"id": 9, "text": "Cyst"}], "B", "Cyst"),
        (["C) Mass", "A) Cyst"], "C", "Mass"),
        (["A: Mass", "C: Cyst"], "C", "Cyst"),
    ],
)
def test_letters_of_options_out_of_order_are_those_of_the_source(options: object, answer: str, text: str) -> None:
    assert read({**REXVQA, "options": options, "correct_answer": answer}).reference["text"] == text


@pytest.mark.parametrize(
    ("index", "code"),
    [
        ("C", "tasks.mcq.answer_contradicts_itself"),
        (3, "tasks.mcq.answer_contradicts_itself"),
        ("B", None),
        (1, None),
        (2.0, None),
        (None, None),
    ],
)
def test_an_index_beside_an_answer_must_agree_with_it(index: object, code: str | None) -> None:
    columns = {**COLUMNS, "answer_index": "answer_idx"}
    row = {**REXVQA, "correct_answer": "Pneumonia", "answer_idx": index}
    if code is None:
        assert read(row, columns=columns).reference["letter"] == "B"
    else:
        with raises(RowProblem, code):
            read(row, columns=columns)


def test_a_number_in_a_column_of_labels_is_no_text_of_another_option() -> None:
    row = {**REXVQA, "options": ["1", "2", "3"], "label": 2}
    with raises(RowProblem, "tasks.mcq.answer_ambiguous") as caught:
        read(row, columns={**COLUMNS, "answer": "label"})
    assert caught.problem.value == {"B": "2", "C": "3"}
    assert read({**row, "label": "B"}, columns={**COLUMNS, "answer": "label"}).reference["text"] == "2"


@pytest.mark.parametrize(
    ("options", "answer", "code"),
    [
        (["Mass", "Mass", "Cyst"], "mass", "tasks.mcq.correct_option_repeated"),
        (["L: left", "A: right"], "A", "tasks.mcq.options_ambiguous"),
    ],
)
def test_an_answer_that_means_two_options_is_unusable(options: list[str], answer: str, code: str) -> None:
    with raises(RowProblem, code):
        read({**REXVQA, "options": options, "correct_answer": answer})


@pytest.mark.parametrize("texts", [{"a": "x", "b": "y", "d": "z"}, {"a": "x", "b": "y", "c": "", "d": "z"}])
def test_a_text_after_a_missing_option_is_a_problem(texts: Mapping[str, str]) -> None:
    row = {**QUESTION, **{f"option_{letter}": text for letter, text in texts.items()}, "answer": "B"}
    with raises(RowProblem, "tasks.mcq.option_missing") as caught:
        fresh(row)
    assert caught.problem.value == {"A": "x", "B": "y", "D": "z", "C": None}


def test_the_last_option_columns_may_be_empty() -> None:
    row = {**QUESTION, "option_a": "x", "option_b": "y", "option_c": None, "option_d": "", "answer": "B"}
    assert fresh(row).fields["options"] == {"A": "x", "B": "y"}


@pytest.mark.parametrize(
    ("texts", "readings"),
    [
        (["A) x", "y"], [{"A": "x", "B": "y"}, {"A": "A) x", "B": "y"}]),
        (["A. Blue", "Red"], [{"A": "Blue", "B": "Red"}, {"A": "A. Blue", "B": "Red"}]),
        (["x", "B: y", "z"], [{"A": "x", "B": "y", "C": "z"}, {"A": "x", "B": "B: y", "C": "z"}]),
    ],
)
def test_labels_of_only_some_options_are_a_problem_that_shows_both_readings(texts: list[str], readings: str) -> None:
    columns = {f"option_{letter}": text for letter, text in zip("abc", texts, strict=False)}
    for row in ({"options": texts}, columns):
        with raises(RowProblem, "tasks.mcq.options_ambiguous") as caught:
            fresh({**QUESTION, **row, "answer": "B"})
        assert caught.problem.value == readings


@pytest.mark.parametrize(
    "options",
    [
        {"option1": "x", "option2": "y"},
        {"Option 1": "x", "Option 2": "y"},
        {"options": {"1": "x", "2": "y"}},
        {"options": '{"2": "y", "1": "x"}'},
    ],
)
def test_numbered_options_are_read_in_order_and_a_number_is_an_answer(options: Mapping[str, object]) -> None:
    for answer in ("y", "B", "2", 2):
        sample = fresh({**QUESTION, **options, "answer": answer})
        assert (sample.fields["options"], sample.reference["letter"]) == ({"A": "x", "B": "y"}, "B")


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"option1": "2", "option2": "1", "answer": "2"}, "tasks.mcq.answer_ambiguous"),
        ({"option1": "x", "option2": "y", "answer_index": "1"}, "tasks.mcq.answer_ambiguous"),
        ({"option0": "w", "option1": "x", "option2": "y", "answer": "x"}, "tasks.mcq.options_from_zero"),
        ({"options": {"0": "x", "1": "y"}, "answer": "x"}, "tasks.mcq.option_key_not_letter"),
        ({"options": {"1": "x", "2": "y", "4": "z"}, "answer": "x"}, "tasks.mcq.option_key_not_letter"),
    ],
)
def test_numbers_of_options_with_two_meanings_are_a_problem(row: dict[str, Any], code: str) -> None:
    with raises(RowProblem, code):
        fresh({**QUESTION, **row})
