"""Reasoning blocks of completions, such as ``<think>...</think>``, whose content is never an answer."""

import re

NO_ANSWER = "there is no answer after the reasoning"
NOT_CLOSED = "the reasoning is not closed (was the completion cut off?)"
"""Problems of a completion. An evaluation counts answers by problem."""

TAGS = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reason", "reasoning")),
    ("[THINK]", "[/THINK]"),
    ("<unused94>", "<unused95>"),
    ("◁think▷", "◁/think▷"),
)
"""Opening and closing tag of each kind of block: Qwen and others, Magistral, MedGemma 1.5, Kimi."""

OPENING = re.compile("|".join(re.escape(opening) for opening, _ in TAGS), re.IGNORECASE)

_CLOSING = {opening.lower(): closing for opening, closing in TAGS}
_ANY_CLOSING = re.compile("|".join(re.escape(closing) for _, closing in TAGS), re.IGNORECASE)


def closing_tag(tag: str) -> str:
    """Return the tag that closes a block.

    >>> closing_tag("<think>"), closing_tag("[THINK]")
    ('</think>', '[/THINK]')
    """
    return _CLOSING[tag.lower()]


def without_reasoning(completion: str) -> tuple[str, str | None]:
    """Return a completion without its reasoning blocks, and a problem if one is not closed or has nothing after it.

    The generation prompt of some models opens the block. A closing tag alone therefore ends a block that starts with
    the completion. A completion without tags is returned unchanged.

    >>> without_reasoning("<think>A or B?</think>B"), without_reasoning("A or B?</think>B"), without_reasoning("B")
    (('B', None), ('B', None), ('B', None))
    >>> without_reasoning("<think>A or B?")
    ('', 'the reasoning is not closed (was the completion cut off?)')
    """
    if not ("<" in completion or "[" in completion or "◁" in completion):
        return completion, None
    parts, end = [], 0
    while opening := OPENING.search(completion, end):
        closing = re.compile(re.escape(closing_tag(opening[0])), re.IGNORECASE).search(completion, opening.end())
        if closing is None:
            return "", NOT_CLOSED
        parts.append(completion[end : opening.start()])
        end = closing.end()
    text = "".join((*parts, completion[end:]))
    if closed := list(_ANY_CLOSING.finditer(text)):
        text = text[closed[-1].end() :]
    return text, NO_ANSWER if text != completion and not text.strip() else None
