"""Rewards of mcq and vqa, with hand-computed examples."""

import doctest
from dataclasses import replace
from typing import Any

import pytest

from toolkit.data.sample import Answer, Sample
from toolkit.tasks import TASKS
from toolkit.tasks.mcq import MCQ
from toolkit.tasks.mcq import rewards as mcq
from toolkit.tasks.vqa import rewards as vqa


def sample(**reference: Any) -> Sample:
    return replace(mcq.EXAMPLE, reference={**mcq.EXAMPLE.reference, **reference})


def answer(completion: str = "B", **values: Any) -> Answer:
    return Answer(completion, values)


@pytest.mark.parametrize("module", [mcq, vqa])
def test_worked_examples_hold_and_every_reward_has_one(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted >= len(module.REWARDS)
    assert all(">>>" in (reward.__doc__ or "") for reward in module.REWARDS.values())


def test_every_reward_has_a_default_weight_and_a_reason() -> None:
    for task in TASKS.values():
        assert list(task.rewards) == list(task.reward_weights) == list(task.why)
        assert task.all_or_nothing <= task.rewards.keys()


def test_a_letter_guessed_from_an_unreadable_answer_has_reward_0() -> None:
    assert mcq.letter(sample(), Answer("B or C", {"letter": "B"}, problem="two letters")) == 0.0


def test_an_empty_completion_has_reward_0() -> None:
    empty = Answer("", {}, problem="empty")
    assert [reward(sample(), empty) for reward in mcq.REWARDS.values()] == [0.0] * 5
    assert [reward(vqa.EXAMPLE, empty) for reward in vqa.REWARDS.values()] == [None, 0.0, 0.0]
    assert [reward(vqa.CLOSED_EXAMPLE, empty) for reward in vqa.REWARDS.values()] == [0.0, None, 0.0]


def test_the_explanation_reward_is_the_better_of_reasoning_and_solution_text() -> None:
    # Reference: consolidation in right lower lobe (5 words). The text has 5 of 5 words, and the reasoning 1 of 2.
    both = answer(explanation="Consolidation seen", text="Consolidation in the right lower lobe")
    assert mcq.explanation(sample(), both) == 1.0
    assert mcq.explanation(sample(), answer(explanation="Consolidation seen")) == pytest.approx(2 / 7)


@pytest.mark.parametrize("missing", [None, "", " – "])
def test_the_explanation_reward_does_not_apply_without_a_reference(missing: str | None) -> None:
    assert mcq.explanation(sample(explanation=missing), answer(explanation="x")) is None


def test_evidence_copied_from_the_prompt_has_reward_0() -> None:
    # Report words: right lower lobe consolidation pneumonia; "pneumonia" is in option B and is ignored.
    assert mcq.evidence_words(sample()) == {"right", "lower", "lobe", "consolidation"}
    assert mcq.evidence(sample(), answer(explanation="The main finding is pneumonia, not normal")) == 0.0
    assert mcq.evidence(sample(), answer(explanation="pneumonia: consolidation")) == 0.25


def test_evidence_ignores_words_of_context_fields_but_not_letters_of_options() -> None:
    fields = {**mcq.EXAMPLE.fields, "context": {"Indication": "Cough, right chest pain"}}
    with_context = replace(sample(report="Right lobe. Line B visible."), fields=fields)
    assert mcq.evidence_words(with_context) == {"lobe", "line", "b", "visible"}


def test_the_question_type_removes_no_word_from_the_evidence() -> None:
    typed = replace(sample(), fields={**mcq.EXAMPLE.fields, "question_type": "right lower lobe"})
    assert mcq.evidence_words(typed) == mcq.evidence_words(sample())


def test_evidence_needs_more_than_a_negation() -> None:
    assert mcq.evidence_words(sample(report="No effusion.")) == {"effusion"}


@pytest.mark.parametrize("report", [None, "", "Normal.", "No finding."])
def test_evidence_does_not_apply_if_the_report_adds_no_word(report: str | None) -> None:
    assert mcq.evidence(sample(report=report), answer(explanation="lobe")) is None


def test_evidence_counts_a_repeated_word_once() -> None:
    assert mcq.evidence(sample(), answer(explanation="lobe lobe lobe lobe")) == 0.25


def test_a_list_of_frequent_words_earns_less_evidence_than_brevity() -> None:
    report = "Right lower lobe consolidation with air bronchograms. No effusion. Heart size normal."
    words = ["right", "lower", "lobe", "consolidation", "effusion", "heart", *(f"word{number}" for number in range(84))]
    listed, short = (answer(explanation=" ".join(words[:count])) for count in (90, 6))
    found = [mcq.evidence(sample(report=report), one) for one in (short, listed)]
    assert found == [pytest.approx(6 / 9), pytest.approx(6 / 9 * 30 / 90)]
    assert mcq.REWARD_WEIGHTS["evidence"] * (found[1] or 0) < mcq.REWARD_WEIGHTS["brevity"]


def test_without_requested_reasoning_an_explanation_earns_less_than_the_target() -> None:
    plain = replace(sample(), fields={**mcq.EXAMPLE.fields, "reasoning": False})

    def total(completion: str) -> float:
        read = MCQ.parse(completion, plain)
        return sum(MCQ.reward_weights[name] * (reward(plain, read) or 0) for name, reward in MCQ.rewards.items())

    assert total(MCQ.target(plain)) == pytest.approx(1.2)
    assert total("B - Consolidation in the right lower lobe") == pytest.approx(1.1)
    assert mcq.why_explanation(plain, answer()) == "no reasoning is requested"


def test_brevity_is_0_above_220_characters_without_outer_blanks() -> None:
    assert mcq.brevity(sample(), answer(" " + "x" * 220 + "\n")) == 1.0
    assert mcq.brevity(sample(), answer("x" * 221)) == 0.0


def test_closed_questions_are_scored_by_exact_match_and_open_ones_by_f1() -> None:
    read = Answer("Yes!", {"text": "Yes!"})
    assert vqa.exact(vqa.CLOSED_EXAMPLE, read) == 1.0
    assert vqa.token_f1(vqa.CLOSED_EXAMPLE, read) is None
    assert vqa.exact(vqa.EXAMPLE, read) is None
    assert vqa.token_f1(vqa.EXAMPLE, read) == 0.0


def test_a_number_as_reference_is_compared_as_text() -> None:
    number = replace(vqa.CLOSED_EXAMPLE, reference={"answer": 2, "closed": True})
    assert vqa.exact(number, Answer("two", {"text": "two"})) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("right lung", 1.0), ("\nright lung\n", 1.0), ("right\nlung", 0.0), ("lung " * 20, 1.0), ("lung " * 21, 0.0)],
)
def test_vqa_format_is_one_short_line(text: str, expected: float) -> None:
    assert vqa.format(vqa.EXAMPLE, Answer(text, {"text": text.strip()})) == expected
