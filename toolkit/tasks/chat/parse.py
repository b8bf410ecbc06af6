"""Parse the answer of a conversation in a completion."""

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.reasoning import without_reasoning

NO_ANSWER = "there is no answer"
"""Problem of a completion. An evaluation counts answers by problem."""


def parse(completion: str, sample: Sample) -> Answer:
    """Return the completion without reasoning and surrounding blanks in ``values["text"]``. Empty is a problem."""
    text, problem = without_reasoning(completion)
    text = text.strip()
    return Answer(completion, {"text": text} if text else {}, problem or (None if text else NO_ANSWER))
