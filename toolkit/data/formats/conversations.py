"""Conversations with images: LLaVA and ShareGPT, OpenAI and TRL messages, TRL prompts, ms-swift and LLaMA-Factory.

Every layout becomes the same row: ``images`` (paths), ``messages`` (role and text, with ``<image>`` where an image is),
and, for exactly one question and at most one answer, ``question`` and ``answer``. The other columns are kept.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from toolkit.data.cells import fold
from toolkit.data.embedded_images import is_kept
from toolkit.data.formats.base import Format, Look, Reading
from toolkit.data.formats.base64_images import image_in_text
from toolkit.data.image_columns import looks_like_image
from toolkit.data.json_stream import Record
from toolkit.data.literals import decoded
from toolkit.data.placeholders import check_placeholders
from toolkit.errors import RowProblem
from toolkit.identifiers import described

PLACEHOLDER = "<image>"

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "bard", "bing", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Name of a speaker in lower case -> role."""

IMAGE_COLUMNS = ("images", "image", "image_path", "image_paths")
_OTHER_MEDIA = ("videos", "video", "audios", "audio")
_IMAGE_TYPES = ("image", "image_url", "input_image", "image_path")
_TEXT_TYPES = ("text", "input_text", "output_text")
_TEXT_KEYS = ("text", "value", "content")
_IMAGE_KEYS = ("image", "image_url", "url", "path", "value", "data", "base64", "source", "file", "bytes")

_OPTIONAL = ("history", "input")
"""Columns of turns that a row need not have."""

_OF_OTHER_TASKS = frozenset({"taskid", "imageid", "grounding", "action", "question", "answer"})
"""Columns, without case and underscores, of GUI steps and questions, whose instruction and output are no turns."""

_CALLS = ("tool_calls", "function_call")
"""Keys of OpenAI's messages for calls, which have no text."""

_NUMBERED = re.compile(r"<image \d+>")
_EDGES = re.compile(r"^(\s*<image>)+|(<image>\s*)+$")

RawTurn = tuple[str, Any]
"""Speaker and content, as the source writes them."""


def turns_of_list(column: str, row: Mapping[str, Any]) -> list[RawTurn]:
    """Return the turns of a column with a list of turns, after those of the column ``system`` if there is one.

    This is ``conversations`` of LLaVA and ShareGPT, with ``from`` and ``value``, and ``messages`` of OpenAI, TRL,
    LLaMA-Factory and ms-swift, with ``role`` and ``content``.
    """
    system, turns = _system(row), _turns(row[column])
    if system and ROLES.get(turns[0][0].strip().lower()) == "system":
        rule, remedy = "a conversation must have one system message", "Remove the column or the turn."
        raise RowProblem("data.system_message_twice", rule, value=described(row["system"]), remedy=remedy)
    return [*system, *turns]


def turns_of_prompt(row: Mapping[str, Any]) -> list[RawTurn]:
    """Return the turns of TRL's ``prompt`` and ``completion``, each a text or a list of messages."""
    sides = (("user", _decoded(row["prompt"])), ("assistant", _decoded(row["completion"])))
    return [turn for role, side in sides for turn in (_turns(side) if isinstance(side, list) else [(role, side)])]


def turns_of_query(row: Mapping[str, Any]) -> list[RawTurn]:
    """Return the turns of ms-swift: ``query`` and ``response``, with earlier pairs in ``history``."""
    return [*_system(row), *_history(row), ("user", row["query"]), ("assistant", row["response"])]


def turns_of_instruction(row: Mapping[str, Any]) -> list[RawTurn]:
    """Return the turns of LLaMA-Factory: ``instruction`` and ``input`` on a new line, ``output``, and ``history``."""
    question = [row["instruction"], *([row["input"]] if row.get("input") else [])]
    if not all(isinstance(text, str) for text in question):
        rule = "instruction and input must be texts"
        raise RowProblem("data.conversation_malformed", rule, value=described(question), remedy="Correct the row.")
    text = "\n".join(filter(None, question))
    return [*_system(row), *_history(row), ("user", text), ("assistant", row["output"])]


