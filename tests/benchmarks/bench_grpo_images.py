"""Image processing time of a GRPO step with 8 generations, compared with a plain TRL script on the same rows.

    python tests/benchmarks/bench_grpo_images.py [--rounds 3] [--steps 5] [--side 896]

The image store reduces 16-bit X-rays of 1024 pixels to --side for both methods. The benchmark measures the seconds in
the image processor's call (ours with its cache) and the seconds for opening the images of a row. Both methods alternate
in one process. The first round warms up. Prints a table and one JSON object. The exit status is 1 if the limit is
missed.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch
from transformers.utils.hub import PushToHubMixin

from tests.benchmarks.plain_trl import bench_recipe, plain_grpo, plain_model, plain_policy, plain_rows, timed
from tests.helpers.training import Tables, context_of
from toolkit import tiny
from toolkit.evaluation.stage_context import Context
from toolkit.models.backend import Completion, RewardScorer, RowSource, TrainingJob
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.training.grpo import build_grpo, grpo_settings

LIMIT = 4.0
GENERATIONS, PROMPTS = 8, 2


@dataclass
class Clock:
    """Seconds and calls of opening and processing, and the seconds of each optimizer step."""

    opening: float = 0.0
    opened: int = 0
    processing: float = 0.0
    processed: int = 0
    steps: list[float] = field(default_factory=list)

    @property
    def images(self) -> float:
        return self.opening + self.processing


class Timed(PushToHubMixin):
    """An image processor whose calls are timed. Saving a processor requires the base class."""

    def __init__(self, inner: Any, clock: Clock) -> None:
        self.inner, self.clock = inner, clock

    def __call__(self, *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = self.inner(*args, **options)
        self.clock.processing += time.perf_counter() - start
        self.clock.processed += 1
        return result

    def to_dict(self) -> dict[str, Any]:
        return dict(self.inner.to_dict())

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Timed":
        return self


def counted(rows: RowSource, clock: Clock) -> RowSource:
    def row(index: int) -> Any:
        start = time.perf_counter()
        opened = rows(index)
        clock.opening += time.perf_counter() - start
        clock.opened += 1
        return opened

    return row


def score(
    numbers: Sequence[int], completions: Sequence[Completion]
) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
    return [{"length": min(len(one.text), 200) / 200} for one in completions], {}


def length(completions: list[Any], **_: Any) -> list[float]:
    return [min(len(one[0]["content"]), 200) / 200 for one in completions]


def make_job(context: Context, clock: Clock) -> TrainingJob:
    rows = Prompts.of(context.recipe, context.images).rows(context.data.train)
    return TrainingJob(
        recipe=context.recipe,
        rows=counted(rows, clock),
        count=len(context.data.train),
        folder=context.run.stage_folder("grpo"),
        scorer=RewardScorer({"length": 1.0}, score),
    )


def ours(context: Context) -> Clock:
    clock, backend = Clock(), HfBackend()
    policy = backend.load(context.recipe, None, trainable=True)
    trainer = build_grpo(backend, policy, make_job(context, clock))
    trainer.processing_class.image_processor = Timed(trainer.processing_class.image_processor, clock)
    clock.steps = timed(trainer).seconds
    return clock


def plain(context: Context) -> Clock:
    clock, recipe = Clock(), context.recipe
    job = make_job(context, clock)
    model = plain_model(str(tiny.FOLDER), recipe.lora, recipe.run.seed, dtype=torch.float32)
    policy = plain_policy(str(tiny.FOLDER))
    settings, processor = grpo_settings(policy, job), policy.processor
    processor.image_processor = Timed(processor.image_processor, clock)
    clock.steps = timed(plain_grpo(model, processor, replace(job, rows=plain_rows(job.rows)), settings, length)).seconds
    return clock


METHODS: dict[str, Callable[[Context], Clock]] = {"plain TRL": plain, "toolkit": ours}


def measure(context: Context, rounds: int) -> dict[str, list[Clock]]:
    """Return a clock for each round after the first, by method."""
    found: dict[str, list[Clock]] = {name: [] for name in METHODS}
    for number in range(rounds + 1):
        order = list(METHODS) if number % 2 else list(reversed(METHODS))  # neither always comes first
        for name in order:
            clock = METHODS[name](context)
            if number:
                found[name].append(clock)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--side", type=int, default=896)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = 2 * PROMPTS * options.steps
        tables: Tables = {
            "data": {"synthetic": {"kind": "chest", "train": rows, "test": 2, "size": 1024}},
            "images": {"max_side": options.side, "disk_cache": False},
            "grpo": {
                "max_steps": options.steps,
                "prompts_per_step": PROMPTS,
                "generations": GENERATIONS,
                "micro_batch": GENERATIONS,
                "max_completion_tokens": 32,
            },
        }
        with context_of(bench_recipe(Path(name), tables)) as context:
            clocks = measure(context, options.rounds)
    return report(clocks, options)


def report(clocks: dict[str, list[Clock]], options: argparse.Namespace) -> int:
    def per_step(name: str, figure: Callable[[Clock], float]) -> float:
        return statistics.median(figure(clock) for clock in clocks[name]) / float(options.steps)

    figures = {
        name: {
            "processing": per_step(name, lambda clock: clock.processing),
            "opening": per_step(name, lambda clock: clock.opening),
            "images": per_step(name, lambda clock: clock.images),
            "step": statistics.median(second for clock in clocks[name] for second in clock.steps),
        }
        for name in METHODS
    }
    ratio = {key: figures["plain TRL"][key] / figures["toolkit"][key] for key in figures["toolkit"]}
    print(f"milliseconds a step of {PROMPTS} prompts x {GENERATIONS} generations, images of {options.side} px")
    print(f"{'method':<12} {'processing':>11} {'opening':>9} {'both':>9} {'whole step':>11}")
    for name, found in figures.items():
        cells = (found[key] * 1e3 for key in ("processing", "opening", "images", "step"))
        print("{:<12} {:>11.1f} {:>9.1f} {:>9.1f} {:>11.1f}".format(name, *cells))
    print("{:<12} {:>10.1f}x {:>8.1f}x {:>8.1f}x {:>10.2f}x".format("ratio", *ratio.values()))
    passed = ratio["images"] >= LIMIT
    print(f"processing and opening together: {ratio['images']:.1f} times less time (at least {LIMIT:g})")
    print(
        json.dumps(
            {
                "benchmark": Path(__file__).stem,
                "seconds_per_step": figures,
                "ratio": ratio,
                "limit": LIMIT,
                "side": options.side,
                "rounds": options.rounds,
                "steps": options.steps,
                "passed": passed,
            }
        )
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
