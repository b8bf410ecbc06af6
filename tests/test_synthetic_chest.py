"""Synthetic radiographs: reproducible, 16 bits, split without leakage, and with visible answers."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.helpers.recipes import load_data
from tests.helpers.training import small_recipe
from toolkit.recipe import SyntheticData
from toolkit.synthetic.chest import FINDINGS, draw_radiograph, make_case
from toolkit.tasks.mcq.synthetic import LETTERS, QUESTION_KINDS, make_questions, write_chest
from toolkit.tasks.vqa.synthetic import write_chest_vqa

REXVQA = {
    "question",
    "options",
    "correct_answer",
    "correct_answer_explanation",
    "ImagePath",
    "Indication",
    "Comparison",
    "Findings",
    "Impression",
    "PatientSex",
    "PatientAge",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("chest")
    write_chest(made, SyntheticData(kind="chest", train=40, validation=11, test=20, size=96), seed=5)
    return made


def records(folder: Path, split: str) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    return made


def test_each_split_has_the_requested_number_of_questions(folder: Path) -> None:
    assert [len(records(folder, split)) for split in ("train", "validation", "test")] == [40, 11, 20]


def test_records_have_the_fields_of_rexvqa(folder: Path) -> None:
    for record in records(folder, "train").values():
        assert record.keys() >= REXVQA
        letters = [option[0] for option in record["options"]]
        assert letters == list(LETTERS[: len(letters)])
        assert record["correct_answer"] in letters


def test_no_radiograph_is_in_two_splits(folder: Path) -> None:
    images = [
        {str(r["ImagePath"]) for r in records(folder, split).values()} for split in ("train", "validation", "test")
    ]
    assert images[0].isdisjoint(images[1] | images[2])
    assert images[1].isdisjoint(images[2])


def test_files_depend_only_on_the_seed(tmp_path: Path) -> None:
    synthetic = SyntheticData(kind="chest", train=4, test=2, size=64)

    def digest(name: str, seed: int) -> str:
        write_chest(tmp_path / name, synthetic, seed)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    assert digest("one", 1) == digest("two", 1) != digest("three", 2)


def test_radiographs_use_more_than_eight_bits(folder: Path) -> None:
    for path in sorted((folder / "images").glob("*.png"))[:10]:
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        assert pixels.dtype == np.uint16
        assert len(np.unique(pixels)) > 256
        assert pixels.max() > 255


def test_every_row_is_usable(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    data = load_data(recipe, folder)
    assert not data.dropped
    assert len(data.train) == 40


def test_every_question_applies_to_its_case() -> None:
    kinds_seen = [kind.rpartition("-")[2] for i in range(60) for kind, _ in make_questions(*make_case(2, i))]
    assert set(kinds_seen) == set(QUESTION_KINDS)
    for i in range(60):
        case, rng = make_case(2, i)
        kinds = [name.rpartition("-")[2] for name, _ in make_questions(case, rng)]
        assert "zone" not in kinds or case.location.endswith("zone")


def test_a_linear_classifier_recognizes_the_finding() -> None:
    """On held-out cases, from 24 x 24 pixels. Chance is one in seven."""

    def examples(first: int, count: int) -> tuple[np.ndarray, list[str]]:
        pixels, names = [], []
        for i in range(first, first + count):
            case, rng = make_case(11, i)
            light = draw_radiograph(case.finding.name, case.location, 96, rng)
            pixels.append(cv2.resize(light, (24, 24), interpolation=cv2.INTER_AREA).ravel())
            names.append(case.finding.name)
        return np.array(pixels), names

    train, names = examples(0, 500)
    test, labels = examples(500, 150)
    accuracy = LogisticRegression(max_iter=500).fit(train, names).score(test, labels)
    assert accuracy > 4 / len(FINDINGS)


def test_short_answers_match_their_case_and_both_tasks_draw_the_same_images(tmp_path: Path) -> None:
    written = write_chest_vqa(tmp_path, SyntheticData(kind="chest_vqa", train=40, test=7, size=96), seed=5)
    rows = json.loads(written["train"].read_text(encoding="utf-8"))
    assert (len(rows), len(json.loads(written["test"].read_text(encoding="utf-8")))) == (40, 7)
    for row in rows.values():
        case, _ = make_case(5, int(row["PatientID"].removeprefix("radiograph")))
        right = {
            "Is the heart enlarged?": "yes" if case.finding.name == "Cardiomegaly" else "no",
            "Are both lungs clear?": "yes"
            if case.finding.name in ("No acute finding", "Cardiomegaly", "Pacemaker")
            else "no",
            "What is the primary finding?": case.finding.name.lower(),
            "Which side of the chest shows an abnormality?": case.side,
        }
        assert row["answer"] == right[row["question"]] != ""
        assert row["answer_type"] == ("CLOSED" if row["answer"] in ("yes", "no") else "OPEN")
    assert len({row["question"] for row in rows.values()}) == 4
    chest = tmp_path / "chest"
    write_chest(chest, SyntheticData(kind="chest", train=40, test=7, size=96), seed=5)
    one, other = (made / "images" / "radiograph000003.png" for made in (chest, tmp_path))
    assert one.read_bytes() == other.read_bytes()
