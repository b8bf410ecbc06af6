"""Run commands on bad input, and judge what they did.

The commands of a trial run one after another in one child, because a child costs more than a command that is rejected.
A command with a wrong outcome runs again in a child of its own, and only the second outcome counts.
"""

import hashlib
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from tests.faults.children import GIB, Ended, run_command
from tests.faults.part import GOOD, Outcome, random_of

LIMIT_S = 20.0
"""Seconds that bad input may take."""
MEMORY = 3 * GIB
LONGEST_MESSAGE = 2_500
"""Characters of an error, its place and remedy included."""
CODE_AT_END = re.compile(r"\[[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+\]\s*$", re.MULTILINE)

NO_PLACE = ("cli.", "install.", "run.interrupted", "run.disk_full", "plan.")
"""Codes about the command line or the whole run, whose errors name no file."""
RULE_IS_REMEDY = ("must ", "did you mean", "needs ", "cannot ", "can only ", "expected ")


@dataclass(frozen=True, slots=True)
class Case:
    """One bad input.

    Args:
        argv: the arguments of the command.
        place: its folder. The user's files are in ``in``, the command works in ``work``.
        after: a function of a module, called in the child with ``place`` after a command that succeeded.
        environment: variables that are added or replaced. A case with some has a child of its own.
    """

    argv: tuple[str, ...]
    place: Path
    after: Callable[[Path], None] | None = None
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a command did with bad input.

    Args:
        argv: its arguments.
        ended: how it ended.
        problems: those of its error, if it ended with one.
        changed: the input files that it changed or removed.
    """

    argv: tuple[str, ...]
    ended: Ended
    problems: tuple[Mapping[str, Any], ...]
    changed: tuple[str, ...]


Check = Callable[[Case, Attempt], Outcome | None]
"""Returns a wrong outcome that ``judge`` does not see. None if there is none."""


def batch_trial(
    name: str, make: Callable[[Random, Path], Case], size: int, check: Check = lambda case, found: None
) -> Callable[[int, int, Path], Outcome]:
    """Return a trial of ``size`` bad inputs.

    Args:
        name: that of the part.
        make: writes one input below an empty folder, which has the folders ``in`` and ``work``.
        size: inputs of a trial.
        check: see ``Check``.
    """

    def trial(seed: int, number: int, folder: Path) -> Outcome:
        cases = []
        for at in range(size):
            place = folder / str(at)
            for part in ("in", "work"):
                (place / part).mkdir(parents=True)
            cases.append(make(random_of(seed, name, number * size + at), place))
        return first_wrong([judged(case, found, check) for case, found in zip(cases, attempt_all(cases), strict=True)])

    return trial


def judged(case: Case, found: Attempt, check: Check) -> Outcome:
    """Return the outcome of a command. A command with a wrong outcome runs again alone."""
    outcome = check(case, found) or judge(found)
    if outcome.result in GOOD:
        return outcome
    found = attempt(case)
    return check(case, found) or judge(found)


def attempt(case: Case, limit_s: float = LIMIT_S) -> Attempt:
    """Run a command in a child of its own."""
    before = digests(case.place / "in")
    ended = run_command(
        case.argv,
        case.place / "work",
        limit_s,
        memory=MEMORY,
        environment=case.environment,
        before=partial(_run_one, case, case.place / "problems.json"),
    )
    changed = _changed(before, digests(case.place / "in"))
    return Attempt(case.argv, ended, _problems(case.place / "problems.json"), changed)


def attempt_all(cases: Sequence[Case]) -> list[Attempt]:
    """Run the commands one after another in one child, or in another one after a crash."""
    found: dict[int, Attempt] = {}
    before = [digests(case.place / "in") for case in cases]
    alone = [number for number, case in enumerate(cases) if case.environment]
    rest = [number for number in range(len(cases)) if number not in alone]
    while rest:
        run = partial(_run_several, [cases[number] for number in rest])
        run_command((), cases[0].place.parent, LIMIT_S * len(rest), memory=MEMORY, before=run)
        done = [number for number in rest if (cases[number].place / "ended.json").exists()]
        for number in done:
            case = cases[number]
            found[number] = Attempt(
                case.argv,
                _ended(case.place),
                _problems(case.place / "problems.json"),
                _changed(before[number], digests(case.place / "in")),
            )
        rest = [number for number in rest if number not in done]
        alone += rest[:1]  # the one that crashed or was too slow
        rest = rest[1:]
    return [found[number] if number in found else attempt(case) for number, case in enumerate(cases)]


def _run_one(case: Case, report: Path) -> NoReturn:
    """Run the command in this child, and write down the problems of its error."""
    from toolkit.cli import main
    from toolkit.errors import ToolkitError

    report.unlink(missing_ok=True)
    try:
        main(case.argv)
    except SystemExit as left:
        error = left.__context__
        if isinstance(error, ToolkitError):
            report.write_text(json.dumps(described(error)), encoding="utf-8")
        if not left.code and case.after is not None:
            case.after(case.place)
        raise


def _run_several(cases: Sequence[Case]) -> NoReturn:
    """Run the commands in this child. The status of each is in ``ended.json`` of its folder."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for case in cases:
        for number, name in enumerate(("stdout", "stderr"), 1):
            descriptor = os.open(case.place / name, os.O_WRONLY | os.O_CREAT)
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(case.place / "work")
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        started = time.monotonic()
        status = 1
        try:
            _run_one(case, case.place / "problems.json")
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:  # noqa: BLE001  # a bug of the toolkit is an outcome
            traceback.print_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.flush()
        sys.stderr.flush()
        (case.place / "ended.json").write_text(json.dumps([status, time.monotonic() - started]))
    os._exit(0)