def _history(row: Mapping[str, Any]) -> list[RawTurn]:
    turns: list[RawTurn] = []
    for pair in _decoded(row.get("history")) or []:
        if not isinstance(pair, list) or len(pair) != 2:
            rule = "history must be a list of pairs of question and answer"
            raise RowProblem("data.conversation_malformed", rule, value=described(pair), remedy="Correct the pair.")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    return turns


def _system(row: Mapping[str, Any]) -> list[RawTurn]:
    system = row.get("system")
    if system is None or system != system or system in ("", []):
        return []
    if not isinstance(system, str):
        rule, remedy = "the column system must be a text", "Write the system message as a text."
        raise RowProblem("data.system_message_not_text", rule, value=described(system), remedy=remedy)
    return [("system", system)] if system.strip() else []


def _turns(messages: Any) -> list[RawTurn]:
    found = _decoded(messages)
    turns = [_turn(one) for one in found] if isinstance(found, list) else []
    if not turns:
        rule = "a conversation must be a list of turns, each with a role and a text"
        raise RowProblem(
            "data.conversation_malformed", rule, value=described(messages), remedy="Correct the conversation."
        )
    return turns


def _turn(message: Any) -> RawTurn:
    if isinstance(message, dict):
        if any(message.get(key) for key in _CALLS):
            rule = "a turn must not have calls of tools, because SFT learns only its text"
            remedy = "Remove the row."
            raise RowProblem("data.turn_not_text_only", rule, value=described(message), remedy=remedy)
        for speaker, content in (("role", "content"), ("from", "value"), ("from", "content"), ("role", "value")):
            if isinstance(message.get(speaker), str) and message.get(content) is not None:
                _check_trained(message, message[speaker])
                return message[speaker], message[content]
    rule = "a turn must have role and content, or from and value"
    raise RowProblem("data.conversation_malformed", rule, value=described(message), remedy="Correct the turn.")


def _check_trained(message: Mapping[str, Any], speaker: str) -> None:
    """Check that a turn of the assistant is for training, as all of them are trained.

    ``weight`` 0 of OpenAI and ``loss`` false of ms-swift exclude a turn, which can be wrong on purpose.
    """
    for key in ("weight", "loss"):
        value = message.get(key)
        if value is not None and not value and ROLES.get(speaker.strip().lower()) == "assistant":
            rule = "a turn of the assistant must not be excluded from training"
            remedy = "Remove the row, or write its last answer as the only turn of the assistant."
            raise RowProblem("data.turn_not_trained", rule, value={key: value}, remedy=remedy)


def _decoded(value: Any) -> Any:
    """Return a list from its text in a CSV."""
    found = decoded(value)
    return found if isinstance(found, list) else value


