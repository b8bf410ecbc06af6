"""Damage of the files of a run: each command continues with the right figures, or reports the damage."""

import json
import os
import shlex
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.children import KillAt, run_command
from tests.faults.fuzz_mutations import as_json, mutate_bytes, mutate_json
from tests.faults.fuzz_outcomes import Case, attempt, digests, judge
from tests.faults.part import Outcome, Part, random_of
from tests.faults.scenarios import SCENARIOS, stable, undisturbed, undisturbed_folder

RUN = "runs/chest"
INTERRUPTED = ("sft", "grpo")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "run": SCENARIOS["chest"].argv,
    "evaluate": ("evaluate", RUN, "--name", "more"),
    "export": ("export", RUN, "--to", "adapter,merged", "--out", "out"),
    "predict": ("predict", RUN, "--data", "rows.json", "--out", "answers.jsonl"),
    "report": ("report", RUN, "--out", "report.json"),
}
LIMIT_S = 180.0
NOT_DAMAGED = (".lock", ".partial", "log.txt")
WEIGHTS = (".safetensors",)


@cache
def _session() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="toolkit-fuzz-runs-")


@cache
def base(state: str) -> Path:
    """Return a folder with a finished run, or with one that was killed in the stage ``state``."""
    if state == "finished":
        return undisturbed_folder("chest")
    folder = Path(_session().name) / state
    folder.mkdir()
    events = undisturbed("chest").events
    saved = [number for number, event in enumerate(events, 1) if f"stages/{state}/checkpoints" in event]
    # In the middle of the stage's checkpoints, so that at least one is whole.
    kill = KillAt(saved[len(saved) * 2 // 3], signal.SIGKILL)
    ended = run_command(COMMANDS["run"], folder, LIMIT_S, kill=kill)
    assert ended.status == -signal.SIGKILL, ended.stderr[-2000:]
    return folder


def copy_base(state: str, work: Path) -> None:
    """Copy the run and the rows to predict to the working directory."""
    shutil.copytree(base(state) / "runs", work / "runs", symlinks=True)
    shutil.copy(base("finished") / RUN / "synthetic/test.json", work / "rows.json")
    shutil.copytree(base("finished") / RUN / "synthetic/images", work / "images")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a command leaves: figures and digests of weights, without times and paths."""

    content: Mapping[str, str]


def figures(command: str, work: Path) -> Figures:
    """Return what must be as in the undisturbed run."""
    found: dict[str, str] = {}
    if command in ("run", "evaluate"):
        results = json.loads((work / RUN / "results.json").read_text(encoding="utf-8"))
        found["results.json"] = json.dumps(stable(results), sort_keys=True).replace(str(work), "")
    if command == "run":
        weights = [
            path for path in sorted((work / RUN / "stages").rglob("*.safetensors")) if "checkpoints" not in path.parts
        ]
        found |= {str(path.relative_to(work)): digests(path.parent).get(path.name, "") for path in weights}
    if command == "export":
        found |= {name: digest for name, digest in digests(work / "out").items() if name.endswith(WEIGHTS)}
    if command == "predict":
        found["answers.jsonl"] = (work / "answers.jsonl").read_text(encoding="utf-8").replace(str(work), "")
    return Figures(found)


@cache
def expected(state: str, command: str) -> Figures:
    """Return what the command leaves without damage."""
    work = Path(_session().name) / f"{state}-{command}" / "work"
    work.mkdir(parents=True)
    copy_base(state, work)
    ended = run_command(COMMANDS[command], work, LIMIT_S)
    assert ended.status == 0, (state, command, ended.stderr[-3000:])
    return figures(command, work)


def damage(random: Random, file: Path) -> str:
    """Damage a file. Return how."""
    content = file.read_bytes()
    kind = random.choice((*sorted(CONTENTS), *sorted(CONTENTS), "folder", "link", "loop", "gone"))
    if kind in CONTENTS:
        file.write_bytes(CONTENTS[kind](random, content))
        return kind
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind != "gone":
        file.symlink_to("nowhere" if kind == "link" else file.name)
    return kind


def _flipped(random: Random, content: bytes) -> bytes:
    found = bytearray(content or b"x")
    for _ in range(random.choice((1, 8, 400))):
        found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def _other_value(random: Random, content: bytes) -> bytes:
    try:
        return as_json(mutate_json(random, json.loads(content)))
    except (ValueError, RecursionError):
        return _flipped(random, content)


OTHER_JSON = (b"null", b"[]", b"{}", b"1", b'"x"', b"[null]", b'{"a": 1}', b"NaN", b"\xef\xbb\xbf{}")
CONTENTS: Mapping[str, Callable[[Random, bytes], bytes]] = {
    "cut": lambda random, content: content[: random.randrange(len(content) + 1)],
    "empty": lambda random, content: b"",
    "garbage": lambda random, content: random.randbytes(300),
    "json": lambda random, content: random.choice(OTHER_JSON),
    "deep": lambda random, content: b"[" * 100_000 + b"]" * 100_000,
    "flip": _flipped,
    "mutate": mutate_bytes,
    "value": _other_value,
}
"""Name of a damage -> the content that the file gets."""


def own_files(run: Path) -> list[Path]:
    """Return the files of a run that are damaged, in a fixed order."""
    return [
        path
        for path in sorted(run.rglob("*"))
        if path.is_file() and not path.name.endswith(NOT_DAMAGED) and "images" not in path.parts
    ]


def trial(seed: int, number: int, folder: Path) -> Outcome:
    """Damage one file of a run, and use the run."""
    random = random_of(seed, "own_files", number)
    state = random.choice(("finished", "finished", *INTERRUPTED))
    command = random.choice(sorted(COMMANDS)) if state == "finished" else "run"
    work = folder / "work"
    work.mkdir()
    copy_base(state, work)
    files = own_files(work / RUN)
    named = [path for path in files if path.suffix in (".json", ".jsonl", ".toml")]  # as often as weights and the rest
    file = random.choice(named if random.random() < 0.5 else files)
    how = damage(random, file)
    name = file.relative_to(work / RUN)
    found = attempt(Case(COMMANDS[command], folder), LIMIT_S)
    outcome = judge(found)
    label = f"{state} run, {name}: {how}; {command}"
    if outcome.result == "accepted":
        outcome = _compare((state, command), work, found.ended.stderr + found.ended.stdout, file.name)
    return Outcome(outcome.result, f"{label}: {outcome.detail}", shlex.join(["toolkit", *COMMANDS[command]]))


def _compare(key: tuple[str, str], work: Path, printed: str, name: str) -> Outcome:
    """Return "identical" if the figures are those of the undisturbed run, or if the damage was reported."""
    want = expected(*key).content
    try:
        have: Mapping[str, Any] = figures(key[1], work).content
    except (OSError, ValueError) as error:
        return Outcome("different", f"a file of the result cannot be read: {error!r}"[:300])
    wrong = [file for file in want if have.get(file) != want[file]]
    if not wrong:
        return Outcome("identical")
    reported = name in printed or name in _read(work / RUN / "log.txt")
    return Outcome("accepted" if reported else "different", f"not as without damage: {', '.join(wrong[:4])}")


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() and os.access(file, os.R_OK) else ""


PART = Part("own_files", "inputs", trial)
