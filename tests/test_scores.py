"""Text scores: tokens, and overlap against SQuAD's own scorer."""

import json
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.scoring.text import (
    content_words,
    exact_match,
    label_text,
    normalise,
    overlap,
    token_f1,
    tokens,
    word_count,
)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("İnfiltrasyon", "infiltrasyon"),
        ("ISI ısı", "isi isi"),
        ("Straße STRASSE", "strasse strasse"),
        ("病灶3.5厘米，L5", "病 灶 3.5 厘 米 l5"),
        ("胸部ｘ線、ＣＴ", "胸 部 x 線 ct"),
        ("エコー", "エ コ ー"),
        ("ปอดบวม มีน้ำ", "ป อ ด บ ว ม มี น้ํ า"),
        ("निमोनिया है", "निमोनिया है"),
        ("اِلتِهاب رئـوي", "التهاب رئوي"),
        ("폐렴입니다", "폐렴입니다"),
        ("٣٫٤ ३", "3.4 3"),
        ("3,4 cm", "3.4 cm"),
        ("3,4x2,10 mm", "3.4 x 2.1 mm"),
        ("12,5 %", "12.5 percent"),
        ("3,4-5,2 centímetros", "3.4 5.2 centímetros"),
        ("38,5 °C", "38.5 c"),
        ("3,4 см，2,5厘米", "3.4 см 2.5 厘 米"),
        ("1.234,5 mm", "1234.5 mm"),
        ("1,234 mm", "1234 mm"),
        ("1,234.5 mm", "1234.5 mm"),
        ("L3,4 and 1,2,3 cm", "l3 4 and 1 2 3 cm"),
        ("grades 3,4", "grades 3 4"),
        ("1，2", "1 2"),
    ],
)
def test_words_of_other_scripts_are_tokens(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_f1_of_chinese_counts_characters() -> None:
    # 7 of 8 characters are equal.
    assert token_f1("病灶位于右肺下叶", "病灶位于右肺上叶") == pytest.approx(7 / 8)
    assert token_f1("右上肺叶", "右肺上叶") == 1
    assert token_f1("肺炎", "肺炎，胸腔积液") == pytest.approx(2 * 2 / 8)
    assert token_f1("नमन या", "निमोनिया") == 0
    assert [word_count(text) for text in ("右肺下叶", "右肺下叶 3 cm", "right lower lobe", "")] == [2, 4, 3, 0]


def test_a_label_with_a_turkish_capital_is_the_same_label() -> None:
    assert label_text("İPTAL") == label_text("iptal")


def test_english_tokens_are_those_of_earlier_versions(shared_data: Path) -> None:
    folder = shared_data / "cxr"
    files = [folder / "vqa_rad" / f"{name}set.json" for name in ("train", "test")]
    rows = [
        row for file in (*files, folder / "slake/Slake1.0/train.json") for row in json.loads(file.read_text("utf-8"))
    ]
    texts = sorted({str(row[field]) for row in rows for field in ("question", "answer")})
    english = [text for text in texts if all(ord(character) < 0x2E80 for character in text)]
    assert len(english) == 3887
    assert sha256("\n".join(map(normalise, english)).encode()).hexdigest()[:16] == "acb04f1fcadd0c13"


@given(st.text(max_size=30))
def test_normalising_any_text_twice_changes_nothing_in_other_scripts(text: str) -> None:
    foreign = "".join(character for character in text if ord(character) > 0x2FF)
    assert tokens(normalise(foreign)) == tokens(foreign)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ER+/PR-, HER2 3+", "er positive pr negative her2 3 plus"),
        ("CD20+ (IgM-)", "cd20 positive igm negative"),
        ("pre- and post-contrast T1+C", "pre and post contrast t1 c"),
        ("+", "plus"),
        ("++", "plus plus"),
        ("-", "minus"),
        ("T2*-weighted", "t2star weighted"),
        ("±5 mm", "± 5 mm"),
        ("10² cells", "10 2 cells"),
        ("5 cm²", "5 cm2"),
        ("\U00010d40", "\U00010d40"),
        ("دايره ك", normalise("دایره ک")),
    ],
)
def test_signs_and_powers_distinguish_answers(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize(("one", "other"), [("ER+", "ER-"), ("+", "-"), ("3+", "3"), ("T2*", "T2"), ("10²", "102")])
def test_answers_that_differ_in_a_sign_do_not_match(one: str, other: str) -> None:
    assert not exact_match(one, other)
    assert token_f1(one, other) < 1
