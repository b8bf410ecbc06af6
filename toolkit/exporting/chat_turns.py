"""Derive the separators of a chat template from rendered conversations, and write them as an Ollama TEMPLATE."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from toolkit.models.chat_template import Message, conversation, render_prompt

SYSTEM, QUESTION, ANSWER = "SENTINELSYSTEM", "SENTINELQUESTION{}", "SENTINELANSWER{}"


@dataclass(frozen=True, slots=True)
class Turns:
    """The separators of a prompt, without the BOS token, which the tokenizer adds.

    Attributes:
        head: the start of a prompt without a system prompt.
        after_question: the text after each question.
        after_answer: the text after each answer.
        before_system: the text before the system prompt. None: the template accepts no system prompt.
        after_system: the text after the system prompt.
    """

    head: str
    after_question: str
    after_answer: str
    before_system: str | None = None
    after_system: str | None = None

    def render(self, texts: Sequence[str], system: str | None = None) -> str:
        """Return the prompt of alternating questions and answers. The first and last text are questions."""
        has_system = system and self.before_system is not None
        start = f"{self.before_system}{system}{self.after_system}" if has_system else self.head
        return start + "".join(
            text + (self.after_answer if i % 2 else self.after_question) for i, text in enumerate(texts)
        )


def read_turns(processor: Any) -> Turns | None:
    """Return the separators of the processor's chat template, or None if it cannot be described by separators.

    The result is compared with the template's rendering of a longer conversation.
    """
    texts = [QUESTION.format(1), ANSWER.format(1), QUESTION.format(2), ANSWER.format(2), QUESTION.format(3)]
    try:
        one, whole = _render(processor, texts[:1]), _render(processor, texts)
    except TemplateError:
        return None
    head, _, after_question = one.partition(texts[0])
    after_answer = whole.partition(texts[1])[2].partition(texts[2])[0]
    turns = Turns(head, after_question, after_answer, *_read_system(processor))
    systems = [None] if turns.before_system is None else [None, SYSTEM]
    same = all(turns.render(texts, system) == _render(processor, texts, system) for system in systems)
    return turns if same else None


def ollama_template(turns: Turns) -> str:
    """Return the Ollama TEMPLATE (Go's text/template over ``.System`` and ``.Messages``) that is equal to ``turns``.

    Every separator is a quoted string, so that its newlines and spaces do not depend on the template's layout.
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
            f"{{{{- if $first }}}}{start}{{{{ else }}}}{_piece(turns.after_answer)}{{{{ end }}}}",
            f"{{{{- $first = false }}}}{{{{ .Content }}}}{_piece(turns.after_question)}",
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
    except TemplateError:  # some templates reject a system prompt
        return ()
    before, found, rest = text.partition(SYSTEM)
    return (before, rest.partition(QUESTION.format(1))[0]) if found else ()


def _piece(text: str) -> str:
    # A JSON string is a valid Go string if characters beyond ASCII are not escaped.
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