def _ended(place: Path) -> Ended:
    status, seconds = json.loads((place / "ended.json").read_text())
    stdout, stderr = (
        (place / name).read_bytes()[: 1 << 20].decode("utf-8", "replace") for name in ("stdout", "stderr")
    )
    return Ended(status, stdout, stderr, seconds)


def _problems(report: Path) -> tuple[Mapping[str, Any], ...]:
    return tuple(json.loads(report.read_text(encoding="utf-8"))) if report.exists() else ()


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in before if after.get(name) != before[name]))


def described(error: Any) -> list[dict[str, Any]]:
    """Return the problems of a ToolkitError. The first one is that of the whole message."""
    whole = {**error.problem.to_json(), "length": len(str(error))}
    return [whole, *(problem.to_json() for problem in error.problems if problem is not error.problem)]


def judge(found: Attempt) -> Outcome:
    """Return what the command did with bad input: a clear error, acceptance, or one of the wrong results."""
    command = shlex.join(["toolkit", *found.argv])
    ended = found.ended
    if ended.limit:
        return Outcome("hang", f"exceeded its limit of {ended.limit} after {ended.seconds:.1f} s", command)
    if ended.has_traceback or ended.status < 0 or ended.status == 70:
        return Outcome("traceback", last_error(ended), command)
    if found.changed:
        return Outcome("file_changed", ", ".join(found.changed), command)
    if ended.status == 0:
        return Outcome("accepted", "", command)
    if why := unclear(found):
        return Outcome("unclear", f"{why}: {message(found)}", command)
    return Outcome("clear", message(found), command)


def message(found: Attempt) -> str:
    """Return the first problem of the error, or the last line that was printed."""
    if not found.problems:
        return found.ended.last_line[:300]
    first = found.problems[1:] or found.problems
    return f"{first[0]['code']} {first[0]['place']}: {first[0]['rule']}"[:300]


def last_error(ended: Ended) -> str:
    """Return the last line of a traceback, or the signal that ended the command."""
    if ended.status < 0:
        return f"signal {-ended.status}"
    places = [line.strip() for line in ended.stderr.splitlines() if line.lstrip().startswith('File "')]
    return f"{ended.last_line[:200]} ({', '.join(places[-1:])})"


def unclear(found: Attempt) -> str:
    """Return why an error does not show what to correct. Empty: it does."""
    ended = found.ended
    if not found.problems:
        usage = ended.status == 2 and any(word in ended.stderr + ended.stdout for word in ("Error", "[cli.", "Usage:"))
        # A plan with problems, and an inspection with unusable images, list them in their output.
        listed = any(text in ended.stdout for text in ('"code"', " unusable")) or CODE_AT_END.search(ended.stdout)
        # The operating system's errors become a ToolkitError where the command line ends, which only its text shows.
        line = ended.last_line
        text = line.startswith("toolkit: ") and ". " in line and CODE_AT_END.search(line)
        if text and len(line) > LONGEST_MESSAGE:
            return f"a message of {len(line):,} characters"
        return "" if usage or listed or text else "no error with a code"
    whole, *each = found.problems
    if whole["length"] > LONGEST_MESSAGE:
        return f"a message of {whole['length']:,} characters"
    for problem in each or [whole]:
        if why := _missing(problem, whole):
            return f"{problem['code']} {why}"
    return ""


def _missing(problem: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    is_list = "\n" in problem["rule"]  # each line of it has its place
    if not problem["place"] and not whole["place"] and not is_list and not problem["code"].startswith(NO_PLACE):
        return "has no place"
    if not problem["rule"]:
        return "has no rule"
    if not problem["remedy"] and not whole["remedy"] and not any(word in problem["rule"] for word in RULE_IS_REMEDY):
        return "has no remedy"
    return ""


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file below the folder, and the target of each link, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def first_wrong(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the first wrong outcome of a trial, otherwise the last one, with the count of all."""
    wrong = [one for one in outcomes if one.result not in GOOD]
    chosen = wrong[0] if wrong else outcomes[-1]
    return Outcome(chosen.result, chosen.detail, chosen.command, sum(one.count for one in outcomes))


def in_child(folder: Path, function: Callable[[], object], limit_s: float, memory: int = MEMORY) -> Ended:
    """Call a function of a module in a child, as the commands run. It must end the process."""
    return run_command((), folder / "work", limit_s, memory=memory, before=function)
