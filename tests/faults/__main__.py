"""Run the fault tests for some minutes, and print a table: part, trials, outcomes.

    python -m tests.faults --minutes 60 --seed 1                 every part in turn
    python -m tests.faults --minutes 5 --only kills,recipes      kinds, or names of parts
    python -m tests.faults --trial kills-chest:1:4               one trial again

The exit status is 1 if a trial is wrong.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

from tests.faults.part import GOOD, Outcome, Part
from tests.faults.trials import all_parts, run_trial


@dataclass(slots=True)
class Tally:
    """Trials of one part."""

    part: Part
    begun: int = 0
    trials: int = 0
    seconds: float = 0.0
    results: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome, seconds: float) -> None:
        self.trials += 1
        self.seconds += seconds
        self.results[outcome.result] += 1
        self.counts[outcome.result] += outcome.count
        if outcome.result == "skipped":
            self.reasons[outcome.detail] += 1


def run_all(tallies: list[Tally], options: argparse.Namespace) -> Iterator[tuple[Tally, int, Outcome]]:
    """Yield trials until the time is over. The next one is of the part that has had the least time."""
    until = time.monotonic() + options.minutes * 60
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        at_work: dict[Future[tuple[Outcome, float]], tuple[Tally, int]] = {}
        while True:
            while time.monotonic() < until and len(at_work) < options.jobs:
                tally = min(tallies, key=lambda one: (one.seconds, one.begun))
                future = pool.submit(run_trial, tally.part.name, options.seed, tally.begun, options.keep)
                at_work[future] = (tally, tally.begun)
                tally.begun += 1
            if not at_work:
                return
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                tally, number = at_work.pop(future)
                outcome, seconds = future.result()
                tally.add(outcome, seconds)
                yield tally, number, outcome


def report_wrong(part: Part, seed: int, number: int, outcome: Outcome) -> None:
    print(f"\nWRONG {part.name}:{seed}:{number} {outcome.result}")
    print(f"  repeat: python -m tests.faults --trial {part.name}:{seed}:{number}")
    print(f"  command: {outcome.command}\n  {outcome.detail}", flush=True)


def table(tallies: list[Tally]) -> str:
    """Return the trials of each part as a Markdown table."""
    lines = ["| part | kind | trials | kills or inputs | outcomes |", "|---|---|---:|---:|---|"]
    for tally in tallies:
        outcomes = ", ".join(f"{count} {result}" for result, count in tally.results.most_common())
        reasons = "".join(f" (skipped: {reason})" for reason in tally.reasons)
        inputs = sum(tally.counts.values())
        lines.append(f"| {tally.part.name} | {tally.part.kind} | {tally.trials} | {inputs:,} | {outcomes}{reasons} |")
    return "\n".join(lines)


def summary(tallies: list[Tally]) -> str:
    """Return all counts in one line."""

    def trials(kind: str, *results: str) -> int:
        return sum(
            count
            for tally in tallies
            if kind in ("", tally.part.kind)
            for result, count in tally.results.items()
            if result in results or not results
        )

    def counts(kind: str, *results: str) -> int:
        chosen = [tally.counts for tally in tallies if tally.part.kind == kind]
        return sum(sum(found[result] for result in results) if results else found.total() for found in chosen)

    skipped = trials("resources", "skipped")
    return (
        f"kills {counts('kills'):,}, finished identical {counts('kills', 'identical'):,}; "
        f"resource faults {trials('resources') - skipped:,}, recovered identical {trials('resources', 'identical'):,}"
        f"{f' ({skipped} skipped)' if skipped else ''}; "
        f"bad inputs {counts('inputs') + counts('attacks'):,}: {trials('', 'traceback')} tracebacks, "
        f"{trials('', 'hang')} hangs, {trials('', 'unclear')} unclear; identifiers {trials('', 'identifier')}; "
        f"code executed {trials('', 'code_executed')}; user files changed {trials('', 'file_changed')}"
    )


def chosen_parts(only: str) -> list[Part]:
    """Return the parts of some kinds or names, which commas separate."""
    words = [word for word in only.split(",") if word]
    known = all_parts().values()
    if unknown := [word for word in words if not any(word in (part.name, part.kind) for part in known)]:
        raise SystemExit(f"unknown: {', '.join(unknown)}. Parts: {', '.join(part.name for part in known)}")
    return [part for part in known if not words or part.name in words or part.kind in words]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="kinds (kills, resources, inputs, attacks) or parts, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--keep", metavar="DIR", help="keep the folders of wrong trials here")
    parser.add_argument("--trial", metavar="PART:SEED:K", help="run this trial alone")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.trial:
        name, seed, number = options.trial.split(":")
        part = chosen_parts(name)[0]
        outcome, _ = run_trial(part.name, int(seed), int(number), options.keep)
        print(f"{options.trial}: {outcome.result} ({outcome.count})\n  command: {outcome.command}\n  {outcome.detail}")
        return int(outcome.result not in GOOD)
    tallies = [Tally(part) for part in chosen_parts(options.only)]
    wrong = 0
    print(f"seed {options.seed}, {options.minutes:g} minutes, {len(tallies)} parts", flush=True)
    for tally, number, outcome in run_all(tallies, options):
        if outcome.result not in GOOD:
            wrong += 1
            report_wrong(tally.part, options.seed, number, outcome)
    print(f"\n{table(tallies)}\n\n{summary(tallies)}")
    return int(wrong > 0)


if __name__ == "__main__":
    # Everything temporary, references included, is below one folder that is removed at the end.
    with tempfile.TemporaryDirectory(prefix="toolkit-faults-", ignore_cleanup_errors=True) as work:
        os.environ["TMPDIR"] = tempfile.tempdir = work
        status = main()
    sys.exit(status)
