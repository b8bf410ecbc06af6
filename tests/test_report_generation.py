"""Reports: rows, sections, prompts, rewards, metrics of the whole set, baselines, and learning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from sklearn.metrics import f1_score

from tests.helpers.problems import raises
from tests.helpers.training import context_of
from toolkit.data.sample import Answer, Sample
from toolkit.errors import RowProblem
from toolkit.models.hf import HfBackend
from toolkit.recipe import recipe_model
from toolkit.scoring.findings import positive_findings
from toolkit.tasks import TASKS, RowOrigin
from toolkit.tasks.report_generation.metrics import OBSERVATIONS
from toolkit.tasks.report_generation.schema import CONTEXT_IN_REPORT, ReportGeneration
from toolkit.tasks.vqa.prompt import INSTRUCTION as SHORT_ANSWER

TASK = TASKS["report_generation"]
ROOT = Path("/data")
WHOLE = "FINDINGS:\nLeft effusion. No pneumothorax.\nIMPRESSION:\nPleural effusion."
PARTS = {"findings": "Left effusion. No pneumothorax.", "impression": "Pleural effusion."}


def read(row: Mapping[str, Any], target: Any = "report") -> Sample:
    row = {"image": "x.png", **row}
    settings = ReportGeneration(target=target)
    return TASK.read(
        "r1", row, RowOrigin(ROOT / "rows.json", ROOT, dict(zip(row, row, strict=True)), settings=settings)
    )


def answer(text: str, sample: Sample) -> Answer:
    return TASK.parse(text, sample)


@pytest.mark.parametrize(
    ("row", "target", "expected"),
    [
        ({"report": WHOLE}, "report", WHOLE),
        (PARTS, "report", WHOLE),
        ({"findings": "Clear."}, "report", "FINDINGS:\nClear."),
        (PARTS, "findings", PARTS["findings"]),
        (PARTS, "impression", PARTS["impression"]),
        ({"report": WHOLE}, "findings", PARTS["findings"]),
        ({"report": WHOLE.replace("IMPRESSION", "Impression")}, "impression", PARTS["impression"]),
        ({"report": WHOLE, "findings": "Column."}, "findings", "Column."),
    ],
)
def test_the_target_chooses_the_part_of_the_report(row: dict[str, str], target: str, expected: str) -> None:
    assert TASK.target(read(row, target)) == expected


@pytest.mark.parametrize(
    ("row", "target", "code", "value"),
    [
        ({}, "report", "tasks.report_generation.report_missing", None),
        ({"report": " "}, "report", "tasks.report_generation.report_missing", None),
        ({"report": "FINDINGS:\n\nIMPRESSION:\n"}, "report", "tasks.report_generation.report_missing", "text of"),
        ({"report": True}, "report", "tasks.report_generation.report_not_text", "True"),
        ({"findings": 3}, "report", "tasks.report_generation.report_not_text", "3"),
        ({"report": "<think>x</think>Clear."}, "report", "tasks.report_generation.reasoning_in_report", "text of"),
        ({"report": "Clear lungs."}, "findings", "tasks.report_generation.section_missing", "no section"),
        ({"findings": "Clear."}, "impression", "tasks.report_generation.section_missing", "findings"),
        ({"report": "IMPRESSION: Clear."}, "findings", "tasks.report_generation.section_missing", "IMPRESSION"),
    ],
)
def test_a_row_without_the_report_or_its_section_is_rejected(
    row: dict[str, str], target: str, code: str, value: str | None
) -> None:
    with raises(RowProblem, code) as caught:
        read(row, target)
    assert value is None or value in str(caught.problem.value)


def test_the_instruction_requests_the_sections_of_the_reference_and_never_a_short_answer() -> None:
    assert "FINDINGS and IMPRESSION" in TASK.instruction(read(PARTS))
    assert "IMPRESSION" not in TASK.instruction(read({"findings": "Clear."}))
    for row in (PARTS, {"report": "The lungs are clear."}):
        prompt = f"{TASK.question(read(row))} {TASK.instruction(read(row))}"
        assert SHORT_ANSWER not in prompt
        assert "one word" not in prompt
        assert "effusion" not in prompt


def test_sections_that_the_images_do_not_show_cause_a_warning() -> None:
    assert TASK.notes is not None
    assert list(TASK.notes(read({"report": f"INDICATION: Cough.\n{WHOLE}"}))) == [CONTEXT_IN_REPORT]
    assert list(TASK.notes(read(PARTS))) == []


def test_a_perfect_report_earns_every_reward() -> None:
    sample = read(PARTS)
    perfect = answer(WHOLE, sample)
    assert {name: reward(sample, perfect) for name, reward in TASK.rewards.items()} == pytest.approx(
        dict.fromkeys(TASK.rewards, 1.0)
    )


@pytest.mark.parametrize("text", ["yes", "normal", ""])
def test_a_short_answer_earns_little(text: str) -> None:
    sample = read(PARTS)
    earned = {name: reward(sample, answer(text, sample)) for name, reward in TASK.rewards.items()}
    assert earned["format"] == earned["finding_f1"] == 0
    assert all(value is not None and value < 0.2 for value in earned.values())


def test_a_negated_finding_earns_no_finding_f1_although_its_words_match() -> None:
    sample = read(PARTS)
    wrong = answer("FINDINGS:\nNo effusion. Left pneumothorax.\nIMPRESSION:\nPneumothorax.", sample)
    assert TASK.rewards["finding_f1"](sample, wrong) == 0
    assert (TASK.rewards["rouge_l"](sample, wrong) or 0) > 0.5


def test_a_report_of_another_organ_has_no_finding_f1() -> None:
    sample = read({"report": "Microscopic description: benign naevus."})
    assert TASK.scores(sample, answer("Lungs are clear.", sample))["finding_f1"] is None


@pytest.mark.parametrize("text", [f"```\n{WHOLE}\n```", f"\n{WHOLE}\n", WHOLE.replace("FINDINGS:", "**FINDINGS:**")])
def test_a_fence_and_bold_type_are_removed(text: str) -> None:
    assert answer(text, read(PARTS)).values["text"] == WHOLE


@pytest.mark.parametrize(
    "report", ["**Findings:** Left effusion.\n**Impression:** Effusion.", "```\nLeft effusion.\n```"]
)
def test_a_reference_with_markup_earns_every_reward_and_its_headings_are_requested(report: str) -> None:
    sample = read({"report": report})
    same = answer(TASK.target(sample), sample)
    assert [reward(sample, same) for reward in TASK.rewards.values()] == pytest.approx([1.0] * len(TASK.rewards))
    assert ("Findings and Impression" in TASK.instruction(sample)) == ("**" in report)


def test_an_empty_answer_earns_nothing_whatever_the_reference_says() -> None:
    for report in (WHOLE, "No pacemaker.", "右肺下叶实变。", "Kein Erguss."):
        sample = read({"report": report})
        assert not any(reward(sample, answer("", sample)) for reward in TASK.rewards.values())


def test_metrics_of_the_whole_set_equal_those_of_sacrebleu_and_scikit_learn() -> None:
    assert TASK.set_metrics is not None
    references = [
        "Left effusion. No pneumothorax.",
        "The lungs are clear.",
        "Cardiomegaly and edema.",
        "Right pneumothorax. Pacemaker.",
    ]
    texts = ["Left effusion and edema.", "No acute findings.", "Cardiomegaly.", "Normal chest."]
    samples = [read({"report": text}) for text in references]
    parts = [TASK.set_metrics.part(sample, answer(text, sample)) for sample, text in zip(samples, texts, strict=True)]
    found = TASK.set_metrics.values(parts)
    table = [[[name in positive_findings(text) for name in OBSERVATIONS] for text in of] for of in (references, texts)]
    labelled = [number for number in range(len(OBSERVATIONS)) if any(row[number] for row in table[0])]
    assert found == pytest.approx(
        {
            "corpus_bleu": sacrebleu.corpus_bleu(texts, [references]).score / 100,
            "finding_micro_f1": f1_score(*table, average="micro"),
            "finding_macro_f1": f1_score(*table, average="macro", labels=labelled),
        }
    )


def test_metrics_of_findings_are_undefined_without_findings() -> None:
    assert TASK.set_metrics is not None
    sample = read({"report": "Benign naevus."})
    found = TASK.set_metrics.values([TASK.set_metrics.part(sample, answer("Left effusion.", sample))])
    assert found["finding_micro_f1"] is found["finding_macro_f1"] is None


def test_the_baseline_is_the_medoid_and_that_of_findings_has_the_commonest_findings() -> None:
    texts = [
        "Left effusion is seen.",
        "The lungs are clear.",
        "The lungs are clear now.",
        "The heart is enlarged here.",
    ]
    samples = [read({"report": text}) for text in texts]
    assert TASK.baseline(samples)(samples[0]) == "The lungs are clear."
    assert TASK.baselines["finding_f1"](samples)(samples[0]) == "The lungs are clear."


@pytest.mark.slow
def test_the_tiny_model_learns_reports(tmp_path: Path) -> None:
    from toolkit.evaluation.evaluate import evaluate
    from toolkit.training.sft import train_sft

    settings = {
        "run": {"name": "reports", "folder": tmp_path},
        "model": {"name": "tiny", "max_tokens": 256},
        "lora": {"vision": True},
        "data": {"task": "report_generation", "report_generation": {"target": "impression"},
                 "synthetic": {"kind": "chest_reports", "train": 320, "test": 48, "size": 112}},
        "images": {"max_side": 112},
        "prompt": {"instruction": "Findings:"},
        "sft": {"learning_rate": 2e-3, "max_steps": 20, "batch_size": 16, "accumulation": 1,
                "gradient_checkpointing": False},
        "evaluate": {"batch_size": 48, "max_completion_tokens": 32, "bootstrap": 100},
    }  # fmt: skip
    with context_of(recipe_model(TASKS).model_validate(settings)) as context:
        train_sft(context)
        result = evaluate(context, "sft", context.run.stage_folder("sft") / "weights", (), HfBackend())
    for score in (result.primary, result.also["finding_f1"]):
        difference = score.differences["baseline"].difference
        assert difference.low is not None
        assert difference.low > 0, difference
    assert set(result.set_metrics) == {"corpus_bleu", "finding_micro_f1", "finding_macro_f1"}
