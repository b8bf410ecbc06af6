"""A part of the fault tests: trials that can be repeated, each with one outcome."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Result = Literal[
    "identical",
    "clear",
    "accepted",
    "skipped",
    "traceback",
    "hang",
    "unclear",
    "different",
    "leftover",
    "rejected",
    "lost_steps",
    "exit_code",
    "identifier",
    "code_executed",
    "file_changed",
]

GOOD: tuple[Result, ...] = ("identical", "clear", "accepted", "skipped")
"""Results that are right. Every other result is an error of the toolkit, and is printed with its trial."""

Kind = Literal["kills", "resources", "inputs", "attacks"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial found.

    Args:
        result: see ``GOOD``.
        detail: what is wrong, or the first line of the error that the user sees.
        command: how to repeat it by hand, such as the command line of the toolkit and its input.
        count: inputs or kills of the trial. A trial of one input has 1.
    """

    result: Result
    detail: str = ""
    command: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Args:
        name: its name on the command line, such as "recipes".
        kind: the group of the summary to which its trials count.
        trial: runs trial ``number`` in ``folder``, which is empty and its own.
    """

    name: str
    kind: Kind
    trial: Callable[[int, int, Path], Outcome]


def random_of(seed: int, name: str, number: int) -> random.Random:
    """The only source of randomness of a trial."""
    return random.Random(f"{seed}:{name}:{number}")


def is_clear(line: str) -> bool:
    """Return whether the last line that a command prints is an error with its code."""
    return bool(re.search(r"\[[a-z_]+\.[a-z_]+\]$", line))
