"""Parse the class, or the lines of an answer with several labels. Unparsed completions are reported, never guessed."""

import re
from collections.abc import Mapping, Sequence

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.reasoning import without_reasoning
from toolkit.tasks.classify.prompt import target
from toolkit.tasks.classify.row_labels import fold

CLASSES_MISSING = "classes are missing"
CONTRADICTION = "a class is both yes and no"
EMPTY = "the completion is empty"
LINE_MALFORMED = "a line is not a class, a colon, and yes or no"
NEGATED = "a class is named with a negation"
SEVERAL = "several classes are named"
UNKNOWN = "no class is named"
"""Problems of a completion. An evaluation counts answers by problem."""

_FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
# "Answer: mucus", "The answer is mucus", "Class: mucus", at the beginning of the completion.
_PREFIX = re.compile(
    r"\A\s*(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|class|label)(?:\s+is\b\s*:?|\s*[:=])\s*", re.IGNORECASE
)
_NEGATION = re.compile(r"\b(?:no|not|none|without|never|excludes?|excluding|rather than|unlike|neither|nor|isn t)\b")
# The class before it is no part of the pattern, because the time of a match would grow with the square of the length.
_VALUE = re.compile(r"(?::|=|-|–)\s*(yes|no)\s*\.?\Z", re.IGNORECASE)


def parse(completion: str, sample: Sample) -> Answer:
    """Return the classes that a completion names in ``values["labels"]``.

    With one label per image, exactly one class must be named, in any case and with any punctuation, without a negation.
    With several, every line must be a class with yes or no, and every class must have a line. ``values["answers"]``
    then has class -> whether it is present, and ``values["label"]`` is the class if there is only one label.
    """
    text, problem = without_reasoning(completion)
    fenced = _FENCE.search(text)
    text = (fenced[1] if fenced else text).replace("**", "").strip("*_`\"' \t\n")
    if not text:
        return Answer(completion, {}, problem or EMPTY)
    return _parse_lines(completion, text, sample) if sample.fields["multi"] else _parse_one(completion, text, sample)


def reads_back(name: str, multi: bool) -> bool:
    """Return whether the answer that SFT learns for a class is parsed as this class.

    >>> reads_back("Class: A", multi=False), reads_back("upper\\nlobe", multi=True), reads_back("<think>", multi=False)
    (True, False, False)
    """
    fields = {"labels": (name,), "multi": multi, "lenient": False}
    sample = Sample("", "classify", "", (), fields, {"labels": [name], "unknown": []})
    return parse(target(sample), sample).values.get("labels") == [name]


def _parse_one(completion: str, text: str, sample: Sample) -> Answer:
    labels = sample.fields["labels"]
    is_name = fold(text) in map(fold, labels)  # a class can be named "Label 1" or "Class: A"
    label, problem = find_label(text if is_name else _PREFIX.sub("", text), labels)
    return Answer(completion, {} if label is None else {"label": label, "labels": [label]}, problem)


def find_label(text: str, labels: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the class that a text names, or why there is none.

    >>> find_label("It is Mucus.", ["mucus", "smooth muscle"]), find_label("mucus or debris", ["mucus", "debris"])
    (('mucus', None), (None, 'several classes are named'))
    """
    known = {fold(name): name for name in labels}
    words = fold(text)
    if words in known:
        return known[words], None
    rest, found = f" {words} ", []
    for name in sorted(known, key=len, reverse=True):  # "pleural effusion" before "effusion"
        if f" {name} " in rest:
            found.append(known[name])
            rest = rest.replace(f" {name} ", " | ")
    if len(found) != 1:
        return None, SEVERAL if found else UNKNOWN
    return (None, NEGATED) if _NEGATION.search(rest) else (found[0], None)


def _parse_lines(completion: str, text: str, sample: Sample) -> Answer:
    answers, problem = find_answers(text, sample.fields["labels"])
    if problem is None and len(answers) < len(sample.fields["labels"]) and not sample.fields["lenient"]:
        problem = CLASSES_MISSING
    if problem is not None:
        return Answer(completion, {}, problem)
    return Answer(completion, {"answers": answers, "labels": [name for name, yes in answers.items() if yes]})


def find_answers(text: str, labels: Sequence[str]) -> tuple[Mapping[str, bool], str | None]:
    """Return class -> whether it is present, from lines of a class with yes or no, or why they cannot be read.

    >>> find_answers("Edema: no\\neffusion: Yes", ["edema", "effusion"])
    ({'edema': False, 'effusion': True}, None)
    """
    known, answers = {fold(name): name for name in labels}, dict[str, bool]()
    for line in filter(str.strip, text.splitlines()):
        found = _VALUE.search(line.strip())
        name = known.get(fold(line.strip()[: found.start()].lstrip("-*• \t"))) if found else None
        if found is None or name is None:
            return {}, LINE_MALFORMED
        if answers.setdefault(name, found[1].lower() == "yes") != (found[1].lower() == "yes"):
            return {}, CONTRADICTION
    return answers, None
