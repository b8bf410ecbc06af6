"""Kill commands until they finish, and compare what they wrote with the output of an undisturbed command.

A start is killed just before its n-th change of a file, or at a random moment. SIGTERM, SIGINT and SIGHUP must save.
"""

import os
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.faults.children import CODES, Child, Ended, KillAt, run_real, start_command
from tests.faults.part import Outcome, Part, Result, random_of
from tests.faults.scenarios import SCENARIOS, Scenario, digests, undisturbed
from toolkit.runfolder import find_run, is_run
from toolkit.runfolder.cache import DAY, tidy_cache

LIMIT_S = 600
"""Longest duration of one start. On an idle core it takes some seconds."""

SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LEFTOVER = re.compile(r".*\.partial(-\d+)?|\.new-.*|.*\.(arrow|npz|json)\.\d+|.*\.old(-\d+)?")
TRAINING = ("sft", "grpo")


@dataclass(frozen=True, slots=True)
class Kill:
    """When a start is killed: at an event, or after some seconds."""

    signal: int
    event: int | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        when = f"event {self.event}" if self.event is not None else f"{self.seconds:.2f} s"
        return f"{signal.Signals(self.signal).name} at {when}"


@dataclass(slots=True)
class Log:
    """The starts of a trial."""

    kills: list[Kill] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def add(self, what: str, ended: Ended) -> None:
        self.lines.append(f"{what}: status {ended.status} after {ended.seconds:.1f} s; {ended.last_line[:160]}")

    def outcome(self, result: Result, detail: str, scenario: Scenario) -> Outcome:
        starts = "\n".join(self.lines)
        return Outcome(result, f"{detail}\n{starts}", f"toolkit {' '.join(scenario.argv)}", len(self.kills))


def trial(name: str, most: int, seed: int, number: int, folder: Path) -> Outcome:
    """Kill a command at random up to ``most`` times, then let it finish."""
    chance, whole = random_of(seed, f"kills-{name}", number), undisturbed(name)
    kills = [random_kill(chance, len(whole.events), whole.seconds) for _ in range(chance.randint(1, most))]
    return check(SCENARIOS[name], kills, folder)


def trial_of_real_command(seed: int, number: int, folder: Path) -> Outcome:
    """Kill the real command, with another hash seed at each start: no output may depend on the order of a set."""
    chance, scenario, log = random_of(seed, "kills-command", number), SCENARIOS["chest"], Log()
    whole = undisturbed("chest")
    for kill in [*(Kill(signal.SIGKILL, seconds=chance.uniform(2, 20)) for _ in range(chance.randint(0, 3))), None]:
        ended = run_real(scenario.argv, folder, chance.getrandbits(32), kill.seconds if kill else LIMIT_S)
        log.add(str(kill) if kill else "to the end", ended)
        if is_complete(scenario, whole.digests, ended, folder):
            break
        if ended.has_traceback or (kill is None and ended.status != 0):
            return log.outcome("traceback" if ended.has_traceback else "rejected", ended.stderr[-3000:], scenario)
        if ended.status == 0:
            break
        log.kills.extend([kill] if kill else [])
    for result, detail in differences(scenario, whole.digests, ended, folder):
        return log.outcome(result, detail, scenario)
    return log.outcome("identical", "", scenario)


def trial_of_event(name: str, seed: int, number: int, folder: Path) -> Outcome:
    """Kill a command once, just before change ``number`` of a file. The seed is not used."""
    events = len(undisturbed(name).events)
    return check(SCENARIOS[name], [Kill(signal.SIGKILL, number % events + 1)], folder)


def random_kill(chance: random.Random, events: int, seconds: float) -> Kill:
    number = chance.choice(SIGNALS)
    if chance.random() < 0.6:
        return Kill(number, event=chance.randint(1, events))
    return Kill(number, seconds=chance.uniform(0, seconds))


def check(scenario: Scenario, kills: Sequence[Kill], folder: Path) -> Outcome:
    """Run a command with these kills and compare what it wrote with an undisturbed one."""
    whole, log = undisturbed(scenario.name), Log()
    scenario.prepare(folder)
    foreign = {file: file.stat().st_mtime_ns for file in foreign_files(scenario, folder)}
    for kill in [*kills, None]:
        steps = steps_of(scenario, folder)
        ended = start(scenario, kill, folder)
        log.add(str(kill) if kill else "to the end", ended)
        if is_complete(scenario, whole.digests, ended, folder):
            break
        if problem := problem_of(scenario, kill, ended, steps, folder):
            return log.outcome(*problem, scenario)
        if ended.status == 0:
            break
        log.kills.extend([kill] if kill else [])
    for result, detail in differences(scenario, whole.digests, ended, folder):
        return log.outcome(result, detail, scenario)
    changed = [file for file, stamp in foreign.items() if not file.exists() or file.stat().st_mtime_ns != stamp]
    if changed or len(foreign_files(scenario, folder)) != len(foreign):
        return log.outcome("file_changed", f"{changed}", scenario)
    return log.outcome("identical", "", scenario)


def is_complete(scenario: Scenario, expected: dict[str, str], ended: Ended, folder: Path) -> bool:
    """Return whether a command does not replace its own output, because the kill came after the end of its work."""
    kept = ended.status == 1 and ended.last_line.endswith("[output.file_exists]")
    return kept and not any(differences(scenario, expected, ended, folder))


def start(scenario: Scenario, kill: Kill | None, folder: Path) -> Ended:
    """Start a command once, and kill it at its moment."""
    at = KillAt(kill.event, kill.signal) if kill is not None and kill.event is not None else None
    child = start_command(scenario.argv, folder, kill=at)
    if kill is not None and kill.event is None:
        wait_for_main(child)
        if not child.ends_within(kill.seconds):
            child.send(kill.signal)
    return child.wait(LIMIT_S)


