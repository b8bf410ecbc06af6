"""Parse the letter in a completion, or return why there is none."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.reasoning import NO_ANSWER, NOT_CLOSED, without_reasoning
from toolkit.tasks.mcq.options import fold, letter_of_text
from toolkit.tasks.mcq.prompt import requests_reasoning
from toolkit.tasks.mcq.schema import TAGS

EMPTY_COMPLETION = "the completion is empty"
EMPTY_SOLUTION = "the solution is empty"
NO_OPTION = "no option's letter or text was found"
OTHER_TEXT = "the letter {letter} has the text of {other}"
SEVERAL_OPTIONS = "several options are named: {letters}"
SEVERAL_SOLUTIONS = "there is more than one solution"
SOLUTION_NOT_CLOSED = "the solution is not closed (was the completion cut off?)"
SOLUTION_NOT_OPENED = "the solution is closed but not opened"
TAGS_REVERSED = "the solution's tags are reversed"
UNKNOWN_OPTION = "{letter} is not one of the options {options}"
"""Problems of a completion. An evaluation counts answers by problem."""


class Choice(NamedTuple):
    """A letter and the text after it, or a problem."""

    letter: str = ""
    text: str = ""
    problem: str | None = None
    ambiguous: bool = False
    """Whether the problem is that several options are named."""


def parse(completion: str, sample: Sample) -> Answer:
    """Return the parsed answer of a completion.

    ``values``: explanation (the reasoning block without surrounding blanks, or empty), has_format (one reasoning block,
    one solution, nothing else; or a target without reasoning, if none is requested) and, unless there is a problem,
    letter and text (the text after the letter).
    """
    options = sample.fields["options"]
    in_format = has_format(completion) if requests_reasoning(sample) else is_target(completion, options)
    values: dict[str, object] = {"explanation": _explanation(completion), "has_format": in_format}
    text, problem = without_reasoning(completion)
    body, problem = ("", problem) if problem else _solution(text)
    if problem is None:
        letter, text, problem, _ = choose(body, options)
        values |= {"letter": letter, "text": text} if problem is None else {}
    return Answer(completion, values, problem)


def choose(body: str, options: Mapping[str, str]) -> Choice:
    """Return the option that a solution names.

    Accepted: B, b, B., (B), B), "B - text", "Answer: B", "the answer is B", and the whole text of an option without
    case and punctuation. An article is not a letter: "a nodule" and "A nodule" name no option by themselves.

    >>> choose("(b)", {"A": "Normal", "B": "Mass"}), choose("A mass.", {"A": "Normal", "B": "A mass"}).letter
    (Choice(letter='B', text='', problem=None, ambiguous=False), 'B')
    """
    if (choice := _choose(body, options)).problem is None:
        return choice
    first, _, rest = body.strip().partition("\n")
    # An untrained model often writes the answer on its own line and then explains it.
    alone = _choose(first, options) if rest.strip() else choice
    return alone if alone.problem is None and _names_no_other(rest, alone.letter, options) else choice


def _names_no_other(text: str, letter: str, options: Mapping[str, str]) -> bool:
    other = _choose(text, options)
    return (other.problem is not None and not other.ambiguous) or other.letter == letter


def _choose(body: str, options: Mapping[str, str]) -> Choice:
    text = " ".join(body.split())
    if exact := _as_target(text, options):
        return exact
    text = _BRACKETED.sub(r"\1", text.replace("**", "").strip("*_`\"' "))
    if not text:
        return Choice(problem=EMPTY_SOLUTION)
    choice = _read(text, options)
    if choice is None and (start := _LEAD_IN.match(text)):
        choice = _read(text[start.end() :].strip("*_`\"' "), options)
    return choice or _in_sentence(text, options) or Choice(problem=NO_OPTION)


def has_format(completion: str) -> bool:
    """Return whether a completion is one reasoning block, then one non-empty solution, and nothing else."""
    # With one of each tag, the pattern needs linear time.
    found = _FORMAT.fullmatch(completion) if all(completion.count(tag) == 1 for tag in TAGS) else None
    return bool(found and found[1].strip())


def is_target(completion: str, options: Mapping[str, str]) -> bool:
    """Return whether a completion is a letter, a hyphen and the text of that option, and nothing else.

    >>> is_target("B - Mass", {"A": "Normal", "B": "Mass"}), is_target("B", {"A": "Normal", "B": "Mass"})
    (True, False)
    """
    return _as_target(completion.strip(), options) is not None


_FORMAT = re.compile(r"\s*<start_working_out>.*<end_working_out>\s*<SOLUTION>(.*)</SOLUTION>\s*", re.DOTALL)
# A completion that was cut off has no end of its reasoning.
_REASONING = re.compile(r"<start_working_out>(.*?)(?:<end_working_out>|<solution>|\Z)", re.DOTALL | re.IGNORECASE)
_OPEN, _CLOSE, _START, _END = (
    re.compile(tag, re.IGNORECASE) for tag in ("<solution>", "</solution>", "<start_working_out>", "<end_working_out>")
)
# "[B]", "[B] - text".
_BRACKETED = re.compile(r"^\[([A-Za-z])\](?=$|[\s.,:;-])")
# "B", "(B)", "b."
_ALONE = re.compile(r"\(?([A-Za-z])\)?[.:]?")
# "B. text", "(B) text", "B - text". A hyphen needs a blank on one side: "C-spine" and "B-lines" are words.
_LABELLED = re.compile(r"\(?([A-Za-z])(?:\)[.:]?|[.:](?=\s)|\s*[-–—](?=\s)|\s+[-–—])\s*[-–—]?\s*(.+)")
_JOINT = r"(?:\s*[,;/&]\s*(?:or\s+|and\s+)?|\s+or\s+|\s+and\s+|\s+)"
# "A, B", "(A) or (B)", "A B".
_SEVERAL = re.compile(rf"\(?[A-Z]\)?(?:{_JOINT}\(?[A-Z]\)?)+\.?")
# A second letter after the text of the first option: "B - Mass, or C."
_ALSO = re.compile(r"(?:[,;/&]|\bor\b|\band\b)\s*(?:option\s+)?\(?([A-Z])(?=$|[.,;:)/]|\s+[-–—]|\s+(?:or|and)\b)")
# A second answer after it: "B. The answer is C."
_SECOND = re.compile(r"\b[Aa]nswer\b(?:\s+is\b\s*:?|\s*[:=])\s*\W{0,2}([A-Z])(?=\W*$|[.,;:)*])")
# "The answer is", "So my final answer:", "Option".
_LEAD_IN = re.compile(
    r"(?:(?:so|thus|therefore|hence),?\s+)?(?:(?:the|my)\s+)?(?:(?:final|correct|best|right)\s+)*"
    r"(?:answer|option|choice|solution)\b(?:\s+is\b)?\s*[:=]?\s*(?:option\s+)?",
    re.IGNORECASE,
)
# "… The answer is B because …". A lower-case letter counts only before punctuation, because "a" is an article.
_NAMED = re.compile(
    r"\b(?:[Aa]nswer|ANSWER|[Oo]ption|[Cc]hoice|[Cc]hoose)\b(?:\s+is\b)?\s*[:=]?\s*\W{0,2}"
    r"(?:([A-Z])(?=\W*$|[.,;:)*]|\s+[-–—]|\s+(?:because|since|as|which|is\s+(?:correct|right))\b)|([a-z])(?=\W*$|[.,;:)*]))"
)


def _explanation(completion: str) -> str:
    found = _REASONING.search(completion)
    return found[1].strip() if found else ""


def _solution(completion: str) -> tuple[str, str | None]:
    """Return the text with the answer, and a problem if the tags do not identify it."""
    opened, closed = list(_OPEN.finditer(completion)), list(_CLOSE.finditer(completion))
    if len(opened) > 1 or len(closed) > 1:
        return "", SEVERAL_SOLUTIONS
    if opened and closed:
        in_order = opened[0].end() <= closed[0].start()
        return completion[opened[0].end() : closed[0].start()], None if in_order else TAGS_REVERSED
    if opened:
        return "", SOLUTION_NOT_CLOSED
    if closed:
        return "", SOLUTION_NOT_OPENED
    return _after_reasoning(completion)


def _after_reasoning(completion: str) -> tuple[str, str | None]:
    ends = list(_END.finditer(completion))
    if not ends and _START.search(completion):
        return "", NOT_CLOSED
    rest = completion[ends[-1].end() :] if ends else completion
    if not rest.strip():
        return "", NO_ANSWER if ends else EMPTY_COMPLETION
    return rest, None


def _as_target(text: str, options: Mapping[str, str]) -> Choice | None:
    """Return the choice if the text has exactly the format of SFT targets: letter, hyphen, and that option's text."""
    letter, _, rest = text.partition(" - ")
    return Choice(letter, rest) if rest and options.get(letter) == rest else None


