"""SFT and GRPO steps of models of the real size on a CUDA device, three ways: with Unsloth, with hf, and as plain TRL.

    python tests/benchmarks/bench_gpu.py [medgemma_4b qwen2_5_vl_3b] [--steps 4] [--out gpu.json]

Nothing is downloaded: a configuration of toolkit/plan/shapes gets random weights, which take the time and memory of
trained ones. Their answers never end, so each runs to the token limit: 128 and 512 tokens, 4 for each of 2 prompts. A
MedGemma picture has 896 x 896 pixels and 256 tokens, a Qwen picture about 1,003,520 pixels. Each way runs in a process
of its own, since Unsloth rewrites TRL, and so that memory is its own; the first step of a training is left out. Plain
TRL is a script with 4-bit transformers, peft and TRL's own collator. Needs 10 GB of disk for a model of 4B. Prints a
table and one JSON object; ends with 1 where nothing could be measured. ``--smoke`` runs the same code with a model of a
few layers on any device, without Unsloth where there is no CUDA device.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

if TYPE_CHECKING:
    from toolkit.backends.base import TrainingJob
    from toolkit.stages.context import Context

DEFAULT = ("medgemma_4b", "qwen2_5_vl_3b")
WAYS = ("unsloth", "hf", "plain TRL")
SHARED_DATA = Path(os.environ.get("TOOLKIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
SIDE = {"medgemma_4b": 896}
"""Longest side of a picture in pixels; of others ``SQUARE``."""
SQUARE = 1002
"""1002 x 1002 is Qwen's 1,003,520 pixels."""
TOKENS = (128, 512)
PROMPTS, GENERATIONS, ACCUMULATION = 2, 4, 8


@dataclass(frozen=True)
class Cost:
    """A training's median step but the first.

    ``seconds``, of which ``data_wait`` for rows and pictures; ``tokens`` a second: SFT's prompt and answer tokens,
    GRPO's written ones; ``reserved``: GiB at most that torch held of the device (None: no CUDA); ``estimated``: what
    `toolkit plan` tells for it, CUDA's own memory left out, which torch does not reserve.
    """

    seconds: float
    tokens: float
    data_wait: float
    reserved: float | None
    estimated: float | None = None


def measure(way: str, name: str, model: Path, options: argparse.Namespace) -> dict[str, Cost]:
    """In a process of its own: SFT, then GRPO with each number of tokens, on the same model."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if way == "unsloth":
            from toolkit.backends.unsloth.start import start

            start(folder)
        from rival import context_of, make_recipe

        found: dict[str, Cost] = {}
        for limit in (4,) if options.smoke else TOKENS:
            recipe = make_recipe(folder / str(limit), tables(way, name, model, limit, options))
            with context_of(recipe) as context:
                sft, grpo = trainers(way, context, str(model))
                if not found:
                    found["SFT"] = replace(train(sft), estimated=estimate(recipe, "sft"))
                found[f"GRPO {limit}"] = replace(train(grpo), estimated=estimate(recipe, "grpo"))
        return found


def estimate(recipe: Any, stage: str) -> float | None:
    """GiB that a plan tells for a stage on a card with bfloat16, without CUDA's own."""
    from toolkit.cli.plan import make
    from toolkit.plan import described_gpu

    memory = make(recipe, described_gpu(80)).memory
    return None if memory is None or stage not in memory else memory[stage].estimate.peak.reserved / 2**30


