"""Work of a GRPO step: plain TRL, and the toolkit without and with each of its savings.

    python tests/benchmarks/bench_grpo.py [--rounds 3] [--steps 3]

The model is MedGemma 4B's configuration scaled down: 6 layers of width 512, and a vision tower of 6 layers of width 192
on images of 448 pixels, with random float32 parameters. A step has 2 prompts x 4 completions of 32 tokens.

First, each method trains once with torch's FLOP counter. FLOPs and images through the vision tower (with those that
gradient checkpointing repeats) are means of the steps after the first one, which has checks of its own. Gradients are
those of the first step, in which all methods have equal parameters. Then the methods train in turn, without the
counter, and their seconds are compared. Each round has every method once, in alternating order, and the first round
warms up. ``--rounds 0`` counts only. CPU time is compared too, because other processes disturb it less.

Gradients of packed prompts are compared in float64 too, where rounding hides no error. In float32, another order of
sums is another rounding error. Their limit is then twice the rounding error of the toolkit without savings, which is
its difference from float64 (``bench_rounding.py`` has more on this).

For the last two methods, every third group has equal rewards. They are compared with each other only. Gradients of
plain TRL differ from the others because its mask of image tokens is misplaced (``_get_per_token_logps_and_entropies``).

Prints two tables and one JSON object. The exit status is 1 if a limit is missed.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3Processor,
    PrinterCallback,
    TrainerCallback,
)

from tests.benchmarks.plain_trl import bench_recipe, plain_grpo, plain_model, plain_policy, plain_rows, timed
from tests.helpers.grpo_steps import CACHE, PREFILL, SKIPPING, difference, switch_off
from tests.helpers.shapes import SHAPES, release
from tests.helpers.training import Tables, context_of
from toolkit import tiny
from toolkit.evaluation.stage_context import Context
from toolkit.models.backend import Completion, RewardScorer, TrainingJob
from toolkit.models.flops import flop_counter
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.models.vision_cache import find_tower
from toolkit.training.grpo import build_grpo, grpo_settings

PROMPTS, GENERATIONS, TOKENS, SIDE = 2, 4, 32, 448
SCALED: Mapping[str, Mapping[str, Any]] = {
    "": {"mm_tokens_per_image": 64},
    "text_config": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "query_pre_attn_scalar": 128,
        "sliding_window_pattern": 3,
    },
    "vision_config": {
        "hidden_size": 192,
        "intermediate_size": 720,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "image_size": SIDE,
    },
}
"""Part of MedGemma's configuration -> smaller values."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to train.

    Attributes:
        name: Its name in the tables.
        plain: Whether it is a plain TRL script.
        cache: Whether a frozen tower's features are cached.
        prefill: Whether a prompt is computed once per ``generate`` call.
        packing: Whether the completions of a prompt are in one row of the update.
        skip: Whether completions without an advantage are left out of the update.
        equal: Whether every third group has equal rewards.
    """

    name: str
    plain: bool = False
    cache: bool = False
    prefill: bool = False
    packing: bool = False
    skip: bool = False
    equal: bool = False


PLAIN, BASE = Method("plain TRL", plain=True), Method("toolkit without savings")
BOTH = Method("both", cache=True, prefill=True)
PACKED = Method("both, packing", cache=True, prefill=True, packing=True)
WHOLE = Method("equal rewards: both", cache=True, prefill=True, equal=True)
SKIPPED = Method("equal rewards: skipped", cache=True, prefill=True, skip=True, equal=True)
METHODS = (
    PLAIN,
    BASE,
    Method("vision cache", cache=True),
    Method("shared prefill", prefill=True),
    BOTH,
    PACKED,
    WHOLE,
    SKIPPED,
)
LIMITS = {BOTH.name: (2.0, 1.7), PACKED.name: (4.0, 2.8)}
"""Method -> lowest ratios to plain TRL: FLOPs and speed."""
GRADIENT_LIMIT = 1e-6
"""Largest difference of a gradient, relative to the largest gradient of the step."""
Gradients = dict[str, torch.Tensor]


@dataclass
class Counted:
    """What one training did, step by step. FLOPs are those of whole steps, by phase."""

    flops: list[dict[str, float]] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    completions: list[list[str]] = field(default_factory=list)


class Rewards:
    """Rewards by the characters of a completion. ``equal``: every third group has equal ones."""

    def __init__(self, equal: bool) -> None:
        self.equal, self.groups = equal, 0
        self.completions: list[list[str]] = []

    def of(self, texts: Sequence[str]) -> list[float]:
        first, self.groups = self.groups, self.groups + len(texts) // GENERATIONS
        self.completions.append(list(texts))
        return [
            0.5 if self.equal and (first + place // GENERATIONS) % 3 == 1 else (sum(map(ord, text)) % 97) / 97
            for place, text in enumerate(texts)
        ]

    def score(
        self, numbers: Sequence[int], completions: Sequence[Completion]
    ) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
        return [{"characters": value} for value in self.of([one.text for one in completions])], {}

    def plain(self, completions: list[Any], **_: Any) -> list[float]:
        return self.of([one[0]["content"] for one in completions])


class Counter(TrainerCallback):
    """Counts each optimizer step of a trainer. The prefill is the language model's part of it."""

    def __init__(self, trainer: Any) -> None:
        self.found, self._counter = Counted(), flop_counter()
        self._phases, self._before, self._images, self._rollout = {"prefill": 0.0, "rollout": 0.0}, 0.0, 0, False
        generate = trainer._generate_single_turn

        def counted(*args: Any, **options: Any) -> Any:
            with self._phase("rollout"):
                self._rollout = True
                result = generate(*args, **options)
            self._rollout = False
            return result

        trainer._generate_single_turn = counted
        model = trainer.model.get_base_model()
        self._count_prefills(model.get_decoder())
        tower = find_tower(model)
        assert tower is not None
        layer = next(module for name, module in tower.named_modules() if name.endswith("layers.0"))
        layer.register_forward_hook(self._count_images)
        trainer.add_callback(self)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._counter.__enter__()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._counter.__exit__(None, None, None)

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.found.gradients.append(gradients_of(model))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        total = self._counter.get_total_flops()
        whole = total - self._before
        self.found.flops.append({**self._phases, "update": whole - self._phases["rollout"], "step": whole})
        self.found.images.append(self._images)
        self._phases, self._before, self._images = dict.fromkeys(self._phases, 0.0), total, 0

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        before = self._counter.get_total_flops()
        yield
        self._phases[name] += self._counter.get_total_flops() - before

    def _count_prefills(self, decoder: torch.nn.Module) -> None:
        begun: list[float] = []

        def begin(*_: Any) -> None:
            begun.append(self._counter.get_total_flops())

        def end(module: torch.nn.Module, args: Any, output: Any) -> None:
            if self._rollout and output[0].shape[1] > 1:
                self._phases["prefill"] += self._counter.get_total_flops() - begun[-1]

        decoder.register_forward_pre_hook(begin)
        decoder.register_forward_hook(end)

    def _count_images(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._images += len(output if isinstance(output, torch.Tensor) else output[0])


class FirstGradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step, and ends the training after it."""

    gradients: Gradients

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.gradients = gradients_of(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = True


def gradients_of(model: Any) -> Gradients:
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {name: value.grad.clone() for name, value in trained.items()}


def write_scaled_model(folder: Path) -> None:
    """Write the model, with the tiny model's tokenizer and image processor."""
    values = json.loads((SHAPES / "medgemma_4b.json").read_text(encoding="utf-8"))
    for part, smaller in SCALED.items():
        (values[part] if part else values).update(smaller)
    config = CONFIG_MAPPING["gemma3"].from_dict(values)
    known = AutoProcessor.from_pretrained(tiny.FOLDER)
    known.image_processor.size = {"height": SIDE, "width": SIDE}
    processor = Gemma3Processor(
        known.image_processor, known.tokenizer, known.chat_template, image_seq_length=config.mm_tokens_per_image
    )
    for token in ("boi", "eoi", "image"):
        setattr(config, f"{token}_token_index", getattr(processor.tokenizer, f"{token}_token_id"))
    config.eos_token_id = processor.tokenizer.eos_token_id
    config.text_config.vocab_size = len(processor.tokenizer)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    # Gemma 3 initialises the projection with zeros, and images would have no effect.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def build(method: Method, context: Context, rewards: Rewards) -> Any:
    """Return the trainer of a method."""
    recipe = context.recipe
    job = TrainingJob(
        recipe=recipe,
        rows=Prompts.of(recipe, context.images).rows(context.data.train),
        count=len(context.data.train),
        folder=context.run.stage_folder("grpo"),
        scorer=RewardScorer({"characters": 1.0}, rewards.score),
        packing=method.packing,
    )
    if method.plain:
        model = plain_model(recipe.model.name, recipe.lora, recipe.run.seed, dtype=torch.float32)
        policy = plain_policy(recipe.model.name)
        settings = grpo_settings(policy, job)
        return plain_grpo(model, policy.processor, replace(job, rows=plain_rows(job.rows)), settings, rewards.plain)
    backend = HfBackend()
    policy = backend.load(recipe, None, trainable=True)
    trainer = build_grpo(backend, policy, job)
    flags = {CACHE: method.cache, PREFILL: method.prefill, SKIPPING: method.skip}
    switch_off(trainer, policy.model, [saving for saving, on in flags.items() if on])
    return trainer


def count(method: Method, context: Context) -> Counted:
    """Train once with the counter."""
    show(f"counting: {method.name}")
    rewards = Rewards(method.equal)
    trainer = build(method, context, rewards)
    trainer.__dict__.pop("compute_loss", None)  # the toolkit counts the first pass itself: two counters disturb another
    trainer.remove_callback(PrinterCallback)
    found = Counter(trainer).found
    trainer.train()
    del trainer
    release()
    return replace(found, completions=rewards.completions)


@dataclass(frozen=True, slots=True)
class Precise:
    """Differences of the gradients of the first step, as in ``difference``, in float64.

    Attributes:
        packing: With and without packing, both in float64.
        rounding: Float32 and float64, both without packing.
    """

    packing: tuple[float, float]
    rounding: tuple[float, float]


def compare_precisely(context: Context, counted: Counted) -> Precise:
    """Compare float64 with itself, and with the float32 of ``counted``, which has no savings.

    Raises:
        ValueError: The completions differ, so that gradients cannot be compared.
    """
    found = {method.name: precise_gradients(method, context, counted.completions[0]) for method in (BASE, PACKED)}
    base = found[BASE.name]
    return Precise(difference(found[PACKED.name], base), difference(counted.gradients[0], base))


def precise_gradients(method: Method, context: Context, completions: Sequence[str]) -> Gradients:
    """Return the gradients of the first step in float64."""
    show(f"float64: {method.name}")
    rewards, first = Rewards(method.equal), FirstGradients()
    trainer = build(method, context, rewards)
    trainer.model.to(torch.float64)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(first)
    trainer.train()
    del trainer
    release()
    if rewards.completions[0] != list(completions):
        raise ValueError(f"{method.name}: completions in float64 differ from those in float32")
    return first.gradients


def seconds(context: Context, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the median wall and CPU seconds of a step in each round after the first, by method."""
    found: dict[str, list[tuple[float, float]]] = {method.name: [] for method in METHODS}
    for number in range(rounds + 1 if rounds else 0):
        for method in METHODS if number % 2 else reversed(METHODS):  # neither end always comes first
            times = timed(build(method, context, Rewards(method.equal)))
            release()
            wall, cpu = statistics.median(times.seconds), statistics.median(times.cpu)
            show(f"round {number}: {method.name}: {wall:.2f} s, {cpu:.2f} CPU s")
            if number:
                found[method.name].append((wall, cpu))
    return found


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def summary(
    found: Mapping[str, Counted], times: Mapping[str, Sequence[tuple[float, float]]]
) -> dict[str, dict[str, float]]:
    """Return the figures of each method."""
    table = {}
    for method in METHODS:
        counted, reference = found[method.name], found[WHOLE.name if method.equal else BASE.name]
        phases = {name: statistics.mean(step[name] for step in counted.flops[1:]) / 1e9 for name in counted.flops[0]}
        rollouts = zip(counted.completions, reference.completions, strict=True)
        same = [one == other for texts, others in rollouts for one, other in zip(texts, others, strict=True)]
        table[method.name] = {
            **phases,
            "images": statistics.mean(counted.images[1:]),
            **dict(
                zip(("gradient", "gradient_l2"), difference(reference.gradients[0], counted.gradients[0]), strict=True)
            ),
            "completions": statistics.mean(same),
        }
        if own := times[method.name]:
            # The state of the machine is similar for all methods of a round, so the median of ratios is steadier.
            pairs = list(zip(times[PLAIN.name], own, strict=True))
            wall, cpu = (statistics.median(plain[clock] / one[clock] for plain, one in pairs) for clock in (0, 1))
            table[method.name] |= {"seconds": statistics.median(one[0] for one in own), "speed": wall, "cpu": cpu}
    return table


def check(table: Mapping[str, Mapping[str, float]], precise: Precise) -> list[tuple[str, float, float, bool]]:
    """Return each limit: its name, what was measured, the limit, and whether it holds."""
    plain, found = table[PLAIN.name], list[tuple[str, float, float, bool]]()
    for name, (flops, speed) in LIMITS.items():
        ratio = plain["step"] / table[name]["step"]
        found.append((f"{name}: plain TRL's FLOPs / FLOPs", ratio, flops, ratio >= flops))
        if reached := table[name].get("speed"):
            found.append((f"{name}: speed / plain TRL's", reached, speed, reached >= speed))
    prefill = plain["prefill"] / table[BOTH.name]["prefill"]
    exact = abs(prefill - GENERATIONS) < 0.01 * GENERATIONS
    found.append(("plain TRL's prefill FLOPs / FLOPs", prefill, GENERATIONS, exact))
    for method in METHODS:
        if not method.plain:
            limit = 2 * precise.rounding[0] if method.packing else GRADIENT_LIMIT
            gradient = table[method.name]["gradient"]
            found.append((f"{method.name}: difference of gradients", gradient, limit, gradient <= limit))
            same = table[method.name]["completions"]
            found.append((f"{method.name}: fraction of equal completions", same, 1.0, same == 1))
    largest = precise.packing[0]
    name = f"{PACKED.name}: difference of gradients in float64"
    found.append((name, largest, GRADIENT_LIMIT, largest <= GRADIENT_LIMIT))
    return found


def tables(options: argparse.Namespace, model: Path) -> Tables:
    """Return the keys of the recipe that differ from the other training benchmarks."""
    return {
        "run": {"log_steps": 1},
        "model": {"name": str(model), "precision": "32bit"},
        "lora": {"dropout": 0.0},
        "data": {"synthetic": {"kind": "chest", "train": 8 * PROMPTS * options.steps, "test": 2, "size": 512}},
        "images": {"max_side": SIDE},
        "grpo": {
            "max_steps": options.steps,
            "prompts_per_step": PROMPTS,
            "generations": GENERATIONS,
            "micro_batch": PROMPTS * GENERATIONS,
            "max_completion_tokens": TOKENS,
            "gradient_checkpointing": True,
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after the first")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of each training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        write_scaled_model(model)
        with context_of(bench_recipe(Path(name), tables(options, model))) as context:
            counted = {method.name: count(method, context) for method in METHODS}
            precise = compare_precisely(context, counted[BASE.name])
            times = seconds(context, options.rounds)
    return report(summary(counted, times), precise, options)


def report(table: Mapping[str, Mapping[str, float]], precise: Precise, options: argparse.Namespace) -> int:
    print(f"{PROMPTS} prompts x {GENERATIONS} completions of {TOKENS} tokens. GFLOP, images and seconds per step")
    print("speed: plain TRL's seconds / seconds, cpu: the same of CPU time, each the median of rounds")
    columns = {
        "prefill": "8.1f",
        "rollout": "8.1f",
        "update": "8.1f",
        "step": "8.1f",
        "images": "7.0f",
        "gradient": "9.1e",
        "gradient_l2": "12.1e",
        "completions": "12.3f",
        "seconds": "8.2f",
        "speed": "6.2f",
        "cpu": "6.2f",
    }
    widths = {name: form.partition(".")[0] for name, form in columns.items()}
    print(f"{'':<24}" + "".join(f"{name:>{widths[name]}} " for name in columns))
    for name, figures in table.items():
        print(f"{name:<24}" + "".join(f"{figures[key]:>{form}} " for key, form in columns.items() if key in figures))
    limits = check(table, precise)
    print()
    for name, value, limit, holds in limits:
        print(f"{name:<55} {value:>10.3g}   limit {limit:<8.3g} {'ok' if holds else 'MISSED'}")
    passed = all(holds for *_, holds in limits)
    result = {
        "benchmark": Path(__file__).stem,
        "methods": table,
        "limits": [
            {"name": name, "value": value, "limit": limit, "holds": holds} for name, value, limit, holds in limits
        ],
        "float64": asdict(precise),
        "rounds": options.rounds,
        "steps": options.steps,
        "passed": passed,
    }
    print(json.dumps(result))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
