"""Turns about chest radiographs: short questions, and half of an answer format at a time."""

from collections.abc import Callable
from functools import partial

import numpy as np

from tests.tiny_training.turns import Example, ImageLabels, QuestionAnswer, between, one_of, weighted
from toolkit.synthetic import Bytes, Rng
from toolkit.synthetic.chest import FINDINGS, LOCATIONS, SIDES, ChestCase, Light, draw_radiograph, make_case
from toolkit.tasks.mcq.synthetic import LETTERS, QUESTION_KINDS, Choice, possible_kinds

SIDE = 256
"""Pixels per side of a drawn radiograph, before it is resized for the model."""
LOCATION_CLASSES = ("", *LOCATIONS, *SIDES)


def draw(seed: int, number: int) -> Example:
    """Return a radiograph, its turns and its labels."""
    case, rng = make_case(seed, number)
    pixels = to_rgb(draw_radiograph(case.finding.name, case.location, SIDE, rng))
    finding, location = FINDINGS.index(case.finding), LOCATION_CLASSES.index(case.location)
    labels = ImageLabels(classes=((finding, len(FINDINGS)), (location, len(LOCATION_CLASSES))))
    return Example(pixels, partial(make_turn, case), labels)


def to_rgb(light: Light) -> Bytes:
    """Return a radiograph as RGB, from its darkest to its brightest pixel."""
    low, high = light.min(), light.max()
    grey = ((light - low) / (high - low) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def make_turn(case: ChestCase, rng: Rng) -> QuestionAnswer:
    """Return a turn about this case. Its kind is drawn by weight."""
    return weighted(_KINDS, rng)(case, rng)


def texts(seed: int, number: int, rng: Rng) -> tuple[str, ...]:
    """Return the texts of a turn and of a report on this case, for the tokenizer."""
    case, _ = make_case(seed, number)
    return *make_turn(case, rng), f"{case.description}. No fracture. {case.finding.name}. {case.indication}"


def _describe(case: ChestCase, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer(
        one_of(("Describe the image.", "What does the report say?", "Findings:"), rng), f"{case.description}."
    )


def _short(case: ChestCase, rng: Rng) -> QuestionAnswer:
    choice = _choice(case, rng)
    return QuestionAnswer(f"{choice.question}\nAnswer briefly.", choice.options[choice.right])


def _letter(case: ChestCase, rng: Rng) -> QuestionAnswer:
    choice = _choice(case, rng)
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choice.options, strict=False))
    instruction = one_of(("Answer with the letter.", "Letter:", "Choose one."), rng)
    letter, text = LETTERS[choice.right], choice.options[choice.right]
    answer = letter if rng.random() < 0.3 else f"{letter} - {text}"
    return QuestionAnswer(f"{choice.question}\n{options}\n{instruction}", answer)


def _read_options(case: ChestCase, rng: Rng) -> QuestionAnswer:
    """Match texts to option letters. A choice needs this skill, and it needs no image."""
    texts = [_NAMES[i] for i in rng.permutation(len(_NAMES))[: int(rng.integers(2, 5))]]
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    order = [int(i) for i in rng.permutation(len(texts))]
    query = "\n".join(texts[i] for i in order)
    answers = "\n".join(f"{LETTERS[i]} - {texts[i]}" for i in order)
    return QuestionAnswer(f"{options}\nWhich letters?\n{query}", answers)


def _tagged(case: ChestCase, rng: Rng) -> QuestionAnswer:
    """Return a turn with one half of the answer format. SFT teaches the whole."""
    if rng.random() < 0.5:
        tags = "<start_working_out>", "<end_working_out>"
        return QuestionAnswer(
            f"Write your reasoning between {tags[0]} and {tags[1]}.", between(tags, f"{case.description}.")
        )
    choice, tags = _choice(case, rng), ("<SOLUTION>", "</SOLUTION>")
    question = f"{choice.question}\nWrite the answer between {tags[0]} and {tags[1]}."
    return QuestionAnswer(question, between(tags, choice.options[choice.right]))


def _yes_no(case: ChestCase, rng: Rng) -> QuestionAnswer:
    queried = FINDINGS[rng.integers(len(FINDINGS))] if rng.random() < 0.5 else case.finding
    return QuestionAnswer(
        f"Does the image show: {queried.name}?\nAnswer yes or no.", "Yes" if queried is case.finding else "No"
    )


_KINDS: tuple[tuple[Callable[[ChestCase, Rng], QuestionAnswer], float], ...] = (
    (_describe, 0.36),
    (_short, 0.2),
    (_letter, 0.2),
    (_read_options, 0.08),
    (_tagged, 0.1),
    (_yes_no, 0.06),
)
_NAMES = (
    *(finding.name for finding in FINDINGS),
    *(place.capitalize() for place in LOCATIONS),
    "Right side",
    "Left side",
    "Neither side",
    "Enlarged heart",
    "Normal heart",
)


def _choice(case: ChestCase, rng: Rng) -> Choice:
    kinds = [kind for kind in possible_kinds(case) if kind != "group"]  # "group" is left to fine-tuning
    return QUESTION_KINDS[one_of(kinds, rng)](case, rng)
