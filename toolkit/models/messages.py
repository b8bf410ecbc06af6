"""Turns of a conversation as messages of a chat template."""

from collections.abc import Sequence
from typing import Any

from toolkit.data.placeholders import PLACEHOLDER, split_at_images
from toolkit.data.sample import Turn

Message = dict[str, Any]

SENTINEL = "SENTINEL"
"""Text of a turn that is searched for in what a chat template renders."""


def conversation(question: str, images: int, system: str | None = None) -> list[Message]:
    """Return a user turn with ``images`` image placeholders and the question, after an optional system turn."""
    return messages_of([*([Turn("system", system)] if system else []), Turn("user", question)], images)


def messages_of(turns: Sequence[Turn], images: int) -> list[Message]:
    """Return the turns as messages, with an image at each placeholder of a user turn.

    Without placeholders, the images are the first parts of the first user turn.
    """
    messages: list[Message] = []
    placed = any(PLACEHOLDER.search(turn.text) for turn in turns if turn.role == "user")
    waiting = 0 if placed else images
    for turn in turns:
        if turn.role == "user" and placed:
            parts = list(split_at_images(turn.text))
            content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        else:
            content = [{"type": "text", "text": turn.text}]
        if turn.role == "user":
            content, waiting = [*({"type": "image"} for _ in range(waiting)), *content], 0
        messages.append({"role": turn.role, "content": content})
    return messages
