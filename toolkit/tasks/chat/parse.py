"""Parse the answer of a conversation in a completion."""

from toolkit.data.sample import Answer, Sample

NO_ANSWER = "there is no answer"
"""Problem of a completion. An evaluation counts answers by problem."""


def parse(completion: str, sample: Sample) -> Answer:
    """Return the completion without surrounding blanks in ``values["text"]``. An empty completion is a problem."""
    text = completion.strip()
    return Answer(completion, {"text": text} if text else {}, None if text else NO_ANSWER)