def wait_for_main(child: Child) -> None:
    """Wait until the command line has begun: a signal before it is not the toolkit's."""
    while not child.has_begun() and not child.ends_within(0.005):
        pass


def problem_of(
    scenario: Scenario, kill: Kill | None, ended: Ended, before: dict[str, int], folder: Path
) -> tuple[Result, str] | None:
    """Return what is wrong with one start."""
    if ended.limit:
        return "hang", f"more {ended.limit} than allowed"
    if ended.has_traceback:
        return "traceback", (ended.stdout + ended.stderr)[-3000:]
    if outside := foreign_events(scenario, ended, folder):
        return "file_changed", f"files outside of the run folder and the cache: {outside[:5]}"
    if ended.status == 0:
        return None
    if kill is None:
        return "rejected", ended.stderr[-1000:]
    if kill.signal == signal.SIGKILL:
        return None if ended.status == -kill.signal else ("exit_code", f"{ended.status}: {ended.stderr[-1000:]}")
    if ended.status not in (CODES[signal.Signals(kill.signal)], -kill.signal):
        return "exit_code", f"{ended.status} after {kill}: {ended.stderr[-1000:]}"
    return unsaved_steps(scenario, kill, ended, before, folder)


def unsaved_steps(
    scenario: Scenario, kill: Kill, ended: Ended, before: dict[str, int], folder: Path
) -> tuple[Result, str] | None:
    """Return what a signal that stops a command has cost: it must save what it has trained."""
    after = steps_of(scenario, folder)
    trained = [stage for stage in after if after[stage] > before.get(stage, 0) and not is_done(scenario, stage, folder)]
    for stage in trained:
        if ended.status == -kill.signal:
            return "exit_code", f"{ended.status} after {kill} in {stage}: {ended.stderr[-1000:]}"
        saved = last_checkpoint(scenario, stage, folder)
        if saved < after[stage]:
            return "lost_steps", f"{stage} had made {after[stage]} steps, and {saved} are saved"
    return None


def steps_of(scenario: Scenario, folder: Path) -> dict[str, int]:
    """Return the last logged optimizer step of each training stage."""
    path = folder / "runs" / scenario.run
    if scenario.argv[0] != "run" or not is_run(path):
        return {}
    found: dict[str, int] = {}
    for line in find_run(path).metrics():
        if line["stage"] in TRAINING:
            found[line["stage"]] = max(found.get(line["stage"], 0), line["step"])
    return found


def is_done(scenario: Scenario, stage: str, folder: Path) -> bool:
    return find_run(folder / "runs" / scenario.run).is_done(stage)


def last_checkpoint(scenario: Scenario, stage: str, folder: Path) -> int:
    found = (folder / "runs" / scenario.run / "stages" / stage / "checkpoints").glob("step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def differences(
    scenario: Scenario, expected: dict[str, str], ended: Ended, folder: Path
) -> Iterator[tuple[Result, str]]:
    """Yield what differs from an undisturbed command, and what is left over."""
    found = digests(scenario, folder, ended)
    if different := sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name)):
        yield "different", f"other content, missing or not expected: {', '.join(different[:10])}"
    if left := leftovers(scenario, folder):
        yield "leftover", f"unfinished files: {', '.join(map(str, left[:10]))}"


def leftovers(scenario: Scenario, folder: Path) -> list[Path]:
    """Return files of unfinished writes, after the daily removal of those in the cache."""
    old = time.time() - 2 * DAY
    for file in (folder / "cache").rglob("*"):
        os.utime(file, (old, old))
    tidy_cache(folder / "cache", {})
    places = [*(folder / name for name in scenario.written if (folder / name).is_dir()), folder / "cache"]
    found = [path for place in places for path in place.rglob("*")]
    found.extend(path for path in folder.iterdir() if path.name.startswith("."))
    return [path.relative_to(folder) for path in found if LEFTOVER.fullmatch(path.name)]


def foreign_files(scenario: Scenario, folder: Path) -> list[Path]:
    """Return the files of the trial that the command must not change."""
    own = {*(Path(name).parts[0] for name in scenario.written), "cache", "tmp"}
    hidden = tuple(f".{name}." for name in own)
    tops = [top for top in folder.iterdir() if top.name not in own and not top.name.startswith(hidden)]
    return [file for top in tops for file in (top, *top.rglob("*"))]


def foreign_events(scenario: Scenario, ended: Ended, folder: Path) -> list[str]:
    """Return changes of files outside of what the command may change."""
    own = [str(folder / name) for name in (*scenario.written, "cache", "tmp")]
    hidden = [str(folder / f".{name}.") for name in scenario.written]
    allowed = (*own, *hidden, "/dev/null", "/proc/")
    paths = {event: event.partition(" ")[2] for event in ended.events}
    # The folder itself is only tested: whether it exists, and whether it can be written.
    return [event for event, path in paths.items() if not path.startswith(allowed) and path != str(folder)]


PARTS = (
    *(Part(f"kills-{name}", "kills", partial(trial, name, 6)) for name in ("chest", "steps", "lesion", "imagegen")),
    *(
        Part(f"kills-{name}", "kills", partial(trial, name, 3))
        for name in ("index", "prepare", "synthetic", "evaluate", "predict", "export", "report")
    ),
    Part("kills-command", "kills", trial_of_real_command),
    *(
        Part(f"events-{name}", "kills", partial(trial_of_event, name))
        for name in ("index", "prepare", "synthetic", "evaluate", "export")
    ),
)
"""Kills at random, and at each change of a file in turn."""
