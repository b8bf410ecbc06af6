"""Findings in reports: published examples of CheXpert's labeler and NegEx, and the F1 of two reports."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.scoring.findings import (
    ABSENT,
    MENTIONS,
    NO_FINDING,
    PRESENT,
    UNCERTAIN,
    find_findings,
    finding_f1,
    positive_findings,
)

# sample_reports.csv and labeled_reports.csv of github.com/stanfordmlgroup/chexpert-labeler: 1 is present, 0 is absent,
# -1 is uncertain.
CHEXPERT_SAMPLES: Mapping[str, Mapping[str, int]] = {
    "Heart size normal and lungs are clear. No edema or pneumonia. No effusion": {
        "No Finding": 1, "Cardiomegaly": 0, "Edema": 0, "Pneumonia": 0, "Pleural Effusion": 0,
    },
    "1. Left pleural effusion with adjacent atelectasis. Right effusion is also present.\n\n"
    "2. Cardiomegaly without overt edema.": {
        "Cardiomegaly": 1, "Edema": 0, "Atelectasis": 1, "Pleural Effusion": 1,
    },
    "Minimal patchy airspace disease within the lingula, may reflect atelectasis or consolidation.": {
        "Lung Opacity": 1, "Consolidation": -1, "Atelectasis": -1,
    },
    "1. Stable mild cardiomegaly. 2. Hyperexpanded but clear lungs.": {"Cardiomegaly": 1},
}  # fmt: skip
STATUS = {1: PRESENT, 0: ABSENT, -1: UNCERTAIN}


@pytest.mark.parametrize("report", CHEXPERT_SAMPLES)
def test_the_sample_reports_of_chexperts_labeler_get_its_labels(report: str) -> None:
    expected = {name: STATUS[label] for name, label in CHEXPERT_SAMPLES[report].items()}
    assert find_findings(report) == expected


def test_the_report_in_the_figure_of_the_chexpert_paper_gets_its_labels() -> None:
    # Irvin et al. 2019, figure 2.
    report = (
        "1. unremarkable cardiomediastinal silhouette\n"
        "2. diffuse reticular pattern, which can be seen with an atypical infection or chronic fibrotic change. "
        "no focal consolidation.\n"
        "3. no pleural effusion or pneumothorax\n"
        "4. mild degenerative changes in the lumbar spine and old right rib fractures."
    )
    assert find_findings(report) == {
        "Enlarged Cardiomediastinum": ABSENT,
        "Lung Opacity": PRESENT,
        "Consolidation": ABSENT,
        "Pneumonia": UNCERTAIN,
        "Pneumothorax": ABSENT,
        "Pleural Effusion": ABSENT,
        "Fracture": PRESENT,
    }


@pytest.mark.parametrize(
    ("sentence", "finding", "status"),
    [
        # Negations of NegEx before and after the finding, and its pseudo-negations (Chapman et al. 2001).
        ("Patient denies fracture.", "Fracture", ABSENT),
        ("Negative for pneumothorax.", "Pneumothorax", ABSENT),
        ("Lungs free of infiltrate.", "Lung Opacity", ABSENT),
        ("Pneumonia was ruled out.", "Pneumonia", ABSENT),
        ("Pneumonia is unlikely.", "Pneumonia", ABSENT),
        ("No change in the left effusion.", "Pleural Effusion", PRESENT),
        ("No significant interval increase of the edema.", "Edema", PRESENT),
        ("Not only atelectasis is seen.", "Atelectasis", PRESENT),
        ("Pneumonia cannot be excluded.", "Pneumonia", UNCERTAIN),
        ("Cannot exclude pneumonia.", "Pneumonia", UNCERTAIN),
        # The scope of a negation.
        ("No pneumothorax but a small effusion.", "Pleural Effusion", PRESENT),
        ("No pneumothorax, left basal opacity is present.", "Lung Opacity", PRESENT),
        ("No pneumothorax, effusion, or consolidation is seen.", "Consolidation", ABSENT),
        ("No pneumothorax and a small effusion.", "Pleural Effusion", PRESENT),
        ("There is no pleural effusion or\npneumothorax.", "Pneumothorax", ABSENT),
        ("No effusion\nCardiomegaly", "Cardiomegaly", PRESENT),
        ("Cardiomegaly without edema.", "Cardiomegaly", PRESENT),
        ("Effusion, not seen on the prior study, is now moderate.", "Pleural Effusion", PRESENT),
        ("The pneumothorax has resolved.", "Pneumothorax", ABSENT),
        ("The pneumothorax is no longer seen.", "Pneumothorax", ABSENT),
        # Uncertainty.
        ("Opacity concerning for pneumonia.", "Pneumonia", UNCERTAIN),
        ("Opacity concerning for pneumonia.", "Lung Opacity", PRESENT),
        ("Atelectasis versus pneumonia.", "Atelectasis", UNCERTAIN),
        ("Probable edema.", "Edema", UNCERTAIN),
        # Heart and mediastinum.
        ("The heart is enlarged.", "Cardiomegaly", PRESENT),
        ("The heart is not enlarged.", "Cardiomegaly", ABSENT),
        ("The cardiac silhouette is within normal limits.", "Cardiomegaly", ABSENT),
        ("The mediastinum is widened.", "Enlarged Cardiomediastinum", PRESENT),
        ("No pericardial effusion.", "Pleural Effusion", None),
        ("Heart size is stable.", "Cardiomegaly", None),
        ("Midline shift without mass effect.", "Lung Lesion", None),
    ],
)
def test_words_around_a_finding_decide_its_status(sentence: str, finding: str, status: str | None) -> None:
    assert find_findings(sentence).get(finding) == status


def test_present_wins_over_uncertain_and_uncertain_over_absent() -> None:
    assert find_findings("No effusion on the left. Right effusion.")["Pleural Effusion"] == PRESENT
    assert find_findings("No edema. Possible edema.")["Edema"] == UNCERTAIN


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("No acute cardiopulmonary process.", {NO_FINDING}),
        ("Normal chest radiograph. PICC in place.", {NO_FINDING, "Support Devices"}),
        ("No pneumothorax.", {NO_FINDING}),
        ("Left pneumothorax.", {"Pneumothorax"}),
        ("Adenocarcinoma of the colon was excised.", set()),
        ("", set()),
        ("lungs", set()),
    ],
)
def test_no_finding_needs_a_statement_about_findings(report: str, expected: set[str]) -> None:
    assert positive_findings(report) == expected


def test_the_f1_of_two_reports_is_computed_by_hand() -> None:
    reference = "Left effusion and atelectasis. No pneumothorax."
    assert finding_f1(reference, reference) == 1
    assert finding_f1("Left effusion.", reference) == pytest.approx(2 / 3)  # 1 of 1 and 2
    assert finding_f1("No effusion. No atelectasis. Pneumothorax.", reference) == 0
    assert finding_f1("Possible effusion, possible atelectasis.", reference) == 1  # uncertain counts as positive
    assert finding_f1("", "The lungs are clear.") == 0
    assert finding_f1("The lungs are clear.", "Benign naevus of the skin.") is None


@given(
    st.lists(st.sampled_from(["no", "pneumonia", "possible", "effusion,", "but", "heart", "normal", "is", "or", "."]))
)
def test_every_report_has_only_known_findings(words: list[str]) -> None:
    found = find_findings(" ".join(words))
    assert set(found) <= {*MENTIONS, NO_FINDING}
    assert set(found.values()) <= {PRESENT, ABSENT, UNCERTAIN}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("Pleural effusion: None.", {"Pleural Effusion": ABSENT, NO_FINDING: PRESENT}),
        ("Edema (pulmonary): absent", {"Edema": ABSENT, NO_FINDING: PRESENT}),
        ("Fracture: No acute fracture", {"Fracture": ABSENT, NO_FINDING: PRESENT}),
        ("Effusion - none", {"Pleural Effusion": ABSENT, NO_FINDING: PRESENT}),
        ("Atelectasis: possible", {"Atelectasis": UNCERTAIN}),
        ("Pneumothorax: small, right apical", {"Pneumothorax": PRESENT}),
        ("Consolidation: no change", {"Consolidation": PRESENT}),
        ("Heart size: enlarged", {"Cardiomegaly": PRESENT}),
        ("Lungs: Clear.", {NO_FINDING: PRESENT}),
        ("Small effusion - no pneumothorax", {"Pneumothorax": ABSENT, "Pleural Effusion": PRESENT}),
    ],
)
def test_a_field_of_a_structured_report_has_the_status_of_its_value(report: str, expected: Mapping[str, str]) -> None:
    assert find_findings(report) == expected


def test_a_negation_ends_at_a_comma_and_with() -> None:
    found = find_findings("No large effusion or pneumothorax, with bibasilar atelectasis.")
    assert found == {"Pleural Effusion": ABSENT, "Pneumothorax": ABSENT, "Atelectasis": PRESENT}


def test_a_resolved_observation_is_absent_unless_it_is_only_partially_resolved() -> None:
    assert find_findings("Resolved right pneumothorax.")["Pneumothorax"] == ABSENT
    assert find_findings("Partially resolved edema.")["Edema"] == PRESENT


def test_a_reference_that_only_denies_devices_has_a_score() -> None:
    reference = "No pacemaker."
    assert (finding_f1(reference, reference), finding_f1("No stent.", reference)) == (1.0, 1.0)
    # A report that says nothing about findings is not right.
    assert [finding_f1(text, reference) for text in ("", "x", "Small effusion.")] == [0.0, 0.0, 0.0]
