"""Text scores: tokens, and overlap against SQuAD's own scorer."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.scoring.text import content_words, exact_match, normalise, overlap, token_f1, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.50x1.7 cm", "2.5 x 1.7 cm"),
        ("6.5 × 6.2 x 8.8cm", "6.5 x 6.2 x 8.8 cm"),
        ("1,000 ml", "1000 ml"),
        ("3-5 cm", "3 5 cm"),
        ("-5 HU (−7 HU)", "-5 hu -7 hu"),
        ("<3 cm", "< 3 cm"),
        ("<SOLUTION>B</SOLUTION>", "solution b solution"),
        (".5 cm", "0.5 cm"),
        ("100", "100"),
        ("10.05", "10.05"),
        ("3.00", "3"),
        ("5%", "5 percent"),
        ("1.5T MRI", "1.5 t mri"),
        ("the 4th and 5th ribs", "4th and 5th ribs"),
        ("L2-3", "l2 3"),
        ("two nodules", "2 nodules"),
        ("On the patient’s left", "on patient left"),
        ("head/neck CT w/o contrast", "head neck ct without contrast"),
        ("cannot be seen", "can not be seen"),
        ("It isn’t, won't, can't", "it is not will not can not"),
        ("x-ray, X Ray, Xrays", "xray xray xray"),
        ("A", "a"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_text_becomes_the_words_that_radiology_means(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_negation_is_a_word_that_counts() -> None:
    assert not exact_match("no pneumothorax", "pneumothorax")
    assert "no" in content_words("There is no pneumothorax.")
    assert token_f1("no pneumothorax", "pneumothorax") == pytest.approx(2 / 3)  # 1 in common of 2 and 1


def test_f1_counts_a_repeated_word_as_often_as_both_have_it() -> None:
    # "left left left" against "left left lung": min(3, 2) = 2 in common of 3 and 3, so 2 * 2 / 6.
    assert token_f1("left left left", "left left lung") == pytest.approx(4 / 6)
    found = overlap("left left left", "left left lung")
    assert (found.shared, found.missed, found.extra) == (("left", "left"), ("lung",), ("left",))
    assert (found.precision, found.recall) == pytest.approx((2 / 3, 2 / 3))


def test_two_empty_texts_match_and_one_empty_text_does_not() -> None:
    assert token_f1("", " . ") == 1.0
    assert exact_match("", "?")
    assert token_f1("", "lung") == 0.0
    assert token_f1("lung", "") == 0.0


def test_word_order_matters_to_exact_match_alone() -> None:
    assert token_f1("lobe left", "left lobe") == 1.0
    assert not exact_match("lobe left", "left lobe")


@pytest.fixture(scope="module")
def squad() -> Any:
    """Return SQuAD's own scorer, as transformers ships it."""
    return pytest.importorskip("transformers.data.metrics.squad_metrics")


WORDS = st.lists(st.sampled_from(["left", "lung", "no", "the", "effusion", "a"]), max_size=8).map(" ".join)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_f1_and_exact_are_those_of_squad_on_plain_english(squad: Any, prediction: str, reference: str) -> None:
    # SQuAD reads a text of nothing but articles as empty. Here it keeps them.
    if any(text and not squad.get_tokens(text) for text in (prediction, reference)):
        return
    assert token_f1(prediction, reference) == pytest.approx(squad.compute_f1(reference, prediction))
    assert exact_match(prediction, reference) == bool(squad.compute_exact(reference, prediction))


def test_f1_is_that_of_squad_on_real_answers_without_figures_and_signs(squad: Any, shared_data: Path) -> None:
    rows = json.loads((shared_data / "cxr/vqa_rad/testset.json").read_text())
    answers = [answer for row in rows if (answer := str(row["answer"])).replace(" ", "").isalpha()]
    ours = {word for answer in answers for word in set(tokens(answer)) - set(squad.get_tokens(answer))}
    assert ours == {"1"}  # SQuAD keeps the word "one"
    plain = [answer for answer in answers if "1" not in tokens(answer)]
    assert len(plain) > 400
    for prediction, reference in pairwise(plain):
        assert token_f1(prediction, reference) == pytest.approx(squad.compute_f1(reference, prediction))


def test_normalising_a_real_answer_twice_changes_nothing(shared_data: Path) -> None:
    rows = json.loads((shared_data / "cxr/vqa_rad/trainset.json").read_text())
    for row in rows:
        for text in (str(row["answer"]), row["question"]):
            assert tokens(normalise(text)) == tokens(text)


def test_the_spellings_of_one_real_answer_agree(shared_data: Path) -> None:
    rows = json.loads((shared_data / "cxr/vqa_rad/trainset.json").read_text())
    written = {str(row["answer"]).strip() for row in rows}
    for spellings in ({"X-ray", "x-ray", "Xray"}, {"5 cm", "5cm"}, {"Chest X-ray", "Chest xray", "chest x Ray"}):
        assert spellings <= written
        assert len({normalise(spelling) for spelling in spellings}) == 1
