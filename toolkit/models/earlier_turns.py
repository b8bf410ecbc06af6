"""Assistant turns within a prompt, which SFT supervises too."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.data.sample import Turn
from toolkit.errors import DataError, ModelError
from toolkit.models.chat_template import TurnEnd, render_prompt
from toolkit.models.image_tokens import special_pattern
from toolkit.models.messages import SENTINEL, Message, messages_of


@dataclass(frozen=True, slots=True)
class EarlierTurn:
    """An assistant turn inside a rendered prompt.

    Attributes:
        end: number of end-of-turn tokens in the prompt before that of this turn.
        opening: the last special token before the turn. Empty: there is none.
        header: the text of the template between ``opening`` and an answer, when it is generated.
        shown: the text of the template between ``opening`` and this turn in the prompt. Most templates have the same.
        answer: the text of the turn.
    """

    end: int
    opening: str
    header: str
    shown: str
    answer: str


def earlier_turns(processor: Any, messages: Sequence[Message], end: TurnEnd, place: str = "") -> list[EarlierTurn]:
    """Return the assistant turns of a prompt, in order.

    Args:
        processor: The model's processor.
        messages: The prompt.
        end: The end of turn.
        place: The row, for an error.

    Raises:
        ModelError: The chat template does not end turns.
        DataError: The chat template changes the text of an assistant turn that is not the last one, for example by
            removing its reasoning.
    """
    answered = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answered:
        return []
    whole, special = render_prompt(processor, messages), re.compile(special_pattern(processor))
    if end.text not in whole:
        raise ModelError(
            "model.chat_template_without_turn_end",
            "the chat template must end every turn of a conversation with a special token",
            place=place,
            value=whole[-80:],
            remedy="Set prompt.chat_template to a template that ends turns, or remove the earlier assistant turns.",
        )
    turns = []
    for number in answered:
        answer = str(messages[number]["content"][0]["text"])
        before = render_prompt(processor, messages[:number])
        # A generation prompt may open or skip a reasoning block, which earlier turns do not have.
        common = next(
            (place for place, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), len(before)
        )
        found = list(special.finditer(before[:common]))
        opening, start = (found[-1][0], found[-1].end()) if found else ("", 0)
        text = whole[start:].partition(end.text)[0].rstrip()
        if not text.endswith(answer.strip()):
            raise _changed_turn(place, answer, text)
        shown = text.removesuffix(answer.strip())
        turns.append(EarlierTurn(whole[:start].count(end.text), opening, before[start:], shown, answer))
    return turns


def turn_headers(processor: Any, end: TurnEnd) -> tuple[str, str]:
    """Return the text of the template before an earlier assistant turn, and before an answer that is generated."""
    turns = (Turn("user", "question"), Turn("assistant", SENTINEL), Turn("user", "question"))
    turn = earlier_turns(processor, messages_of(turns, 0), end)[0]
    return turn.shown, turn.header


def _changed_turn(place: str, answer: str, shown: str) -> DataError:
    return DataError(
        "data.turn_changed_by_template",
        "the chat template must keep the text of the assistant turns of a conversation",
        place=place,
        value=f"a turn of {len(answer):,} characters became {len(shown):,}",
        remedy="Remove reasoning from earlier assistant turns, or use a model whose chat template keeps it.",
    )