def tables(way: str, name: str, model: Path, limit: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The settings of recipes/medgemma_sft_grpo.toml for a few steps."""
    cuda = has_cuda()
    common = {
        "max_steps": options.steps,
        "gradient_checkpointing": not options.smoke,
        "optimizer": "paged_adamw_8bit" if cuda else "adamw_torch",
    }
    grpo = {"prompts_per_step": PROMPTS, "generations": GENERATIONS, "micro_batch": 1, "max_completion_tokens": limit}
    return {
        "model": {
            "name": str(model),
            "precision": "4bit" if cuda else "32bit",
            "backend": "unsloth" if way == "unsloth" else "hf",
        },
        "lora": {"dropout": 0.0},
        "data": {"phantom": {"kind": "chest", "train": ACCUMULATION * options.steps + 8, "test": 2, "size": 1024}},
        "images": {"max_side": 112 if options.smoke else SIDE.get(name, SQUARE), "disk_cache": False},
        "sft": {"batch_size": 1, "accumulation": ACCUMULATION, **common},
        "grpo": {**grpo, **common},
    }


def trainers(way: str, context: "Context", source: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What builds the two trainers of a way, on one model."""
    from toolkit.backends import choose_backend

    recipe, (sft, grpo) = context.recipe, jobs(context)
    if way != "plain TRL":
        backend = choose_backend(recipe.model)
        policy = backend.load(recipe, None, trainable=True)
        return lambda: backend.sft_trainer(policy, sft), lambda: backend.grpo_trainer(policy, grpo)
    from rival import plain_grpo, plain_model, plain_policy, plain_rows, plain_sft

    from toolkit.backends.settings import grpo_settings, sft_settings

    model = plain_model(source, recipe.lora, recipe.run.seed, **loading())
    reader = plain_policy(source)
    sft, grpo = (replace(job, rows=plain_rows(job.rows)) for job in (sft, grpo))
    return (
        lambda: plain_sft(model, reader.processor, sft, sft_settings(sft)),
        lambda: plain_grpo(model, reader.processor, grpo, grpo_settings(reader, grpo), length),
    )


def jobs(context: "Context") -> tuple["TrainingJob", "TrainingJob"]:
    """What SFT and GRPO work on."""
    from toolkit.backends.base import Judge, TrainingJob
    from toolkit.stages.prompts import Prompts

    prompts, samples = Prompts.of(context.recipe, context.images), context.data.train
    sft = TrainingJob(context.recipe, prompts.rows(samples, answer=True), len(samples), context.run.stage_folder("sft"))
    grpo = replace(sft, rows=prompts.rows(samples), folder=context.run.stage_folder("grpo"))
    return sft, replace(grpo, judge=Judge({"length": 1.0}, score))


def score(numbers: Sequence[int], completions: Sequence[Any]) -> tuple[list[dict[str, float]], dict[str, float]]:
    return [{"length": min(len(one.text), 500) / 500} for one in completions], {}


def length(completions: list[Any], **_: Any) -> list[float]:
    return [min(len(one[0]["content"]), 500) / 500 for one in completions]


def loading() -> dict[str, Any]:
    """What a script gives from_pretrained for four bits."""
    import torch
    from transformers import BitsAndBytesConfig

    if not has_cuda():
        return {"dtype": torch.float32}
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {
        "dtype": torch.bfloat16,
        "device_map": {"": torch.cuda.current_device()},
        "quantization_config": quantisation,
    }


def train(make: Callable[[], Any]) -> Cost:
    """Build, train, and give the median step's cost."""
    import torch
    from rival import timed
    from shapes import release

    release()
    if has_cuda():
        torch.cuda.reset_peak_memory_stats()
    trainer = make()
    waits, trained = watch(trainer)
    steps = timed(trainer).seconds
    seconds = statistics.median(steps)
    written = [line["completions/mean_length"] for line in trainer.state.log_history if "reward" in line]
    a_step = statistics.median(written) * PROMPTS * GENERATIONS if written else sum(trained) / trainer.state.global_step
    reserved = torch.cuda.max_memory_reserved() / 2**30 if has_cuda() else None
    return Cost(seconds, a_step / seconds, statistics.median(waits[1:]), reserved)


def watch(trainer: Any) -> tuple[list[float], list[int]]:
    """Seconds that each step waits for its rows, and the tokens of each pass that is trained on."""
    import torch

    waits: list[float] = []
    trained: list[int] = []
    fetch = trainer.get_batch_samples

    def timed_fetch(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        found = fetch(*args, **options)
        waits.append(time.perf_counter() - started)
        return found

    def count(module: Any, args: Any, fields: Mapping[str, Any]) -> None:
        if torch.is_grad_enabled() and fields.get("input_ids") is not None:
            trained.append(fields["input_ids"].numel())

    trainer.get_batch_samples = timed_fetch
    trainer.model.register_forward_pre_hook(count, with_kwargs=True)
    return waits, trained


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def compare(name: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Write the model once and run every way on it, each in a process of its own."""
    from shapes import write_model

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / name
        started = time.perf_counter()
        write_model(name, model, SHARED_DATA, small=options.smoke)
        print(f"{name}: written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        for way in WAYS:
            if way == "unsloth" and not has_cuda():
                print(f"{name}: Unsloth is left out: there is no CUDA device", file=sys.stderr)
                continue
            command = [sys.executable, __file__, name, "--way", way, "--model", str(model)]
            command += ["--steps", str(options.steps), *(["--smoke"] if options.smoke else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{name}, {way}: ended with {done.returncode}", file=sys.stderr)
                continue
            found[way] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(results: Mapping[str, Mapping[str, Mapping[str, Any]]], device: str) -> None:
    """The table."""
    head = f"{'model':<16}{'training':<11}{'way':<11}{'step':>9}{'tokens/s':>10}{'reserved':>11}"
    print(f"{head}{'estimated':>11}{'data wait':>11}   on {device}")
    for name, ways in results.items():
        for way, trainings in ways.items():
            for training, cost in trainings.items():
                held = f"{cost['reserved']:.1f} GiB" if cost["reserved"] is not None else "-"
                told = f"{cost['estimated']:.1f} GiB" if cost["estimated"] is not None else "-"
                line = f"{name:<16}{training:<11}{way:<11}{cost['seconds']:>8.2f}s{cost['tokens']:>10.1f}"
                print(f"{line}{held:>11}{told:>11}{cost['data_wait']:>10.3f}s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(file.stem for file in (ROOT / "toolkit/plan/shapes").glob("*.json"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: {' '.join(DEFAULT)}")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write the JSON object there too")
    parser.add_argument("--smoke", action="store_true", help="a few layers, on any device: does it run?")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        found = measure(options.way, options.names[0], options.model, options)
        print(json.dumps({training: asdict(cost) for training, cost in found.items()}))
        return 0
    if not has_cuda() and not options.smoke:
        print("a CUDA device is needed (or --smoke)", file=sys.stderr)
        return 1
    import torch

    results = {name: compare(name, options) for name in options.names or DEFAULT}
    device = torch.cuda.get_device_name() if has_cuda() else "cpu"
    show(results, device)
    settings = {"device": device, "torch": torch.__version__, "steps": options.steps, "smoke": options.smoke}
    text = json.dumps({"benchmark": Path(__file__).stem, **settings, "results": results})
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
