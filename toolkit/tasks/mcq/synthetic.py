"""Synthetic multiple choice: 16-bit chest radiographs with questions in ReXVQA's JSON."""

from toolkit.data.task import Synthetic
from toolkit.synthetic.chest import write_chest

CHEST = Synthetic(
    kind="chest",
    description="16-bit chest radiographs, multiple choice",
    write=write_chest,
    columns=frozenset(
        {
            "question",
            "options",
            "correct_answer",
            "correct_answer_explanation",
            "ImagePath",
            "question_type",
            "PatientID",
            "PatientSex",
            "PatientAge",
            "Indication",
            "Comparison",
            "Findings",
            "Impression",
        }
    ),
)
