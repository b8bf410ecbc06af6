"""Parse the answer to an open or closed question in a completion."""

import re

from toolkit.data.sample import Answer, Sample
from toolkit.tasks.vqa.schema import is_yes_or_no

BOTH = "both yes and no are named"
NO_ANSWER = "there is no answer"
SEVERAL_SOLUTIONS = "there is more than one solution"
TAG_UNPAIRED = "{tag} has no counterpart (was the completion cut off?)"
"""Problems of a completion. An evaluation counts answers by problem."""

_FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_REASONING = re.compile(r"<start_working_out>.*?<end_working_out>", re.DOTALL | re.IGNORECASE)
_SOLUTION = re.compile(r"<solution>(.*?)</solution>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?solution>|<(?:start|end)_working_out>", re.IGNORECASE)
# "Answer: yes", "The final answer is: yes", at the beginning of a line.
_PREFIX = re.compile(
    r"(?:^|\n)[ \t]*(?:the\s+)?(?:(?:final|correct)\s+)?answer(?:\s+is)?[ \t]*[:=][ \t]*", re.IGNORECASE
)
# "The answer is yes", without a colon.
_IS = re.compile(r"the\s+(?:(?:final|correct)\s+)?answer\s+is\s+", re.IGNORECASE)
# "non-contrast" and "no-one" have no "no".
_YES_NO = re.compile(r"(?<![\w'-])(yes|no)(?![\w'-])", re.IGNORECASE)
_YES_AND_NO = re.compile(r"\b(?:yes\s*(?:and|or|/|and/or)\s*no|no\s*(?:and|or|/|and/or)\s*yes)\b", re.IGNORECASE)
# "No. 5 rib" is a number, not a "no".
_NUMBERED = re.compile(r"\bno\.\s*\d", re.IGNORECASE)


def parse(completion: str, sample: Sample) -> Answer:
    """Return the answer in ``values["text"]``, without code fences, tags, ``Answer:``, outer quotes and full stop.

    For a closed question it is ``yes`` or ``no`` if the completion begins with one or has only one of the two. A
    completion with both, and neither first, is a problem. "Left or right?" is closed too: if the reference is neither
    yes nor no, the text is kept.
    """
    text, problem = _strip(completion)
    if problem is None and _expects_yes_or_no(sample):
        text, problem = _yes_or_no(text)
    return Answer(completion, {} if problem else {"text": text}, problem)


def _strip(completion: str) -> tuple[str, str | None]:
    text = _REASONING.sub("\n", completion)
    solutions = _SOLUTION.findall(text)
    if len(solutions) > 1:
        return "", SEVERAL_SOLUTIONS
    text = solutions[0] if solutions else text
    if tag := _TAG.search(text):
        return "", TAG_UNPAIRED.format(tag=tag[0])
    if fenced := _FENCE.search(text):
        text = fenced[1]
    text = _PREFIX.split(text)[-1].strip()
    text = _IS.sub("", text, count=1) if _IS.match(text) else text
    text = text.replace("**", "").strip("*_`\"' \t\n").removesuffix(".").strip()
    return text, None if text else NO_ANSWER


def _expects_yes_or_no(sample: Sample) -> bool:
    return sample.fields.get("answer_type") == "closed" and is_yes_or_no(sample.reference.get("answer", "yes"))


def _yes_or_no(text: str) -> tuple[str, str | None]:
    if _YES_AND_NO.search(text):
        return "", BOTH
    found = _YES_NO.findall(_NUMBERED.sub(" ", text))
    words = {word.lower() for word in found}
    starts = _YES_NO.match(text)
    if starts and not _NUMBERED.match(text):
        return starts[1].lower(), None
    if len(words) > 1:
        return "", BOTH
    return (words.pop() if words else text), None
