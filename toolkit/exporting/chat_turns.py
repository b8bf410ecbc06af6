"""What a chat template writes between question and answer, read off what it renders; the same as Ollama's TEMPLATE."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from toolkit.models.chat_template import Message, conversation, render_prompt

SYSTEM, QUESTION, ANSWER = "SENTINELSYSTEM", "SENTINELQUESTION{}", "SENTINELANSWER{}"


@dataclass(frozen=True, slots=True)
class Turns:
    """The pieces of a prompt, without the BOS, which whoever tokenizes puts in front.

    A prompt is ``head`` (with a system text ``before_system``, that text, ``after_system``), then questions and answers
    in turn with ``ask`` after each question and ``again`` after each answer.
    """

    head: str
    ask: str
    again: str
    before_system: str | None = None
    after_system: str | None = None

    def render(self, texts: Sequence[str], system: str | None = None) -> str:
        """The prompt of questions and answers in turn, beginning and ending with a question."""
        has_system = system and self.before_system is not None
        start = f"{self.before_system}{system}{self.after_system}" if has_system else self.head
        return start + "".join(text + (self.again if i % 2 else self.ask) for i, text in enumerate(texts))


def read_turns(processor: Any) -> Turns | None:
    """The pieces of the processor's own chat template; None where it does not work by such pieces.

    What they put together is compared with what the template renders for a longer conversation.
    """
    texts = [QUESTION.format(1), ANSWER.format(1), QUESTION.format(2), ANSWER.format(2), QUESTION.format(3)]
    try:
        one, whole = _render(processor, texts[:1]), _render(processor, texts)
    except TemplateError:
        return None
    head, _, ask = one.partition(texts[0])
    again = whole.partition(texts[1])[2].partition(texts[2])[0]
    turns = Turns(head, ask, again, *_read_system(processor))
    systems = [None] if turns.before_system is None else [None, SYSTEM]
    same = all(turns.render(texts, system) == _render(processor, texts, system) for system in systems)
    return turns if same else None


def ollama_template(turns: Turns) -> str:
    """Ollama's TEMPLATE (Go's text/template over ``.System`` and ``.Messages``) that renders what ``turns`` does.

    Every piece stands as a quoted string, so that no newline or space of it depends on the template's own layout.
    """
    start = _piece(turns.head)
    if turns.before_system is not None and turns.after_system is not None:
        system = f"{_piece(turns.before_system)}{{{{ $.System }}}}{_piece(turns.after_system)}"
        start = f"{{{{ if $.System }}}}{system}{{{{ else }}}}{start}{{{{ end }}}}"
    return "\n".join(
        (
            "{{- $first := true }}",
            "{{- range .Messages }}",
            '{{- if eq .Role "user" }}',
            f"{{{{- if $first }}}}{start}{{{{ else }}}}{_piece(turns.again)}{{{{ end }}}}",
            f"{{{{- $first = false }}}}{{{{ .Content }}}}{_piece(turns.ask)}",
            '{{- else if eq .Role "assistant" }}{{ .Content }}',
            "{{- end }}",
            "{{- end }}",
        )
    )


def _render(processor: Any, texts: Sequence[str], system: str | None = None) -> str:
    messages = conversation(texts[0], 0, system)
    for index, text in enumerate(texts[1:], start=1):
        messages += _answer(text) if index % 2 else conversation(text, 0)
    text = render_prompt(processor, messages)
    return text.removeprefix(processor.tokenizer.bos_token or "")


def _answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def _read_system(processor: Any) -> tuple[str, str] | tuple[()]:
    try:
        text = _render(processor, [QUESTION.format(1)], SYSTEM)
    except TemplateError:  # some templates refuse a system text
        return ()
    before, found, rest = text.partition(SYSTEM)
    return (before, rest.partition(QUESTION.format(1))[0]) if found else ()


def _piece(text: str) -> str:
    # JSON's strings are Go's, as long as nothing beyond ASCII is escaped.
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
