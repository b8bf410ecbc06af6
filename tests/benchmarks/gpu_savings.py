"""The comparison of ``bench_gpu.py --compare``: GRPO by plain TRL, and by the toolkit with and without each saving.

Each method and round is a process of ``bench_gpu.py`` of its own. Rounds have every method once, in alternating order.
FLOPs are those of the formula in ``toolkit.models.flops``: torch's counter would disturb the times. They and the images
through the vision tower are means of the steps after the first one, which has checks of its own. Gradients are those of
the first step, without dropout. On a GPU, batches of other shapes are rounded differently, so completions can differ.
Gradients are compared only if completions are equal.

For the last two methods, a third of the rows has equal rewards. They are compared with each other only.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.runfolder import read_json

SAVINGS = ("vision_cache", "shared_prefill", "packing", "skipping")
"""Names of savings, as in ``tests.helpers.grpo_steps``, which imports torch."""
PLAIN, WITHOUT, WHOLE = "plain TRL", "without savings", "equal rewards: both"
METHODS: Mapping[str, Sequence[str]] = {
    PLAIN: (),
    WITHOUT: ("--without", *SAVINGS),
    "vision cache": ("--without", "shared_prefill", "packing", "skipping"),
    "shared prefill": ("--without", "vision_cache", "packing", "skipping"),
    "both": ("--without", "packing", "skipping"),
    "both, packing": ("--without", "skipping"),
    WHOLE: ("--without", "packing", "skipping", "--equal-rewards"),
    "equal rewards: skipped": ("--without", "packing", "--equal-rewards"),
}
"""Name -> options of bench_gpu.py."""
PASSED = ("shape", "layers", "gigabytes", "steps", "seconds", "data")
"""Options of the comparison that each process gets too."""
GIGA = 1e9

EQUAL_REWARDS = """import hashlib


def length(sample, answer):
    group = int(hashlib.sha256(sample.id.encode()).hexdigest(), 16) % 3
    return 0.5 if group == 1 else min(len(answer.text), 200) / 200
