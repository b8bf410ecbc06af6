"""The curriculum of the tiny model, the script that trains it, and the shipped files."""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Gemma3Processor

from tests.tiny_training import make, reports, screens, skin, tissue
from tests.tiny_training.build import build_model
from tests.tiny_training.curriculum import DOMAINS, FIRST
from tests.tiny_training.loader import CurriculumLoader, collate
from tests.tiny_training.make import pretrain_vision
from tests.tiny_training.turns import Example, QuestionAnswer
from toolkit import tiny
from toolkit.scoring.regions import box_iou, find_regions
from toolkit.synthetic.lesions import Photo, make_lesion
from toolkit.synthetic.tissue import TISSUES
from toolkit.tasks.lesion.diagnoses import HAM10000
from toolkit.tasks.steps.synthetic import make_gui_task

NUMBERS = range(FIRST, FIRST + 30)
SHIPPED = {
    "chat_template.jinja": "a78cf55f48ada096",
    "config.json": "a379a58881cb17ea",
    "generation_config.json": "3968baac268b6969",
    "model.safetensors": "32146e5d8de87b6c",
    "processor_config.json": "26107e3f7656d204",
    "tokenizer.json": "bfcc14b37751228d",
    "tokenizer.model": "fa09735eac632a90",
    "tokenizer_config.json": "3b8cfa1b77bd6801",
}
"""File name -> first 16 digits of its SHA-256."""


@pytest.fixture(scope="module")
def processor() -> Gemma3Processor:
    return Gemma3Processor.from_pretrained(tiny.FOLDER)


def turns_of(draw: Callable[[int, int], Example], count: int) -> list[QuestionAnswer]:
    rng = np.random.default_rng(0)
    return [draw(3407, number).make_turn(rng) for number in range(FIRST, FIRST + count)]


def test_domain_weights_sum_to_one() -> None:
    assert sum(domain.weight for domain in DOMAINS) == pytest.approx(1)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_trained_box_matches_the_mask(number: int) -> None:
    image = Photo(number, make_lesion(3407, number, skin.FREQUENCIES), (3407, number)).draw(skin.SIZE)
    (largest, *_), _ = find_regions(image.mask > 0)
    rng, example = np.random.default_rng(number), skin.draw(3407, number)
    turns = [example.make_turn(rng) for _ in range(60)]
    # All turns about the box have the same answer. A few images have none among their 60 turns.
    for answer in {turn.answer for turn in turns if turn.question.startswith("Box")}:
        # Whole hundredths of a side: half of one is 0.8 pixels of 160.
        box = tuple(edge * side / 100 for edge, side in zip(json.loads(answer), skin.SIZE * 2, strict=True))
        assert box_iou(box, largest.box) > 0.85


def test_a_map_has_the_covered_fraction_of_each_cell() -> None:
    number = FIRST
    image = Photo(number, make_lesion(3407, number, skin.FREQUENCIES), (3407, number)).draw(skin.SIZE)
    example, rng = skin.draw(3407, number), np.random.default_rng(0)
    maps = {made.answer for _ in range(80) if (made := example.make_turn(rng)).question == "Map:"}
    (rows,) = [answer.splitlines() for answer in maps]
    # 160 x 120 pixels in 4 x 4 cells of 40 x 30.
    cells = (image.mask > 0).reshape(4, 30, 4, 40).mean((1, 3))
    assert [[int(digit) for digit in row] for row in rows] == np.round(9 * cells).astype(int).tolist()


def test_no_turn_about_skin_has_more_than_one_part_of_an_answer() -> None:
    for _, answer in turns_of(skin.draw, 200):
        assert len(set(re.findall(r"<(\w+)>", answer))) <= 1


def test_a_turn_about_several_findings_names_one_lung_the_heart_or_a_device() -> None:
    for _, answer in turns_of(reports.draw, 200):
        assert answer.count(".") <= 1
        assert "fracture" not in answer


