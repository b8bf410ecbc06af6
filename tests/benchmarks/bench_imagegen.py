"""The recipe imagegen_tiny over several seeds: do sft and ddpo beat the control and the base, by judge and oracle?

    python tests/benchmarks/bench_imagegen.py [--seeds 5] [--set KEY=VALUE ...] [--folder FOLDER]

A seed changes ratings, scorers, judge and updates, and not the base. Prints a row for each seed and arm, and the
differences of all seeds. The oracle is what the simulated experts know. It is no reward and no judge. Ends with 1 if an
sft or ddpo score is not above every control score, or an interval of sft minus control or ddpo minus base reaches 0.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from toolkit.imagegen.results import ArmRow, ImagegenResult
from toolkit.metrics import Paired
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.recipe import load_recipe

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "imagegen_tiny.toml"
JUDGE_SEEDS = 1000


def run_seed(seed: int, folder: Path, settings: Sequence[str]) -> ImagegenResult:
    """Run the recipe with one seed."""
    own = [f"run.seed={seed}", f"imagegen.judge.seed={JUDGE_SEEDS + seed}", f"run.name=seed{seed}"]
    _, result = run_imagegen(load_recipe(RECIPE, [*own, f'run.folder="{folder}"', *settings]))
    return result


def line(seed: int, row: ArmRow) -> str:
    oracle = f"{row.oracle.value:.3f}" if row.oracle else "-"
    diversity = f"{row.diversity.distance.value:.2f}"
    judged = f"{row.judge.value:.3f} passes {row.judge_pass_rate.value:.2f} agreement {row.agreement.value:.3f}"
    return f"{seed:>4} {row.arm:<8} judge {judged} oracle {oracle} diversity {diversity}{_change(row)}"


def _change(row: ArmRow) -> str:
    named = {"base": row.to_base, "control": row.to_control}
    return "".join(f"  minus {name} {_interval(paired)}" for name, paired in named.items() if paired)


def _interval(paired: Paired) -> str:
    change = paired.difference
    return f"{change.value:+.3f} [{change.low:+.3f} to {change.high:+.3f}]"


def failures(results: Sequence[ImagegenResult]) -> list[str]:
    """What does not hold."""
    found = []
    controls = [result.row("control").judge.value or 0.0 for result in results]
    for seed, result in enumerate(results):
        for arm in ("sft", "ddpo"):
            value = result.row(arm).judge.value or 0.0
            if value <= max(controls):
                found.append(f"seed {seed}: {arm} {value:.3f} is not above every control ({max(controls):.3f})")
        for arm, paired in (("sft", result.row("sft").to_control), ("ddpo", result.row("ddpo").to_base)):
            if paired is None or paired.difference.low is None or paired.difference.low <= 0:
                found.append(f"seed {seed}: the interval of {arm} reaches 0")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--folder", type=Path, help="where the runs go; default: a temporary folder")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="bench-imagegen-"))
    results = []
    for seed in range(given.seeds):
        started = time.monotonic()
        results.append(run_seed(seed, folder, given.settings))
        for row in results[-1].rows:
            print(line(seed, row))
        spearman = results[-1].scorers.judge.overall.spearman.value if results[-1].scorers else None
        print(f"{seed:>4} judge's held-out Spearman {spearman:.3f}; {time.monotonic() - started:.0f} s", flush=True)
    found = failures(results)
    print("\n".join(found) or "every sft and ddpo is above every control, and no interval reaches 0")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