class _Converter:
    """Turns rows of one layout into canonical rows. Images as bytes or base64 are kept in the store."""

    def __init__(self, reading: Reading, turns: Callable[[Mapping[str, Any]], list[RawTurn]], columns: tuple[str, ...]):
        self._reading, self._images, self._notes = reading, reading.images, reading.notes
        self._turns, self._columns = turns, columns
        self._embedded: bool | None = None

    def row(self, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the canonical row.

        Raises:
            RowProblem: The conversation cannot be used.
        """
        if other := next((one for one in _OTHER_MEDIA if row.get(one)), None):
            rule, remedy = "a conversation must not have video or audio", "Remove the row."
            raise RowProblem("data.media_not_supported", rule, value=described({other: row[other]}), remedy=remedy)
        self._check_preference(row)
        given = self._given(row)
        inline: list[str] = []
        messages = [self._message(speaker, content, inline) for speaker, content in self._turns(row)]
        kept = {key: value for key, value in row.items() if key not in self._columns or isinstance(value, str)}
        own = {"id": name, "messages": messages}
        self._compare(kept, messages)
        if not given and not inline and any(map(looks_like_image, kept.values())):
            # The task reads the images from columns such as image_1, from those of the recipe, or stops.
            return {**kept, **own, **_question_and_answer(messages, placed=True)}
        images = self._ordered(messages, given, inline)
        paths = dict.fromkeys((one for one in IMAGE_COLUMNS if one in row), images)
        return {**kept, **paths, **own, "images": images, **_question_and_answer(messages)}

    def _check_preference(self, row: Mapping[str, Any]) -> None:
        """Check that the answer is not marked as a bad one, as in data for KTO: ``label`` of TRL, ``kto_tag``.

        In other layouts, ``label`` can also be a class, so that it is only reported.
        """
        key = next((key for key in ("kto_tag", "label") if row.get(key) is False), None)
        if key == "kto_tag" or (key and "completion" in self._columns):
            rule, remedy = "the answer must not be marked as a bad one (KTO), because SFT learns it", "Remove the row."
            raise RowProblem("data.answer_is_rejected", rule, value={key: False}, remedy=remedy)
        if key:
            rule = "label is false, which marks a bad answer in data for KTO. Remove such rows, because SFT learns them"
            self._notes.add(rule, self._reading.at, "data.label_is_false")

    def _compare(self, kept: Mapping[str, Any], messages: list[dict[str, str]]) -> None:
        """Report columns with another question or answer than those of the conversation."""
        for column, text in _question_and_answer(messages).items():
            other = kept.get(column)
            if isinstance(other, str) and other.strip() and _EDGES.sub("", other.strip()).strip() != text:
                rule = f"the {column} is that of the conversation, not the other one of the column {column}"
                self._notes.add(
                    rule, self._reading.at, f"data.conversation_has_other_{column}", described([text, other])
                )

    def _given(self, row: Mapping[str, Any]) -> list[str]:
        """Return the images of the columns, which must agree if several have images."""
        found = {one: _as_list(_decoded(row[one])) for one in IMAGE_COLUMNS if row.get(one)}
        found = {column: self._paths(values) for column, values in found.items() if values}
        if len({tuple(images) for images in found.values()}) > 1:
            rule, remedy = "the images must be in one column", "Remove the other columns of images."
            raise RowProblem("data.images_in_two_columns", rule, value=described(found), remedy=remedy)
        return next(iter(found.values()), [])

    def _message(self, speaker: str, content: Any, inline: list[str]) -> dict[str, str]:
        role = ROLES.get(speaker.strip().lower())
        if role is None:
            rule = f"the role of a turn must be one of {', '.join(ROLES)}"
            raise RowProblem("data.role_unknown", rule, value=speaker, remedy="Rename the role, or remove the row.")
        text = content if isinstance(content, str) else self._parts(content, inline)
        check_placeholders(text)
        if role != "user" and PLACEHOLDER in text:
            rule, remedy = "images must be in turns of the user", "Move the image to a turn of the user."
            raise RowProblem("data.image_not_in_user_turn", rule, value=described(text), remedy=remedy)
        return {"role": role, "content": text}

    def _parts(self, content: Any, inline: list[str]) -> str:
        """Return the text of content in parts, with a placeholder for each image."""
        texts = []
        for part in content if isinstance(content, list) else [content]:
            kind = part.get("type") if isinstance(part, dict) else None
            text = next((part[key] for key in _TEXT_KEYS if isinstance(part.get(key), str)), None) if kind else part
            if kind in _IMAGE_TYPES:
                inline += self._paths([one for one in [_inline_image(part)] if one is not None])
                texts.append(PLACEHOLDER)
            elif kind in (None, *_TEXT_TYPES) and isinstance(text, str):
                texts.append(text)
            else:
                rule = "content must be a text, or parts of the types text, image and image_url"
                raise RowProblem(
                    "data.content_not_readable", rule, value=described(part), remedy="Correct the content."
                )
        return _joined(texts)

    def _ordered(self, messages: list[dict[str, str]], given: list[str], inline: list[str]) -> list[str]:
        """Return the images in the order of their placeholders. Without placeholders, the images come first."""
        if given and inline:
            rule = "images must be either in a column or in the parts of the messages"
            remedy = "Remove one of them."
            raise RowProblem("data.images_in_two_places", rule, value=described([*given, *inline]), remedy=remedy)
        images = given or inline
        if any(_NUMBERED.search(message["content"]) for message in messages):
            return images  # their numbers say where they are, see data/placeholders.py
        count = sum(message["content"].count(PLACEHOLDER) for message in messages)
        user = next((message for message in messages if message["role"] == "user"), None)
        if images and not count and user is not None:
            user["content"] = f"{PLACEHOLDER}\n" * len(images) + user["content"]
            rule = f"the images come before the first question, because the conversation has no {PLACEHOLDER}"
            self._notes.add(rule, self._reading.at, "data.images_come_first")
        elif count != len(images):
            rule = f"a conversation must have as many images as {PLACEHOLDER} in its texts"
            value = f"{count} {PLACEHOLDER} and {len(images)} images"
            remedy = "Correct the texts or the images."
            raise RowProblem("data.placeholders_do_not_match", rule, value=value, remedy=remedy)
        return images

    def _paths(self, values: list[Any]) -> list[str]:
        return [self._path(value) for value in values]

    def _path(self, value: Any) -> str:
        image = _unwrapped(value)
        content = image_in_text(image) if isinstance(image, str) else None
        path = self._images.keep(content) if content is not None else image
        if not isinstance(path, str) or not path.strip():
            rule = "an image must be a path, a data URL, base64 or bytes"
            raise RowProblem("data.image_not_readable", rule, value=described(value), remedy="Correct the image.")
        if content is None and re.match(r"https?://", path, re.IGNORECASE):
            rule, remedy = "an image must be a file, not an address of the web", "Download it, and write its path."
            raise RowProblem("data.image_is_url", rule, value=described(path), remedy=remedy)
        self._check_one_kind(content is not None or is_kept(path), value)
        return path.removeprefix("file://")

    def _check_one_kind(self, is_embedded: bool, value: Any) -> None:
        """Check that the images of a source are all files, or all embedded. Both start from one folder."""
        if self._embedded is None:
            self._embedded = is_embedded
        if self._embedded != is_embedded:
            rule = "the images of a source must be all files, or all stored in the rows"
            raise RowProblem(
                "data.images_of_two_kinds", rule, value=described(value), remedy="Store all of them in one way."
            )


def _as_list(value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if one is not None and one == one]  # pandas writes NaN for a missing value


def _inline_image(part: Mapping[str, Any]) -> Any:
    """Return the image of a part, or None if the part is only a placeholder for an image of the column."""
    return next((part[key] for key in _IMAGE_KEYS if part.get(key)), None)


def _unwrapped(value: Any) -> Any:
    """Return path, base64 or data URL of an image in an object, such as ``{"url": ...}`` or ``{"data": ...}``."""
    for _ in range(3):
        if not isinstance(value, dict):
            break
        value = _inline_image(value)
    return value


def _joined(texts: list[str]) -> str:
    """Return parts as one text: a line break between two texts, none beside an image."""
    result = ""
    for text in texts:
        is_apart = not result or result[-1].isspace() or text[:1].isspace()
        needs_break = not is_apart and PLACEHOLDER not in (text, result[-len(PLACEHOLDER) :])
        result += f"\n{text}" if needs_break else text
    return result


def _question_and_answer(messages: list[dict[str, str]], *, placed: bool = False) -> dict[str, str]:
    """Return question and answer of exactly one turn each, only the question if it has no answer, or nothing.

    They are left out if they would lose something: a system message, or an image between two words. With ``placed``,
    the question keeps its placeholders, which are compared to the images later.
    """
    if [message["role"] for message in messages] not in (["user"], ["user", "assistant"]):
        return {}
    content = messages[0]["content"].strip()
    question = content if placed else _EDGES.sub("", content).strip()
    if PLACEHOLDER in question and not placed:
        return {}
    if len(messages) == 1:
        return {"question": question}
    return {"question": question, "answer": messages[1]["content"].strip()}


def _records(
    turns: Callable[[Mapping[str, Any]], list[RawTurn]], columns: tuple[str, ...], reading: Reading
) -> Iterator[Record]:
    converter = _Converter(reading, turns, columns)
    required = [column for column in columns if column not in _OPTIONAL]
    for name, row, text in reading.rows():
        if reading.has_repeated_key(reading.at, row, text):
            continue
        if not isinstance(row, dict) or any(row.get(column) is None for column in required):
            rule = f"the row must have {' and '.join(required)}"
            reading.skipped.add(rule, reading.at, "data.conversation_missing")
            continue
        try:
            yield name, converter.row(name, row), None
        except RowProblem as problem:
            reading.skip(problem, reading.at)


def _has_turns(look: Look, column: str, *keys: tuple[str, str]) -> bool:
    """Return whether the first row with a value in the column has a list of objects with one of the pairs of keys."""
    value = next((row[column] for row in look.objects if row.get(column) is not None), None)
    found = _decoded(value)
    first = found[0] if isinstance(found, list) and found else None
    return isinstance(first, dict) and any(pair <= first.keys() for pair in map(set, keys))


def _has_columns(look: Look, *columns: str) -> bool:
    return bool(look.objects) and all(set(columns) <= row.keys() for row in look.objects)


def _has_instructions(look: Look) -> bool:
    folded = {fold(name) for row in look.objects for name in row}
    return _has_columns(look, "instruction", "output") and folded.isdisjoint(_OF_OTHER_TASKS)


def _format(
    name: str,
    description: str,
    matches: Callable[[Look], bool],
    turns: Callable[[Mapping[str, Any]], list[RawTurn]],
    columns: tuple[str, ...],
) -> Format:
    return Format(name, description, matches, partial(_records, turns, columns))


LLAVA = _format(
    "LLaVA conversations",
    "rows with conversations, a list of turns with from (human, gpt) and value, and image or images",
    lambda look: _has_turns(look, "conversations", ("from", "value"), ("role", "content")),
    partial(turns_of_list, "conversations"),
    ("conversations",),
)
LLAVA_MED = _format(
    "LLaVA-Med conversatons",
    "rows with conversatons, as LLaVA-Med spells it, and image or images",
    lambda look: _has_turns(look, "conversatons", ("from", "value"), ("role", "content")),
    partial(turns_of_list, "conversatons"),
    ("conversatons",),
)
MESSAGES = _format(
    "messages",
    "rows with messages, a list of turns with role and content, and images in a column or in the parts of the content",
    lambda look: _has_turns(look, "messages", ("role", "content"), ("from", "value")),
    partial(turns_of_list, "messages"),
    ("messages",),
)
PROMPT_COMPLETION = _format(
    "TRL prompt and completion",
    "rows with prompt and completion, each a text or a list of messages, and image or images",
    lambda look: _has_columns(look, "prompt", "completion"),
    turns_of_prompt,
    ("prompt", "completion"),
)
QUERY_RESPONSE = _format(
    "ms-swift query and response",
    "rows with query and response, optionally history (pairs of query and response), and images",
    lambda look: _has_columns(look, "query", "response"),
    turns_of_query,
    ("query", "response", "history"),
)
INSTRUCTION_OUTPUT = _format(
    "LLaMA-Factory instruction and output",
    "rows with instruction, output, optionally input and history (pairs of question and answer), and images",
    _has_instructions,
    turns_of_instruction,
    ("instruction", "input", "output", "history"),
)

CONVERSATIONS = (LLAVA, LLAVA_MED, MESSAGES, PROMPT_COMPLETION, QUERY_RESPONSE, INSTRUCTION_OUTPUT)
