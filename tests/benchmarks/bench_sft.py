"""SFT samples a second, against a plain TRL script on the same model and rows.

    python tests/benchmarks/bench_sft.py [--rounds 5] [--steps 12] [--batch 8]

The rival is SFTTrainer with TRL's own collator; both open the same pictures and train the same adapter of the tiny
model. They train in turn, round by round in one process, and are compared by the median of their steps; the first round
and each first step warm up. Prints a table, then one JSON object; ends with 1 where the limit is missed.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rival import StepTimes, context_of, make_recipe, plain_model, plain_policy, plain_rows, plain_sft, timed

from toolkit import tiny
from toolkit.backends.base import TrainingJob
from toolkit.backends.hf import HfBackend
from toolkit.backends.settings import sft_settings
from toolkit.stages.context import Context
from toolkit.stages.prompts import Prompts
from toolkit.stages.training import training_callbacks

LIMIT = 0.97


def make_job(context: Context) -> TrainingJob:
    rows = Prompts.of(context.recipe, context.images).rows(context.data.train, answer=True)
    return TrainingJob(context.recipe, rows, len(context.data.train), context.run.stage_folder("sft"))


def ours(context: Context) -> StepTimes:
    backend = HfBackend()
    job = replace(make_job(context), callbacks=training_callbacks(context, "sft"))
    return timed(backend.sft_trainer(backend.load(context.recipe, None, trainable=True), job))


def plain(context: Context) -> StepTimes:
    job = make_job(context)
    model = plain_model(str(tiny.FOLDER), context.recipe.lora, context.recipe.run.seed, dtype=torch.float32)
    processor = plain_policy(str(tiny.FOLDER)).processor
    return timed(plain_sft(model, processor, replace(job, rows=plain_rows(job.rows)), sft_settings(job)))


WAYS: dict[str, Callable[[Context], StepTimes]] = {"plain TRL": plain, "toolkit": ours}


def measure(context: Context, rounds: int) -> dict[str, StepTimes]:
    """The steps of all rounds but the first, of each way."""
    found = {name: StepTimes() for name in WAYS}
    for number in range(rounds + 1):
        order = list(WAYS) if number % 2 else list(reversed(WAYS))  # neither always comes first
        for name in order:
            times = WAYS[name](context)
            if number:
                found[name].seconds += times.seconds
                found[name].cpu += times.cpu
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tables = {
            "data": {"phantom": {"kind": "chest", "train": options.batch * options.steps, "test": 2, "size": 256}},
            "images": {"max_side": 112, "disk_cache": False},
            "sft": {"batch_size": options.batch, "accumulation": 1, "max_steps": options.steps},
        }
        with context_of(make_recipe(Path(name), tables)) as context:
            times = measure(context, options.rounds)
    step = {name: statistics.median(found.seconds) for name, found in times.items()}
    cpu = {name: statistics.median(found.cpu) for name, found in times.items()}
    rate = {name: options.batch / seconds for name, seconds in step.items()}
    ratio, cpu_ratio = (values["plain TRL"] / values["toolkit"] for values in (step, cpu))
    print(f"{'way':<12} {'samples/s':>10} {'median step':>12} {'of the CPU':>11}")
    for name in WAYS:
        print(f"{name:<12} {rate[name]:>10.1f} {step[name]:>11.4f}s {cpu[name]:>10.4f}s")
    print(f"ratio {ratio:.3f} (at least {LIMIT}); of the processor's time {cpu_ratio:.3f}")
    good = ratio >= LIMIT
    figures = {"samples_per_second": rate, "cpu_seconds": cpu, "ratio": ratio, "cpu_ratio": cpu_ratio, "limit": LIMIT}
    settings = {"rounds": options.rounds, "steps": options.steps, "batch": options.batch}
    print(json.dumps({"benchmark": Path(__file__).stem, **figures, **settings, "good": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
