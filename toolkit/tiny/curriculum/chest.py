"""Lessons about chest films: short questions, and each half of an answer's format, never the whole."""

from collections.abc import Callable
from functools import partial

import numpy as np

from toolkit.synthetic.chest import (
    FINDINGS,
    LETTERS,
    PLACES,
    QUESTION_KINDS,
    SIDES,
    Choice,
    Film,
    make_patient_image,
    possible_kinds,
)
from toolkit.synthetic.radiograph import Rng, draw_radiograph
from toolkit.tiny.curriculum.base import Drawing, ImageLabels, QuestionAnswer, between, one_of, weighted

SIDE = 256
"""Films are drawn with so many pixels a side, then reduced to what the model sees."""
WHERE = ("", *PLACES, *SIDES)


def draw(seed: int, number: int) -> Drawing:
    """A film, and who asks about it."""
    film, rng = make_patient_image(seed, number)
    light = draw_radiograph(film.finding.name, film.place, SIDE, rng)
    low, high = light.min(), light.max()
    grey = ((light - low) / (high - low) * 255).astype(np.uint8)
    finding, place = FINDINGS.index(film.finding), WHERE.index(film.place)
    truth = ImageLabels(classes=((finding, len(FINDINGS)), (place, len(WHERE))))
    return Drawing(np.repeat(grey[..., None], 3, axis=2), partial(lesson, film), truth)


def lesson(film: Film, rng: Rng) -> QuestionAnswer:
    """A lesson about this film, of a kind drawn by weight."""
    return weighted(_KINDS, rng)(film, rng)


def texts(seed: int, number: int, rng: Rng) -> tuple[str, ...]:
    """What a lesson and a report on this film say, for the tokenizer."""
    film, _ = make_patient_image(seed, number)
    return *lesson(film, rng), f"{film.description}. No fracture. {film.finding.name}. {film.indication}"


def _describe(film: Film, rng: Rng) -> QuestionAnswer:
    return QuestionAnswer(
        one_of(("Describe the film.", "What does the report say?", "Findings:"), rng), f"{film.description}."
    )


def _short(film: Film, rng: Rng) -> QuestionAnswer:
    choice = _choice(film, rng)
    return QuestionAnswer(f"{choice.question}\nAnswer briefly.", choice.options[choice.right])


def _letter(film: Film, rng: Rng) -> QuestionAnswer:
    choice = _choice(film, rng)
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choice.options, strict=False))
    instruction = one_of(("Answer with the letter.", "Letter:", "Choose one."), rng)
    letter, text = LETTERS[choice.right], choice.options[choice.right]
    answer = letter if rng.random() < 0.3 else f"{letter} - {text}"
    return QuestionAnswer(f"{choice.question}\n{options}\n{instruction}", answer)


def _read_options(film: Film, rng: Rng) -> QuestionAnswer:
    """Which letter stands before a given text: what choosing needs, without looking at the film."""
    texts = [_NAMES[i] for i in rng.permutation(len(_NAMES))[: int(rng.integers(2, 5))]]
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    order = [int(i) for i in rng.permutation(len(texts))]
    asked = "\n".join(texts[i] for i in order)
    answers = "\n".join(f"{LETTERS[i]} - {texts[i]}" for i in order)
    return QuestionAnswer(f"{options}\nWhich letters?\n{asked}", answers)


def _tagged(film: Film, rng: Rng) -> QuestionAnswer:
    """Half of an answer's format at a time; putting the halves together is left to SFT."""
    if rng.random() < 0.5:
        tags = "<start_working_out>", "<end_working_out>"
        return QuestionAnswer(
            f"Write your reasoning between {tags[0]} and {tags[1]}.", between(tags, f"{film.description}.")
        )
    choice, tags = _choice(film, rng), ("<SOLUTION>", "</SOLUTION>")
    question = f"{choice.question}\nWrite the answer between {tags[0]} and {tags[1]}."
    return QuestionAnswer(question, between(tags, choice.options[choice.right]))


def _yes_no(film: Film, rng: Rng) -> QuestionAnswer:
    asked = FINDINGS[rng.integers(len(FINDINGS))] if rng.random() < 0.5 else film.finding
    return QuestionAnswer(
        f"Does the film show: {asked.name}?\nAnswer yes or no.", "Yes" if asked is film.finding else "No"
    )


_KINDS: tuple[tuple[Callable[[Film, Rng], QuestionAnswer], float], ...] = (
    (_describe, 0.36),
    (_short, 0.2),
    (_letter, 0.2),
    (_read_options, 0.08),
    (_tagged, 0.1),
    (_yes_no, 0.06),
)
_NAMES = (
    *(finding.name for finding in FINDINGS),
    *(place.capitalize() for place in PLACES),
    "Right side",
    "Left side",
    "Neither side",
    "Enlarged heart",
    "Normal heart",
)


def _choice(film: Film, rng: Rng) -> Choice:
    kinds = [kind for kind in possible_kinds(film) if kind != "group"]  # left to those who fine-tune the model
    return QUESTION_KINDS[one_of(kinds, rng)](film, rng)
