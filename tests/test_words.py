"""The vocabulary of code, messages and documentation: one term per concept, the one that this field searches for.

A word is split off identifiers (snake and camel case), strings, comments, documentation and recipes.
"""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]

REPLACED: Mapping[str, str] = {
    "told": "reported, logged, printed",
    "tell": "report, log, print, warn, raise",
    "tells": "reports, logs, prints, warns, raises",
    "ask": "evaluate, generate, prompt, query",
    "asks": "evaluates, generates, prompts, queries",
    "asked": "evaluated, generated, prompted, queried",
    "asking": "evaluating, generating, prompting, querying",
    "unasked": "skipped",
    "picture": "image",
    "pictures": "images",
    "film": "X-ray or radiograph",
    "films": "X-rays or radiographs",
    "phantom": "synthetic",
    "phantoms": "synthetic",
    "practice": "synthetic data",
    "refused": "rejected",
    "refuse": "reject",
    "refuses": "rejects",
    "prove": "verify",
    "proves": "verifies",
    "proof": "verification",
    "proven": "verified",
    "share": "fraction, proportion; both use",
    "shares": "fractions, proportions; uses the same",
    "spread": "standard deviation",
    "flat": "zero-variance",
    "chain": "episode, trajectory",
    "chains": "episodes, trajectories",
    "rehearsal": "dry run",
    "rehearse": "dry run",
    "rehearsed": "dry run",
    "ladder": "out-of-memory (OOM) recovery",
    "room": "package, module; space",
    "rooms": "packages, modules",
    "house": "package, module",
    "cards": "GPUs, model cards",
    "stand": "is in, is stored in; substitute",
    "stands": "is in, is stored in",
    "lie": "is in, is stored in",
    "lies": "is in, is stored in",
}
"""Word -> the terms that replace it."""

PHRASES: tuple[str, ...] = (
    "where there is none",
    "that is there",
    "so many",
    "to be had",
    "goes on",
    "go on",
    "gone on",
    "all at once",
    "number of weights",
)
"""Phrases that have a plainer equivalent."""

NAMES_OF_OTHERS: Mapping[str, frozenset[str]] = {
    "tests/test_cli.py": frozenset({"rehearse", "phantom"}),  # former names of options
    "toolkit/images/dicom.py": frozenset({"tell"}),
    "tests/tiny_training/*.py": frozenset({"film", "picture"}),  # prompts that the shipped weights were trained on
}
"""Pattern of paths -> words in them that are names of other projects, or texts that a released model was trained on."""

SKIPPED = (
    "toolkit/recipe/renamed.py",
    "CHANGELOG.md",
    "constraints.txt",
    "LICENSE",
    "*licences/*",
    "tests/test_words.py",
)
SUFFIXES = {".py", ".md", ".toml", ".html", ".jinja", ".sh", ".c", ""}


def words(text: str) -> Iterator[str]:
    """Return the words of a text in lower case. Identifiers are split at underscores and capitals."""
    for run in re.findall(r"[A-Za-z]+", text):
        yield from (part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", run))


def replaced_words(path: str, text: str) -> list[str]:
    """Return ``path:line: word (terms)`` for each replaced word or phrase of a text."""
    allowed = {word for pattern, names in NAMES_OF_OTHERS.items() if fnmatch(path, pattern) for word in names}
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if "itertools" not in line and "chain(" not in line:
            bad = [word for word in words(line) if word in REPLACED and word not in allowed]
        else:
            bad = [word for word in words(line) if word in REPLACED and word not in {*allowed, "chain"}]
        found += [f"{path}:{number}: {word} ({REPLACED[word]})" for word in bad]
        found += [f"{path}:{number}: {phrase}" for phrase in PHRASES if re.search(rf"\b{phrase}\b", line.lower())]
    return found


def sources() -> list[str]:
    """Return the paths of code, documentation and recipes, relative to the root."""
    folders = ("toolkit", "tests", "docs", "recipes", ".ci")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*")] + [
        *ROOT.glob("*.md"),
        *ROOT.glob("*.toml"),
    ]
    paths = sorted(file.relative_to(ROOT).as_posix() for file in files if file.is_file() and file.suffix in SUFFIXES)
    return [path for path in paths if not any(fnmatch(path, pattern) for pattern in SKIPPED)]


def test_no_file_has_a_replaced_word() -> None:
    found = [hit for path in sources() for hit in replaced_words(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert found == []
