"""SFT samples per second, compared with a plain TRL script on the same model and rows.

    python tests/benchmarks/bench_sft.py [--rounds 7] [--steps 12] [--batch 8]

The script uses SFTTrainer with TRL's own collator. Both open the same images and train the same adapter of the tiny
model. They alternate in one process and are compared by their median optimizer step within each round. The first round
and each first step warm up. Then the loss alone is measured: bytes alive at the peak of its forward and backward pass,
for a head of 65,552 x 640 (a sixteenth of Gemma 3's) and 60 supervised positions. Prints a table and one JSON object.
The exit status is 1 if a limit is missed.
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

sys.path.append(str(Path(__file__).resolve().parents[2]))

from trl.trainer import sft_trainer

from tests.benchmarks.plain_trl import (
    StepTimes,
    bench_recipe,
    plain_model,
    plain_policy,
    plain_rows,
    plain_sft,
    timed,
)
from tests.helpers.live_bytes import LiveBytes
from tests.helpers.training import Tables, context_of
from toolkit import tiny
from toolkit.evaluation.stage_context import Context
from toolkit.models.backend import TrainingJob
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.training.sft import build_sft, sft_settings
from toolkit.training.sft_loss import sliced_cross_entropy
from toolkit.training.train import training_callbacks

LIMIT = 0.97
MEMORY_LIMIT = 4.0
"""Least ratio of plain TRL's peak of the loss to ours."""


def make_job(context: Context) -> TrainingJob:
    rows = Prompts.of(context.recipe, context.images).rows(context.data.train, answer=True)
    return TrainingJob(context.recipe, rows, len(context.data.train), context.run.stage_folder("sft"))


def ours(context: Context) -> StepTimes:
    backend = HfBackend()
    job = replace(make_job(context), callbacks=training_callbacks(context, "sft"))
    return timed(build_sft(backend, backend.load(context.recipe, None, trainable=True), job))


def plain(context: Context) -> StepTimes:
    job = make_job(context)
    model = plain_model(str(tiny.FOLDER), context.recipe.lora, context.recipe.run.seed, dtype=torch.float32)
    processor = plain_policy(str(tiny.FOLDER)).processor
    return timed(plain_sft(model, processor, replace(job, rows=plain_rows(job.rows)), sft_settings(job)))


METHODS: dict[str, Callable[[Context], StepTimes]] = {"plain TRL": plain, "toolkit": ours}


def measure(context: Context, rounds: int) -> dict[str, list[StepTimes]]:
    """Return the steps of each round after the first, by method."""
    found: dict[str, list[StepTimes]] = {name: [] for name in METHODS}
    for number in range(rounds + 1):
        order = list(METHODS) if number % 2 else list(reversed(METHODS))  # neither always comes first
        for name in order:
            times = METHODS[name](context)
            if number:
                found[name].append(times)
    return found


def medians(rounds: list[StepTimes], clock: str) -> list[float]:
    return [statistics.median(getattr(times, clock)) for times in rounds]


def compare(steps: dict[str, list[float]]) -> float:
    """Return the median over the rounds of plain TRL's step divided by ours. A disturbance of a round affects both."""
    return statistics.median(a / b for a, b in zip(steps["plain TRL"], steps["toolkit"], strict=True))


def loss_peak(loss: Callable[..., tuple[torch.Tensor, ...]]) -> float:
    """Return the megabytes alive at the peak. The head is in bfloat16, as in a 4-bit base."""
    generator = torch.Generator().manual_seed(0)
    head = (torch.randn(65_552, 640, generator=generator) / 640**0.5).bfloat16()
    hidden = torch.randn(1, 566, 640, generator=generator).bfloat16().requires_grad_()
    labels = torch.full((1, 566), -100)
    labels[:, -60:] = 1
    with LiveBytes() as live:
        loss(hidden, head, 256, labels=labels)[0].backward()
    return live.peak / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tables: Tables = {
            "data": {"synthetic": {"kind": "chest", "train": options.batch * options.steps, "test": 2, "size": 256}},
            "images": {"max_side": 112, "disk_cache": False},
            "sft": {"batch_size": options.batch, "accumulation": 1, "max_steps": options.steps},
        }
        with context_of(bench_recipe(Path(name), tables)) as context:
            times = measure(context, options.rounds)
    step, cpu = ({name: medians(found, clock) for name, found in times.items()} for clock in ("seconds", "cpu"))
    rate = {name: options.batch / statistics.median(found) for name, found in step.items()}
    ratio, cpu_ratio = compare(step), compare(cpu)
    print(f"{'method':<12} {'samples/s':>10} {'median step':>12} {'of the CPU':>11}")
    for name in METHODS:
        found = (statistics.median(clock[name]) for clock in (step, cpu))
        print("{:<12} {:>10.1f} {:>11.4f}s {:>10.4f}s".format(name, rate[name], *found))
    print(f"ratio {ratio:.3f} (at least {LIMIT}); of the processor's time {cpu_ratio:.3f}")
    peak = {"plain TRL": loss_peak(sft_trainer._chunked_cross_entropy_loss), "toolkit": loss_peak(sliced_cross_entropy)}
    memory = peak["plain TRL"] / peak["toolkit"]
    listed = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in peak.items())
    print(f"peak of the loss: {listed}; ratio {memory:.1f} (at least {MEMORY_LIMIT})")
    passed = ratio >= LIMIT and memory >= MEMORY_LIMIT
    figures = {"samples_per_second": rate, "ratio": ratio, "cpu_ratio": cpu_ratio, "limit": LIMIT}
    figures |= {"loss_peak_mb": peak, "memory_ratio": memory, "memory_limit": MEMORY_LIMIT}
    settings = {"rounds": options.rounds, "steps": options.steps, "batch": options.batch}
    print(json.dumps({"benchmark": Path(__file__).stem, **figures, **settings, "passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
