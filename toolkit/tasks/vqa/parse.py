"""Parse the answer to an open or closed question in a completion."""

import re

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.reasoning import without_reasoning
from toolkit.scoring.yes_no import find_yes_or_no

BOTH = "both yes and no are named"
NO_ANSWER = "there is no answer"
SEVERAL_SOLUTIONS = "there is more than one solution"
TAG_UNPAIRED = "{tag} has no counterpart (was the completion cut off?)"
"""Problems of a completion. An evaluation counts answers by problem."""

_SIGNS = ("*", "_", "`", '"', "'")
_FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
# One pattern for a block would search for the closing tag again from every opening one, in square time.
_START, _END, _OPEN, _CLOSE = (
    re.compile(tag, re.IGNORECASE) for tag in ("<start_working_out>", "<end_working_out>", "<solution>", "</solution>")
)
_MAX_SIGNS = 100
"""Maximum number of signs around an answer that are removed, one after the other."""
_TAG = re.compile(r"</?solution>|<(?:start|end)_working_out>", re.IGNORECASE)
# "Answer: yes", "The final answer is: yes", at the beginning of a line.
_PREFIX = re.compile(
    r"(?:^|\n)[ \t]*(?:the\s+)?(?:(?:final|correct)\s+)?answer(?:\s+is)?[ \t]*[:=][ \t]*", re.IGNORECASE
)
# "The answer is yes", without a colon.
_IS = re.compile(r"the\s+(?:(?:final|correct)\s+)?answer\s+is\s+", re.IGNORECASE)
_YES_AND_NO = re.compile(r"\b(?:yes\s*(?:and|or|/|and/or)\s*no|no\s*(?:and|or|/|and/or)\s*yes)\b", re.IGNORECASE)


def parse(completion: str, sample: Sample) -> Answer:
    """Return the answer, which depends on the completion alone, so that it is the same in prediction.

    ``values``: text, without code fences, tags, ``Answer:``, outer quotes and full stop, and yes_no if the text has a
    yes or no: ``yes``, ``no``, or ``both`` if it has both and begins with neither. A text that is only "yes and no" is
    a problem.
    """
    text, problem = _strip(completion)
    if problem is None and _YES_AND_NO.fullmatch(text):
        problem = BOTH
    if problem is not None:
        return Answer(completion, {}, problem)
    meaning = "both" if _YES_AND_NO.search(text) else find_yes_or_no(text)
    return Answer(completion, {"text": text} | ({"yes_no": meaning} if meaning else {}))


def _strip(completion: str) -> tuple[str, str | None]:
    text, problem = without_reasoning(completion)
    if problem is not None:
        return "", problem
    text = "\n".join(_split(text, _START, _END)[0])
    _, solutions = _split(text, _OPEN, _CLOSE)
    if len(solutions) > 1:
        return "", SEVERAL_SOLUTIONS
    text = solutions[0] if solutions else text
    if tag := _TAG.search(text):
        return "", TAG_UNPAIRED.format(tag=tag[0])
    if fenced := _FENCE.search(text):
        text = fenced[1]
    text = _PREFIX.split(text)[-1].strip()
    text = _IS.sub("", text, count=1) if _IS.match(text) else text
    text = _without_signs(text.replace("**", ""))
    return text, None if text else NO_ANSWER


def _split(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Return the texts outside and inside of the blocks between two tags."""
    outside, inside, end = list[str](), list[str](), 0
    while (first := opening.search(text, end)) and (last := closing.search(text, first.end())):
        outside.append(text[end : first.start()])
        inside.append(text[first.end() : last.start()])
        end = last.end()
    return [*outside, text[end:]], inside


def _without_signs(text: str) -> str:
    """Return a text without full stop, and without quotes and emphasis around it. The asterisk of T2* stays."""
    for _ in range(_MAX_SIGNS):
        plain = text.strip().removesuffix(".").rstrip()
        if plain[:1] in _SIGNS:
            plain = plain[1:].removesuffix(plain[0]) if len(plain) > 1 else ""
        if plain == text:
            break
        text = plain
    return text
