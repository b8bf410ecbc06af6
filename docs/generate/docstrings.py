"""Google docstrings as Markdown: paragraphs, sections such as Args and Attributes, and worked examples."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Scores")
_ENTRY = re.compile(r"^([\w.*]+(?:, [\w.*]+)*): (.*)$")


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring in parts.

    Attributes:
        summary: The first paragraph.
        details: The other paragraphs, as Markdown.
        sections: Section -> name -> description. A section without names has one entry, with an empty name.
        example: The lines of the worked examples.
    """

    summary: str
    details: str
    sections: Mapping[str, Mapping[str, str]]
    example: str


def parse(text: str) -> Docstring:
    """Return the parts of a docstring whose indentation was removed (``inspect.getdoc``)."""
    prose, examples, sections = list[str](), list[str](), dict[str, dict[str, str]]()
    for block in re.split(r"\n\s*\n", text.strip()):
        head, _, rest = block.partition("\n")
        if head.removesuffix(":") in SECTIONS and head.endswith(":"):
            sections[head[:-1]] = _entries(rest)
        elif head.startswith(">>>"):
            examples.append(block)
        elif not (prose and head.startswith("    ")):
            prose.append(block)
    summary, *details = prose or [""]
    return Docstring(markdown(summary), markdown("\n\n".join(details)), sections, "\n".join(examples))


def markdown(text: str) -> str:
    """Return a text with one line per paragraph and the code marks of Markdown.

    A line that begins with a hyphen stays a line of its own.
    """
    paragraphs = re.split(r"\n\s*\n", text.strip())
    joined = ["\n".join(_joined(part)) for part in paragraphs]
    return re.sub(r"``(.+?)``", r"`\1`", "\n\n".join(joined))


def noun(summary: str) -> str:
    """Return the summary of a function that returns a value, as a definition without its verb and full stop."""
    first = re.match(r"(?:Return (?:the )?)?(.*?)(?:\.(?= |$)|$)", summary)
    return (first[1] if first else summary).strip()


def _joined(paragraph: str) -> list[str]:
    lines = list[str]()
    for line in map(str.strip, paragraph.splitlines()):
        if lines and not line.startswith("- "):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return lines


def _entries(text: str) -> dict[str, str]:
    """Return the entries of a section. The lines of one entry are joined."""
    found: dict[str, list[str]] = {}
    indent = len(text) - len(text.lstrip())
    for line in text.splitlines():
        entry = _ENTRY.match(line[indent:]) if line[:indent].isspace() else None
        if entry:
            found[entry[1]] = [entry[2]]
        elif found:
            found[next(reversed(found))].append(line.strip())
        else:
            found[""] = [line.strip()]
    return {name: markdown(" ".join(lines)) for name, lines in found.items()}
