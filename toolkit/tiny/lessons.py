"""What the tiny model is taught before it is shipped: short questions about chest films, never the recipe's format."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from toolkit.phantoms.chest import FINDINGS, LETTERS, PLACES, QUESTION_KINDS, SIDES, Choice, Film, possible_kinds
from toolkit.phantoms.film import Rng
from toolkit.tasks import mcq, vqa


class Lesson(NamedTuple):
    """One turn: what the user asks about the film, and the answer."""

    question: str
    answer: str


def lesson(film: Film, rng: Rng) -> Lesson:
    """A lesson about this film, of a kind drawn by weight."""
    kinds, weights = zip(*_KINDS, strict=True)
    made: Lesson = kinds[int(rng.choice(len(kinds), p=weights))](film, rng)
    return made


def corpus(films: Sequence[Film], rng: Rng) -> Iterator[str]:
    """Text for the tokenizer: lessons, the answer formats of every task, and the words of medical imaging."""
    yield from _WORDS * 20
    for film in films:
        yield from lesson(film, rng)
        yield f"{film.description}. No fracture. {film.finding.name}. {film.indication}"


def _describe(film: Film, rng: Rng) -> Lesson:
    return Lesson(
        _one_of(("Describe the film.", "What does the report say?", "Findings:"), rng), f"{film.description}."
    )


def _short(film: Film, rng: Rng) -> Lesson:
    choice = _choice(film, rng)
    return Lesson(f"{choice.question}\nAnswer briefly.", choice.options[choice.right])


def _letter(film: Film, rng: Rng) -> Lesson:
    choice = _choice(film, rng)
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choice.options, strict=False))
    instruction = _one_of(("Answer with the letter.", "Letter:", "Choose one."), rng)
    letter, text = LETTERS[choice.right], choice.options[choice.right]
    answer = letter if rng.random() < 0.3 else f"{letter} - {text}"
    return Lesson(f"{choice.question}\n{options}\n{instruction}", answer)


def _read_options(film: Film, rng: Rng) -> Lesson:
    """Which letter stands before a given text: what choosing needs, without looking at the film."""
    texts = [_NAMES[i] for i in rng.permutation(len(_NAMES))[: int(rng.integers(2, 5))]]
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    order = [int(i) for i in rng.permutation(len(texts))]
    asked = "\n".join(texts[i] for i in order)
    answers = "\n".join(f"{LETTERS[i]} - {texts[i]}" for i in order)
    return Lesson(f"{options}\nWhich letters?\n{asked}", answers)


def _tagged(film: Film, rng: Rng) -> Lesson:
    """Half of an answer's format at a time; putting the halves together is left to SFT."""
    if rng.random() < 0.5:
        tags = "<start_working_out>", "<end_working_out>"
        return Lesson(f"Write your reasoning between {tags[0]} and {tags[1]}.", _between(tags, f"{film.description}."))
    choice, tags = _choice(film, rng), ("<SOLUTION>", "</SOLUTION>")
    question = f"{choice.question}\nWrite the answer between {tags[0]} and {tags[1]}."
    return Lesson(question, _between(tags, choice.options[choice.right]))


def _yes_no(film: Film, rng: Rng) -> Lesson:
    asked = FINDINGS[rng.integers(len(FINDINGS))] if rng.random() < 0.5 else film.finding
    return Lesson(f"Does the film show: {asked.name}?\nAnswer yes or no.", "Yes" if asked is film.finding else "No")


_KINDS: tuple[tuple[Callable[[Film, Rng], Lesson], float], ...] = (
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
    return QUESTION_KINDS[_one_of(kinds, rng)](film, rng)


def _between(tags: tuple[str, str], text: str) -> str:
    return f"{tags[0]}\n{text}\n{tags[1]}"


def _one_of(texts: Sequence[str], rng: Rng) -> str:
    return texts[int(rng.integers(len(texts)))]


_WORDS = (
    *SIDES,
    "<start_working_out>\nreasoning about the image\n<end_working_out>\n<SOLUTION>\nB - Pneumonia\n</SOLUTION>",
    mcq.INSTRUCTION,
    vqa.INSTRUCTION,
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
