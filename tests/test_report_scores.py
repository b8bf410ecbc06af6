"""BLEU, ROUGE-L and length of reports, against published examples and the packages themselves."""

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from toolkit.scoring.reports import bleu_counts, corpus_bleu, length_score, rouge_l, sentence_bleu

REPORTS = (
    ("No focal consolidation, effusion or pneumothorax.", "There is no consolidation, effusion, or pneumothorax."),
    ("The heart is enlarged. Left effusion.", "Cardiomegaly with a small left pleural effusion."),
    ("Normal.", "The lungs are clear. The heart is normal in size.\nNo acute process."),
    ("", "The lungs are clear."),
)  # fmt: skip


@pytest.mark.parametrize(
    ("candidate", "score"),
    [("police kill the gunman", 0.75), ("the gunman kill police", 0.5), ("the gunman police killed", 0.5)],
)
def test_rouge_l_equals_the_examples_of_its_paper(candidate: str, score: float) -> None:
    # Lin 2004, section 3.1: reference S1 "police killed the gunman", candidates S2, S3 and S4.
    assert rouge_l(candidate, "police killed the gunman") == score


@pytest.mark.parametrize(("prediction", "reference"), REPORTS)
def test_rouge_l_equals_that_of_its_package_for_english(prediction: str, reference: str) -> None:
    oracle = rouge_scorer.RougeScorer(["rougeL"]).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, reference) == oracle


def test_rouge_l_reads_letters_that_its_package_deletes() -> None:
    assert rouge_l("左肺に陰影", "左肺に陰影") == 1
    assert rouge_l("Größe normal", "Große normal") == 0.5


def test_corpus_bleu_equals_the_example_of_sacrebleu() -> None:
    # The example of sacrebleu's documentation with its first reference: 48.53 with both, computed here with one.
    system = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    counts = [bleu_counts(*pair) for pair in zip(system, references, strict=True)]
    total = [sum(column) for column in zip(*counts, strict=True)]
    assert corpus_bleu(total) == pytest.approx(sacrebleu.corpus_bleu(system, [references]).score / 100)


def test_corpus_bleu_of_reports_equals_that_of_sacrebleu_and_is_no_mean() -> None:
    predictions, references = zip(*REPORTS, strict=True)
    total = [sum(column) for column in zip(*(bleu_counts(*pair) for pair in REPORTS), strict=True)]
    expected = sacrebleu.corpus_bleu(list(predictions), [list(references)]).score / 100
    assert corpus_bleu(total) == pytest.approx(expected)
    mean = sum(sentence_bleu(*pair) for pair in REPORTS) / len(REPORTS)
    assert mean != pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("prediction", "reference"), REPORTS)
def test_the_bleu_of_one_report_equals_that_of_sacrebleu(prediction: str, reference: str) -> None:
    assert sentence_bleu(prediction, reference) == pytest.approx(
        sacrebleu.sentence_bleu(prediction, [reference]).score / 100
    )


def test_bleu_of_chinese_reports_counts_characters() -> None:
    assert sentence_bleu("左侧胸腔积液。", "左侧胸腔积液。") == pytest.approx(1)
    assert 0 < sentence_bleu("右侧胸腔积液。", "左侧胸腔积液。") < 1


def test_the_length_score_is_a_ratio_of_words() -> None:
    assert length_score("one two", "one two three four") == length_score("one two three four", "one two") == 0.5
    assert (length_score("", ""), length_score("", "word")) == (1.0, 0.0)
