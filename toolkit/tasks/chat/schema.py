"""Rows of conversations to samples: messages with roles, and images at their placeholders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.data.cells import NO_QUESTION, cell, extra_fields, text_of
from toolkit.data.groups import read_group
from toolkit.data.json_stream import Row
from toolkit.data.literals import decoded
from toolkit.data.row_images import read_images
from toolkit.data.sample import Sample, Turn
from toolkit.data.task import RowOrigin
from toolkit.errors import Problem, RowProblem
from toolkit.identifiers import described
from toolkit.recipe import Recipe

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "image": ("images", "image", "image_name", "image_path", "ImagePath"),
}

ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
"""Role of a row -> role of the chat template. LLaVA's rows have ``human`` and ``gpt``, Gemma's ``model``."""

NO_MESSAGES = ("tasks.chat.messages_missing", "the row must have a list of messages, each with a role and a content")
ROLE_UNKNOWN = ("tasks.chat.role_unknown", "the role of a message must be system, user or assistant")
TURN_EMPTY = ("tasks.chat.turn_empty", "every message must have a text")
SYSTEM_LATE = ("tasks.chat.system_not_first", "only the first message may be a system prompt")
NOT_ALTERNATING = ("tasks.chat.roles_not_alternating", "user and assistant must take turns, and the user begins")
NO_LAST_ANSWER = ("tasks.chat.no_last_answer", "the conversation must end with a message of the assistant")
TWO_SYSTEM_PROMPTS = (
    "tasks.chat.two_system_prompts",
    "a row with a system prompt needs a recipe without prompt.system",
)
"""Codes and rules of conversations that cannot be used."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """Settings of the rows. ``has_system``: the recipe has a system prompt, so a conversation must not have its own."""

    has_system: bool = False


def read_settings(recipe: Recipe, split: str) -> ChatSettings:
    """Return the settings for the rows of any split."""
    return ChatSettings(recipe.prompt.system is not None)


def check_settings(recipe: Recipe) -> Iterator[Problem]:
    """Check that the recipe has no instruction, which would follow the last question only."""
    if recipe.prompt.instruction:
        rule = 'must not be set for the task "chat", whose conversations have their own instructions'
        remedy = "Use prompt.system, or write it into the messages."
        yield Problem("tasks.chat.instruction_set", rule, "prompt.instruction", recipe.prompt.instruction, remedy)


def read(name: str, row: Row, origin: RowOrigin) -> Sample:
    """Return the sample of one row.

    ``fields``: question (the last user turn), turns (all turns before the last answer), and the columns that the
    recipe names. ``reference``: answer, the last assistant turn. In a row of ``toolkit predict``, the field answer is a
    placeholder of that turn, and a row without messages is a conversation of one question.

    Raises:
        RowProblem: the conversation cannot be used, the group is missing, or an image path leaves the image root.
    """
    turns = _turns(row, origin, str(origin.file))
    if origin.settings is not None and origin.settings.has_system and turns[0].role == "system":
        raise RowProblem(
            *TWO_SYSTEM_PROMPTS, value=described(turns[0].text), remedy="Remove prompt.system, or the messages."
        )
    images = read_images(name, row, origin)
    *before, last = turns
    fields: dict[str, Any] = {"question": before[-1].text, "turns": tuple(before)}
    fields |= {column: text for column, text in extra_fields(row, origin) if column not in fields}
    group = read_group(row, origin, images, "\n".join(turn.text for turn in turns))
    return Sample(name, "chat", group, images, fields, {"answer": last.text})


def _turns(row: Row, origin: RowOrigin, place: str) -> list[Turn]:
    messages = decoded(cell(row, origin, "messages"))
    if messages is None and "messages" not in origin.column:
        return _one_question(row, origin, place)
    if not isinstance(messages, list) or not messages:
        raise RowProblem(
            *NO_MESSAGES, place=place, value=described(messages), remedy="Name it in data.columns.messages."
        )
    turns = [_turn(message, f"{place}, message {number}") for number, message in enumerate(messages, 1)]
    if placeholder := text_of(cell(row, origin, "answer")):
        before = turns[:-1] if turns[-1].role == "assistant" else turns
        turns = [*before, Turn("assistant", placeholder)]
    _check_order([turn.role for turn in turns], place)
    return turns


def _one_question(row: Row, origin: RowOrigin, place: str) -> list[Turn]:
    question, answer = (text_of(cell(row, origin, field)) for field in ("question", "answer"))
    if not question or not answer:
        raise RowProblem(*NO_QUESTION, place=place)
    return [Turn("user", question), Turn("assistant", answer)]


def _turn(message: Any, place: str) -> Turn:
    """Return a message as a turn: ``role`` and ``content``, or ``from`` and ``value`` as in LLaVA."""
    if not isinstance(message, Mapping):
        raise RowProblem(*NO_MESSAGES, place=place, value=described(message))
    role, content = (message.get(name, message.get(other)) for name, other in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or role not in ROLES:
        remedy = f"Choose one of: {', '.join(ROLES)}."
        raise RowProblem(*ROLE_UNKNOWN, place=place, value=role, remedy=remedy)
    if not isinstance(content, str):
        raise RowProblem(*TURN_EMPTY, place=place, value=described(content), remedy="Write the content as a text.")
    if not (text := text_of(content)):
        raise RowProblem(
            *TURN_EMPTY, place=place, value=described(content), remedy="Remove the message, or add its text."
        )
    return Turn(ROLES[role], text)


def _check_order(roles: Sequence[str], place: str) -> None:
    shown = " ".join(roles[:12])
    others = roles[1:] if roles[0] == "system" else roles
    if "system" in others:
        raise RowProblem(*SYSTEM_LATE, place=place, value=shown, remedy="Join the system messages at the beginning.")
    if any(role != ("user", "assistant")[number % 2] for number, role in enumerate(others)):
        remedy = "Join messages of one role that follow each other."
        raise RowProblem(*NOT_ALTERNATING, place=place, value=shown, remedy=remedy)
    if not others or others[-1] != "assistant":
        remedy = "Remove the last question, or add its answer."
        raise RowProblem(*NO_LAST_ANSWER, place=place, value=shown, remedy=remedy)