def _read(text: str, options: Mapping[str, str]) -> Choice | None:
    alone = _ALONE.fullmatch(text)
    if alone and alone[1].upper() in options:
        return Choice(alone[1].upper())
    if letter := letter_of_text(text, options):
        return Choice(letter, text)
    if choice := _letter_and_its_text(text, options):
        return choice
    if alone:
        return _unknown(alone[1], options)
    if _SEVERAL.fullmatch(text):
        return _several(re.findall(r"[A-Z]\b", text))
    return _labelled(text, options)


def _letter_and_its_text(text: str, options: Mapping[str, str]) -> Choice | None:
    """Return a letter followed by the text of its own option, with any separator: "B Mass", "B.Mass"."""
    rest = text.lstrip("(（")
    letter, rest = rest[:1].upper(), rest[1:].lstrip(" ).:-–—）．：、")
    same = letter in options and bool(fold(rest)) and fold(rest) == fold(options[letter])
    return Choice(letter, rest) if same else None


def _labelled(text: str, options: Mapping[str, str]) -> Choice | None:
    """Return a letter, a separator and other words. A second letter or another option's text makes it ambiguous."""
    label = _LABELLED.fullmatch(text)
    if label is None:
        return None
    letter, rest = label[1].upper(), label[2]
    if letter not in options:
        return _unknown(letter, options)
    others = {name: option for name, option in options.items() if name != letter}
    other = letter_of_text(rest, others)
    if other is not None:
        return Choice(problem=OTHER_TEXT.format(letter=letter, other=other))
    also = [name for name in (*_ALSO.findall(rest), *_SECOND.findall(rest)) if name in others]
    also += [name for name, option in others.items() if re.search(_named_with_text(name, option), rest)]
    return _several([letter, *also]) if also else Choice(letter, rest)


def _named_with_text(letter: str, option: str) -> str:
    return rf"(?<!\w){letter}\s*[.):–—-]+\s*{re.escape(option)}"


def _in_sentence(text: str, options: Mapping[str, str]) -> Choice | None:
    """Return the letter of sentences like "… The answer is B." if all of them name the same letter."""
    found = list(_NAMED.finditer(text))
    named = dict.fromkeys((one[1] or one[2]).upper() for one in found)
    following = (_ALSO.match(text, one.end()) for one in found)  # "I choose B, C"
    named |= dict.fromkeys(one[1] for one in following if one and one[1] in options)
    if not named:
        return None
    if len(named) > 1:
        return _several(named)
    letter = next(iter(named))
    return Choice(letter) if letter in options else _unknown(letter, options)


def _several(letters: Iterable[str]) -> Choice:
    return Choice(problem=SEVERAL_OPTIONS.format(letters=", ".join(dict.fromkeys(letters))), ambiguous=True)


def _unknown(letter: str, options: Mapping[str, str]) -> Choice:
    return Choice(problem=UNKNOWN_OPTION.format(letter=letter, options=", ".join(options)))
