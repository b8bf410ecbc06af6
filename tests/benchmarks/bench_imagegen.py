"""The recipe imagegen_tiny over several seeds: do sft and ddpo beat the control and the base, by judge and oracle?

    python tests/benchmarks/bench_imagegen.py [--seeds 5] [--smoke] [--set KEY=VALUE ...] [--folder FOLDER]

A seed changes ratings, scorers, judge and updates, and not the base. Prints a row for each seed and arm, and the paired
differences over the images of all seeds. The oracle is what the simulated experts know. It is no reward and no judge,
and decides nothing here.

Ends with 1 if an sft or ddpo score is not above every control score, or an interval of sft minus control or ddpo minus
base reaches 0. An interrupted benchmark resumes: finished seeds are read from the folder. Its subfolder is named by a
digest of recipe, settings and package, so that no run of another version is read. --smoke runs every stage in seconds,
and checks nothing else.
"""

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import toolkit.imagegen
from toolkit.imagegen.evaluation.statistics import ImageKey
from toolkit.imagegen.results import ArmRow, ImagegenResult, arm_figures
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.recipe import load_recipe
from toolkit.scoring.statistics import Paired, paired_difference
from toolkit.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from tests.helpers.imagegen_runs import RECIPE, SMALL  # noqa: E402

JUDGE_SEEDS = 1000
COMPARED = (("sft", "control"), ("sft", "base"), ("ddpo", "base"), ("ddpo", "control"))
DECIDE = (("sft", "control"), ("ddpo", "base"))
"""Pairs whose interval must not reach 0."""


@dataclass(frozen=True, slots=True)
class Seed:
    """One finished run.

    Attributes:
        number: the seed.
        result: its table.
        scores: arm -> the judge's score of each image.
    """

    number: int
    result: ImagegenResult
    scores: Mapping[str, Mapping[ImageKey, float]]

    def judge(self, arm: str) -> float:
        """The judge's mean score."""
        return statistics.fmean(self.scores[arm].values())


def run_seed(number: int, folder: Path, settings: Sequence[str]) -> Seed:
    """Run the recipe with one seed, or read the run that has finished before."""
    own = [f"run.seed={number}", f"imagegen.judge.seed={JUDGE_SEEDS + number}", f"run.name=seed{number}"]
    run, result = run_imagegen(load_recipe(RECIPE, [*own, f'run.folder="{folder}"', *settings], tasks=TASKS))
    scores = {arm: figures.metrics.judge_by_key for arm, figures in arm_figures(run).items()}
    return Seed(number, result, scores)


def digest(settings: Sequence[str]) -> str:
    """Return a digest of what the figures depend on: recipe, settings, and the code and models of image generation."""
    package = Path(toolkit.imagegen.__file__).parent
    files = [path for path in sorted(package.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    found = hashlib.sha256(repr(list(settings)).encode())
    for path in (RECIPE, *files):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]


def line(seed: int, row: ArmRow) -> str:
    """Return a row of the table."""
    oracle = f"{row.oracle.value:>6.3f}" if row.oracle else f"{'-':>6}"
    agreement = f"{row.agreement.value:>6.3f}" if row.agreement else f"{'-':>6}"
    distance = row.diversity.distance.value
    figures = f"{row.judge.value:>6.3f} {row.judge_pass_rate.value:>6.2f} {agreement} {oracle}"
    diversity = f"{distance:>9.2f}" if distance is not None else f"{'-':>9}"
    return f"{seed:>4} {row.arm:<8} {figures} {diversity}"


HEADER = f"{'seed':>4} {'arm':<8} {'judge':>6} {'passes':>6} {'agrees':>6} {'oracle':>6} {'diversity':>9}"


def compare(seeds: Sequence[Seed], arm: str, other: str) -> Paired:
    """Return the paired difference of judge scores over the images of some seeds, with a bootstrap over prompts."""
    pairs = [(seed, key) for seed in seeds for key in sorted(seed.scores[arm])]
    return paired_difference(
        [seed.scores[other][key] for seed, key in pairs],
        [seed.scores[arm][key] for seed, key in pairs],
        [key.prompt for _, key in pairs],
        resamples=2000,
        seed=0,
    )


def differences(seeds: Sequence[Seed]) -> Iterator[str]:
    """Yield the paired differences over the images of some seeds."""
    for arm, other in COMPARED:
        change = compare(seeds, arm, other).difference
        interval = f"{change.value:+.3f} [{change.low:+.3f} to {change.high:+.3f}]"
        yield f"{arm} minus {other} {interval} on {change.n} pairs"


def failures(seeds: Sequence[Seed]) -> Iterator[str]:
    """Yield what does not hold."""
    highest = max(seed.judge("control") for seed in seeds)
    for seed in seeds:
        for arm in ("sft", "ddpo"):
            if not seed.judge(arm) > highest:
                yield f"seed {seed.number}: {arm} {seed.judge(arm):.3f} is not above every control ({highest:.3f})"
        for arm, other in DECIDE:
            low = compare([seed], arm, other).difference.low
            if low is None or not low > 0:
                yield f"seed {seed.number}: the interval of {arm} minus {other} reaches 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a very short recipe that learns nothing")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench-imagegen", help="where the runs go")
    given = parser.parse_args()
    settings = [*(SMALL if given.smoke else ()), *given.settings]
    folder = given.folder / digest(settings)
    print(f"runs are in {folder}\n{HEADER}", flush=True)
    seeds = []
    for number in range(given.seeds):
        started = time.monotonic()
        seed = run_seed(number, folder, settings)
        seeds.append(seed)
        print("\n".join(line(number, row) for row in seed.result.rows))
        spearman = seed.result.scorers.judge.overall.spearman.value if seed.result.scorers else None
        held_out = "undefined" if spearman is None else f"{spearman:.3f}"
        print("\n".join(f"{number:>4} {text}" for text in differences([seed])))
        print(f"{number:>4} judge's held-out Spearman {held_out}; {time.monotonic() - started:.0f} s", flush=True)
    print("\n".join(f" all {text}" for text in differences(seeds)))
    found = [] if given.smoke else list(failures(seeds))
    passed = "a smoke run: the figures say nothing" if given.smoke else "sft and ddpo are above every control"
    print("\n".join(found) or passed)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
