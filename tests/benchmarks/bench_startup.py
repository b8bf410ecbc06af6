"""Time `toolkit --help` and `trl --help`.

    python tests/benchmarks/bench_startup.py [--rounds 15]

Both are started in turn, round by round, and compared by their medians. Prints a table, then one JSON object. The exit
code is 1 if a limit is missed.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

LIMIT = 1.3
SECONDS_LIMIT = 0.3

BASES = ("trl", "toolkit")


def find(name: str) -> list[str]:
    """Return the console script of this interpreter's environment, or the module if the package is not installed."""
    script = shutil.which(name, path=sysconfig.get_path("scripts"))
    return [script, "--help"] if script else [sys.executable, "-m", name, "--help"]


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    commands = {name: find(name) for name in BASES}
    for command in commands.values():
        seconds(command)  # the first start compiles and fills the disk cache
    taken: dict[str, list[float]] = {name: [] for name in BASES}
    for _ in range(rounds):
        for name, command in commands.items():
            taken[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ratio = medians["toolkit"] / medians["trl"]
    print(f"{'command':<16} {'median':>8} {'fastest':>8}")
    for name in BASES:
        print(f"{name + ' --help':<16} {medians[name]:>7.3f}s {min(taken[name]):>7.3f}s")
    print(f"ratio {ratio:.2f} (at most {LIMIT}); toolkit under {SECONDS_LIMIT} s")
    good = ratio <= LIMIT and medians["toolkit"] < SECONDS_LIMIT
    figures = {"seconds": medians, "ratio": ratio, "limit": LIMIT, "rounds": rounds, "good": good}
    print(json.dumps({"benchmark": Path(__file__).stem, **figures}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