def test_vision_labels_of_several_findings_agree_with_the_turns() -> None:
    rng = np.random.default_rng(0)
    for number in NUMBERS:
        example = reports.draw(3407, number)
        right, _, left, _, heart, device = (index for index, _ in example.labels.classes)
        answers = dict(example.make_turn(rng) for _ in range(30))
        for question, normal, index in (
            ("Describe the right lung.", "The right lung is clear.", right),
            ("Describe the left lung.", "The left lung is clear.", left),
            ("Describe the heart.", "The heart is normal.", heart),
            ("Describe devices.", "No device.", device),
        ):
            if question in answers:
                assert (answers[question] == normal) == (index == 0), (number, question)


def test_the_label_of_a_tile_is_its_name_in_every_turn() -> None:
    rng = np.random.default_rng(0)
    for number in NUMBERS:
        example = tissue.draw(3407, number)
        ((index, _),) = example.labels.classes
        assert {example.make_turn(rng).answer for _ in range(10)} == {tissue.NAMES[tuple(TISSUES)[index]]}


def test_no_turn_about_screens_has_agent_memory_and_action_together() -> None:
    for _, answer in turns_of(screens.draw, 300):
        assert sum(part in answer for part in ('"Short Term"', '"Long Term"', '"Predicted"')) <= 1


def test_coordinates_on_a_screen_are_inside_their_widget() -> None:
    rng = np.random.default_rng(1)
    for number in NUMBERS:
        example, boxes = screens.draw(3407, number), make_gui_task(3407, number).layout.boxes
        for question, answer in (example.make_turn(rng) for _ in range(20)):
            if found := re.fullmatch(r"Where is (\w+)\?", question):
                x, y = (edge / 100 for edge in json.loads(answer))
                box = boxes[found[1]]
                assert box.x1 <= x <= box.x2
                assert box.y1 <= y <= box.y2


def test_labels_cover_the_answers_and_the_ends_of_their_turns(processor: Gemma3Processor) -> None:
    conversations = [
        [QuestionAnswer("Which?", "melanoma"), QuestionAnswer("Place:", "upper-left")],
        [QuestionAnswer("Map:", "0\n9")],
    ]
    batch = collate(processor, conversations, [np.zeros((112, 112, 3), np.uint8)] * 2)
    tokenizer = processor.tokenizer
    trained = [tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert trained == ["melanoma<end_of_turn>upper-left<end_of_turn>", "0\n9<end_of_turn>"]
    assert (batch["token_type_ids"].sum(1) == 16).all()
    assert batch["pixel_values"].shape == (2, 3, 112, 112)
    assert batch["pixel_values"].max() == -1


@pytest.mark.slow
def test_vision_pretraining_changes_only_vision_parameters(processor: Gemma3Processor) -> None:
    torch.manual_seed(0)
    model = build_model(processor.tokenizer)
    before = {name: value.clone() for name, value in model.named_parameters()}
    pretrain_vision(model, CurriculumLoader(processor, 60, 0), 2)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any("vision_tower" in name for name in changed)
    assert any("projector" in name for name in changed)
    assert not any("language_model" in name for name in changed)


@pytest.mark.slow
def test_the_script_saves_a_model_that_transformers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model"
    arguments = ["make", "--out", str(out), "--steps", "1", "--seeing-steps", "1", "--images", "60"]
    monkeypatch.setattr(sys, "argv", arguments)
    make.main()
    assert {file.name for file in out.iterdir()} == {file.name for file in tiny.FOLDER.iterdir()}
    loaded: Any = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert sum(value.numel() for value in model.parameters()) < 2e6


def test_the_shipped_files_are_those_that_documented_results_were_measured_with() -> None:
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in tiny.FOLDER.iterdir()}
    assert hashes == SHIPPED


def test_the_package_does_not_import_the_training_code() -> None:
    package = tiny.FOLDER.parents[1]
    assert [file for file in package.rglob("*.py") if "tests.tiny_training" in file.read_text(encoding="utf-8")] == []


def test_the_shipped_tokenizer_has_the_vocabulary_of_every_task() -> None:
    tokenizer = AutoProcessor.from_pretrained(tiny.FOLDER).tokenizer
    for text in ('"Long Term"', "<bbox>", "</diagnosis>", "<SOLUTION>", "<start_working_out>", "user", "model"):
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1, text
    for label in HAM10000.labels:
        assert len(tokenizer(label.name, add_special_tokens=False)["input_ids"]) <= 4, label.name