"""
"""A custom reward. Rows with equal rewards are chosen by their id."""


@contextmanager
def grpo_watched(note: Callable[..., None], options: argparse.Namespace) -> Iterator[None]:
    """Switch off savings in the GRPO trainers that are built inside, and watch them, but not the preflight step."""
    from tests.benchmarks import plain_trl
    from toolkit.models.flops import register_usage_hooks
    from toolkit.training import grpo

    build, build_plain = grpo.build_grpo, plain_trl.plain_grpo

    def built(backend: Any, policy: Any, job: Any) -> Any:
        from tests.helpers.grpo_steps import switch_off

        trainer = build(backend, policy, job)
        switch_off(trainer, policy.model, set(SAVINGS) - set(options.without))
        if not job.preflight:
            watch(trainer, note, options.gradients)
        return trainer

    def built_plain(model: Any, processor: Any, job: Any, settings: Any, reward: Any) -> Any:
        register_usage_hooks(model)
        trainer = build_plain(model, processor, job, settings, reward)
        watch(trainer, note, options.gradients)
        return trainer

    grpo.build_grpo, plain_trl.plain_grpo = built, built_plain
    try:
        yield
    finally:
        grpo.build_grpo, plain_trl.plain_grpo = build, build_plain


def watch(trainer: Any, note: Callable[..., None], gradients: Path | None) -> None:
    """Note digests of the first rollout's completions, and save the gradients of the first optimizer step."""
    from safetensors.torch import save_file
    from transformers import TrainerCallback

    generate = trainer._generate_single_turn

    def recorded(*args: Any, **options: Any) -> Any:
        found = generate(*args, **options)
        digests = [hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16] for ids in found[0]]
        note(completions=digests)
        trainer._generate_single_turn = generate
        return found

    class FirstGradients(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if gradients is not None and state.global_step == 0:
                named = model.named_parameters()
                save_file({name: p.grad.cpu().clone() for name, p in named if p.grad is not None}, gradients)

    trainer._generate_single_turn = recorded
    trainer.add_callback(FirstGradients())


def work(steps: Sequence[Any]) -> dict[str, float]:
    """Return the work of a step from the counts at the end of each step. Empty: there was one step."""
    if len(steps) < 2:
        return {}
    done, count = steps[-1] - steps[0], len(steps) - 1
    return {
        "gflop_rollout": done.inference / GIGA / count,
        "gflop_update": done.training / GIGA / count,
        "images": (done.read_images + done.trained_images) / count,
        "read_tokens": done.read_tokens / count,
        "trained_tokens": done.trained_tokens / count,
    }


def compare(options: argparse.Namespace, program: Path) -> int:
    """Run all methods, and print a table and one JSON object. Return 1 if a process failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = options.out or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        model = options.model or Path(name) / "model"
        found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
        for number in range(options.rounds):
            for method in list(METHODS)[:: 1 if number % 2 else -1]:  # neither end always comes first
                found[method].append(_measure(method, number, options, (program, model, folder)))
        table = {method: _figures(method, found, folder) for method in METHODS}
    _show(table)
    print(json.dumps({"benchmark": "bench_gpu --compare", "methods": table, "rounds": options.rounds}))
    return int(any(stage.get("state") == "failed" for stages in found.values() for stage in stages))


def _measure(method: str, number: int, options: argparse.Namespace, places: tuple[Path, Path, Path]) -> dict[str, Any]:
    """Run one method in a process of its own. Return the figures of its stage."""
    program, model, folder = places
    print(f"round {number}: {method}", file=sys.stderr, flush=True)
    out = folder / f"{_file_name(method)}-{number}.json"
    trainer = "trl" if method == PLAIN else options.trainer
    words = [sys.executable, program, options.recipe, "--stages", "grpo", "--trainer", trainer, *METHODS[method]]
    words += ["--no-dropout", "--model", model, "--out", out]
    for name in PASSED:
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", value]
    words += ["--smoke"] if options.smoke else []
    words += [] if number else ["--gradients", folder / f"{_file_name(method)}.safetensors"]
    subprocess.run([str(word) for word in words], check=False)
    stage: dict[str, Any] = read_json(out)["stages"]["grpo"] if out.is_file() else {"state": "failed"}
    return stage


def _figures(method: str, found: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> dict[str, Any]:
    own, plain = found[method], found[PLAIN]
    reference = WHOLE if method.startswith("equal") else WITHOUT
    figures: dict[str, Any] = dict(own[0].get("work") or {})
    timed = [(a["seconds_a_step"], b["seconds_a_step"]) for a, b in zip(plain, own, strict=True) if _timed(a, b)]
    if timed:
        figures["seconds"] = statistics.median(seconds for _, seconds in timed)
        figures["speed"] = statistics.median(a / b for a, b in timed)
    figures["reserved_gib"] = own[0].get("reserved_gib")
    pairs = list(zip(own[0].get("completions", ()), found[reference][0].get("completions", ()), strict=False))
    figures["equal_completions"] = statistics.mean(a == b for a, b in pairs) if pairs else None
    if pairs and all(a == b for a, b in pairs):
        figures["gradient"], figures["gradient_l2"] = _gradient_difference(folder, method, reference)
    return figures


def _timed(*stages: Mapping[str, Any]) -> bool:
    return all(stage.get("seconds_a_step") for stage in stages)


def _gradient_difference(folder: Path, method: str, reference: str) -> tuple[float, float]:
    from safetensors.torch import load_file

    from tests.helpers.grpo_steps import difference

    found, expected = (load_file(folder / f"{_file_name(name)}.safetensors") for name in (method, reference))
    return difference(found, expected)


def _file_name(method: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in method)


def _show(table: Mapping[str, Mapping[str, Any]]) -> None:
    columns = {
        "gflop_rollout": "14.1f",
        "gflop_update": "13.1f",
        "images": "7.1f",
        "seconds": "8.2f",
        "speed": "6.2f",
        "reserved_gib": "13.2f",
        "equal_completions": "18.2f",
        "gradient": "9.1e",
        "gradient_l2": "12.1e",
    }
    widths = {name: int(form.partition(".")[0]) for name, form in columns.items()}
    print(f"{'':<24}" + "".join(f"{name:>{width}} " for name, width in widths.items()))
    for method, figures in table.items():
        values = {name: figures.get(name) for name in columns}
        cells = [f"{'-' if v is None else format(v, columns[name]):>{widths[name]}} " for name, v in values.items()]
        print(f"{method:<24}" + "".join(cells), flush=True)
