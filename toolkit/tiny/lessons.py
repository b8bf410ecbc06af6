"""What the tiny model is taught before it is shipped: short questions about chest films, never the recipe's format."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from toolkit.phantoms.chest import FINDINGS, PLACES, QUESTION_KINDS, SIDES, Film
from toolkit.phantoms.film import Rng

LETTERS = "ABCD"


class Lesson(NamedTuple):
    """One turn: what the user asks about the film, and the answer."""

    question: str
    answer: str


def lesson(film: Film, rng: Rng) -> Lesson:
    """A lesson about this film, of a kind drawn by weight."""
    kinds, weights = zip(*_KINDS, strict=True)
    return kinds[rng.choice(len(kinds), p=weights)](film, rng)


def corpus(films: Sequence[Film], rng: Rng) -> Iterator[str]:
    """Text for the tokenizer: lessons, the answer formats of every task, and the words of medical imaging."""
    yield from _WORDS
    for film in films:
        yield from lesson(film, rng)
        yield f"{film.description}. No fracture. {film.finding.name}. {film.indication}"


def _describe(film: Film, rng: Rng) -> Lesson:
    return Lesson(_one_of(("Describe the film.", "What does the report say?", "Findings:"), rng), f"{film.description}.")


def _short(film: Film, rng: Rng) -> Lesson:
    kind = _kind(film, rng)
    question, right, _ = QUESTION_KINDS[kind](film, rng)
    return Lesson(f"{question}\nAnswer briefly.", right)


def _letter(film: Film, rng: Rng) -> Lesson:
    question, right, wrong = QUESTION_KINDS[_kind(film, rng)](film, rng)
    return _choose(question, [right, *wrong], _one_of(("Answer with the letter.", "Letter:", "Choose one."), rng), rng)


def _read_options(film: Film, rng: Rng) -> Lesson:
    """Which letter stands before a given text: what choosing needs, without looking at the film."""
    names = [*(finding.name for finding in FINDINGS), *(place.capitalize() for place in PLACES)]
    names += ["Right side", "Left side", "Neither side", "Enlarged heart", "Normal heart"]
    count = int(rng.integers(2, 5))
    texts = [names[i] for i in rng.permutation(len(names))[:count]]
    return _choose(f"Which letter is {texts[0]}?", texts, "Answer with the letter.", rng)


def _yes_no(film: Film, rng: Rng) -> Lesson:
    asked = FINDINGS[rng.integers(len(FINDINGS))] if rng.random() < 0.5 else film.finding
    return Lesson(f"Does the film show: {asked.name}?\nAnswer yes or no.", "Yes" if asked is film.finding else "No")


_KINDS: tuple[tuple[Callable[[Film, Rng], Lesson], float], ...] = (
    (_describe, 0.35),
    (_short, 0.2),
    (_letter, 0.25),
    (_read_options, 0.12),
    (_yes_no, 0.08),
)


def _choose(question: str, texts: list[str], instruction: str, rng: Rng) -> Lesson:
    order = [int(i) for i in rng.permutation(len(texts))]
    options = "\n".join(f"{letter}. {texts[i]}" for letter, i in zip(LETTERS, order, strict=False))
    letter = LETTERS[order.index(0)]
    return Lesson(f"{question}\n{options}\n{instruction}", letter if rng.random() < 0.5 else f"{letter} - {texts[0]}")


def _kind(film: Film, rng: Rng) -> str:
    kinds = [kind for kind in QUESTION_KINDS if kind != "place" or film.finding.places == PLACES]
    return kinds[rng.integers(len(kinds))]


def _one_of(texts: Sequence[str], rng: Rng) -> str:
    return texts[rng.integers(len(texts))]


_WORDS = (
    *SIDES,
    "<start_working_out>\nreasoning about the image\n<end_working_out>\n<SOLUTION>\nB - Pneumonia\n</SOLUTION>",
    "Look at the image and think between <start_working_out> and <end_working_out>, then give the letter and the text "
    "of the right option between <SOLUTION> and </SOLUTION>.",
    "Question: Options: Answer: Indication: Findings: Impression: Comparison: Report: Yes No yes no unknown none",
    "Answer with one word or a short phrase. Answer yes or no. Is there evidence of a pneumothorax? What is shown?",
    "<diagnosis>melanoma</diagnosis> <location>upper left</location> <bbox>[12, 34, 56, 78]</bbox>",
    "<polygon>[[1, 2], [3, 4]]</polygon> melanocytic nevus, basal cell carcinoma, actinic keratosis, benign keratosis, "
    "dermatofibroma, vascular lesion, melanoma; asymmetry, irregular border, several colours, size, location",
    "upper left, upper centre, upper right, centre left, centre, centre right, lower left, lower centre, lower right",
    '{"Short Term": {"last_action": "CLICK", "last_observation": "", "last_lesson": ""}, "Long Term": '
    '{"overall_progress": "", "completed_subtasks": [], "remaining_subtasks": [], "known_pitfalls": [], '
    '"recurring_issues": []}, "Reason": "", "Predicted": {"predicted_action": {"action": "SCROLL", "target": "slice '
    'slider", "coords": [10, 20]}}} CLICK SCROLL ZOOM SEGMENT TEXT COMPLETE null true false',
    "chest radiograph, computed tomography, magnetic resonance, ultrasound, brain, abdomen, liver, kidney, lung, heart",
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. 0 1 2 3 4 5 6 7 8 9",
)
