"""The vocabulary of code, messages and documentation: one term per concept, the one that this field searches for.

A word is split off identifiers (snake and camel case), strings, comments, documentation and recipes.
"""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

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
    "stand": "is in, is stored in; substitute",
    "stands": "is in, is stored in",
    "lie": "is in, is stored in",
    "lies": "is in, is stored in",
}
"""Word -> the terms that replace it."""

STEMS: Mapping[str, str] = {"quantis": "quantiz"}
"""Start or part of a word -> the spelling of Hugging Face."""

PHRASES: Mapping[str, str] = {
    "where there is none": "if there is none",
    "that is there": "existing",
    "so many": "the number",
    "to be had": "available",
    "(go|goes|gone) on": "resume, continue",
    "all at once": "together",
    "number of weights": "parameter count",
    "(graphics|gpu|one|two|both) cards?": "GPU",
}
"""Pattern of a phrase -> the terms that replace it."""

NAMES_OF_LIBRARIES = re.compile(
    r"from itertools import .*|\bchain(\.from_iterable)?\(|CHAIN_APPROX_\w+|\w+_tell\b|ShareGPT|\bshare=False"
)
"""Names of itertools, OpenCV, pydicom, Gradio and a data format."""

ALLOWED: Mapping[str, frozenset[str]] = {
    "tests/test_cli.py": frozenset({"rehearse", "phantom"}),  # former names, which are rejected
}
"""Pattern of paths -> words that they may have."""

SKIPPED = ("toolkit/recipe/renamed.py", "CHANGELOG.md", "*licences/*", "tests/test_words.py")
"""Former names, licences, and this file."""

SUFFIXES = {".py", ".md", ".toml", ".html", ".jinja", ".sh", ".c", ""}


def words(text: str) -> Iterator[str]:
    """Return the words of a text in lower case. Identifiers are split at underscores and capitals."""
    for run in re.findall(r"[A-Za-z]+", text):
        yield from (part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", run))


def replaced_words(path: str, text: str) -> list[str]:
    """Return ``path:line: word (terms)`` for each replaced word or phrase of a text."""
    allowed = {word for pattern, names in ALLOWED.items() if fnmatch(path, pattern) for word in names}
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        own = NAMES_OF_LIBRARIES.sub(" ", line)
        bad = {word: REPLACED[word] for word in words(own) if word in REPLACED and word not in allowed}
        bad |= {stem: spelling for stem, spelling in STEMS.items() if stem in own.lower()}
        bad |= {phrase: terms for phrase, terms in PHRASES.items() if re.search(rf"\b{phrase}\b", own.lower())}
        found += [f"{path}:{number}: {word} ({terms})" for word, terms in bad.items()]
    return found


def sources() -> list[str]:
    """Return the paths of code, documentation and recipes, relative to the root."""
    folders = ("toolkit", "tests", "docs", "recipes", ".ci")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*")]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    paths = sorted(file.relative_to(ROOT).as_posix() for file in files if file.is_file() and file.suffix in SUFFIXES)
    return [path for path in paths if not any(fnmatch(path, pattern) for pattern in SKIPPED)]


@pytest.mark.slow
def test_no_file_has_a_replaced_word() -> None:
    found = [hit for path in sources() for hit in replaced_words(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert found == []


def test_replaced_words_are_found_in_identifiers_strings_and_comments() -> None:
    text = "pictureOf = ask_model('FILM')  # it goes on\nfrom itertools import chain\nchain(a)\nboth_chains = 1\n"
    found = [hit.rsplit(" (", 1)[0] for hit in replaced_words("a.py", text)]
    assert found == ["a.py:1: picture", "a.py:1: ask", "a.py:1: film", "a.py:1: (go|goes|gone) on", "a.py:4: chains"]
    assert replaced_words("tests/test_cli.py", "a phantom") == []
