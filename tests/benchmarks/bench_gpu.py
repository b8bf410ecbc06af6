"""SFT and GRPO steps of models of the real size on a CUDA device, against a plain TRL script.

    python tests/benchmarks/bench_gpu.py [medgemma_4b qwen2_5_vl_3b] [--precision 4bit] [--steps 4] [--side 896]

Nothing is downloaded: a configuration of toolkit/plan/shapes gets random weights, which take the time and memory of
trained ones. Their answers never end, so each runs to the token limit. MedGemma goes with the tiny model's tokenizer at
896 pixels and 256 tokens a picture; Qwen with a processor in ../shared/data/processors.tar.gz (or TOOLKIT_SHARED_DATA).
Needs 10 GB of disk for a model of 4B, 20 GB for one of 8B. Prints a table, then one JSON object; ends with 1 where
nothing could be measured. ``--smoke`` runs the same code with a model of a few layers, on any device.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rival import context_of, make_recipe, plain_grpo, plain_model, plain_policy, plain_rows, plain_sft, timed
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    Gemma3Processor,
)

from toolkit import tiny
from toolkit.backends.base import Completion, Judge, TrainingJob
from toolkit.backends.hf import HfBackend
from toolkit.backends.settings import grpo_settings, sft_settings
from toolkit.stages.context import Context
from toolkit.stages.prompts import Prompts

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "toolkit/plan/shapes"
DEFAULT = ("medgemma_4b", "qwen2_5_vl_3b")
SHARED_DATA = Path(os.environ.get("TOOLKIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
CUDA = torch.cuda.is_available()
SMOKE: Mapping[str, Mapping[str, Any]] = {
    "": {"mm_tokens_per_image": 16},
    "text_config": {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    },
    "vision_config": {
        "num_hidden_layers": 1,
        "depth": 1,
        "fullatt_block_indexes": [0],
        "hidden_size": 64,
        "out_hidden_size": 128,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_heads": 4,
        "image_size": 112,
    },
}
"""Part of a configuration -> what makes it small, where it has such a field."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a median step, and GiB at most in use on the device (None: no CUDA)."""

    sft_step: float
    sft_peak: float | None
    grpo_step: float
    grpo_peak: float | None


def build(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Write the model with random weights of 16 bits, and its processor, as the Hub would hold them."""
    fields = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    if options.smoke:
        for part, smaller in SMOKE.items():
            target = fields[part] if part else fields
            target |= {key: value for key, value in smaller.items() if key in target}
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
    processor = processor_of(fields["model_type"], folder.parent, config)
    if fields["model_type"] == "gemma3":  # the tiny model's tokenizer has its own numbers for the tokens of a picture
        for name in ("boi", "eoi", "image"):
            setattr(config, f"{name}_token_index", getattr(processor.tokenizer, f"{name}_token_id"))
        config.eos_token_id = processor.tokenizer.eos_token_id
    torch.manual_seed(0)
    with torch.device("cuda" if CUDA else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    release()


def processor_of(model_type: str, folder: Path, config: Any) -> Any:
    if model_type == "gemma3":
        processor = AutoProcessor.from_pretrained(tiny.FOLDER)
        side = config.vision_config.image_size
        processor.image_processor.size = {"height": side, "width": side}
        return Gemma3Processor(
            processor.image_processor,
            processor.tokenizer,
            chat_template=processor.chat_template,
            image_seq_length=config.mm_tokens_per_image,
        )
    with tarfile.open(SHARED_DATA / "processors.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    kept = model_type if model_type == "qwen3_vl" else "qwen2_vl"
    return AutoProcessor.from_pretrained(folder / "processors" / kept)


def score(
    numbers: Sequence[int], completions: Sequence[Completion]
) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
    return [{"length": min(len(one.text), 500) / 500} for one in completions], {}


def length(completions: list[Any], **_: Any) -> list[float]:
    return [min(len(one[0]["content"]), 500) / 500 for one in completions]


def jobs(context: Context) -> tuple[TrainingJob, TrainingJob]:
    """What SFT and GRPO work on."""
    prompts, samples = Prompts.of(context.recipe, context.images), context.data.train
    sft = TrainingJob(context.recipe, prompts.rows(samples, answer=True), len(samples), context.run.stage_folder("sft"))
    grpo = replace(sft, rows=prompts.rows(samples), folder=context.run.stage_folder("grpo"))
    return sft, replace(grpo, judge=Judge({"length": 1.0}, score))


def ours(context: Context, source: str) -> Cost:
    backend, (sft, grpo) = HfBackend(), jobs(context)
    policy = backend.load(context.recipe, None, trainable=True)
    return cost(lambda: backend.sft_trainer(policy, sft), lambda: backend.grpo_trainer(policy, grpo))


def plain(context: Context, source: str) -> Cost:
    recipe, (sft, grpo) = context.recipe, jobs(context)
    model = plain_model(source, recipe.lora, recipe.run.seed, **loading(recipe.model.precision))
    policy = plain_policy(source)
    sft, grpo = (replace(job, rows=plain_rows(job.rows)) for job in (sft, grpo))
    return cost(
        lambda: plain_sft(model, policy.processor, sft, sft_settings(sft)),
        lambda: plain_grpo(model, policy.processor, grpo, grpo_settings(policy, grpo), length),
    )


WAYS: Mapping[str, Callable[[Context, str], Cost]] = {"plain TRL": plain, "toolkit": ours}


def loading(precision: str) -> dict[str, Any]:
    """What a script gives from_pretrained for this precision."""
    if not CUDA:
        return {"dtype": torch.float32}
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device_map": {"": torch.cuda.current_device()}}
    if precision == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return options


def cost(make_sft: Callable[[], Any], make_grpo: Callable[[], Any]) -> Cost:
    """Train both, one after the other, on the same model."""
    return Cost(*train(make_sft), *train(make_grpo))


def train(make: Callable[[], Any]) -> tuple[float, float | None]:
    """Seconds of a median step but the first, and the peak in GiB."""
    release()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(timed(make()).seconds)
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if CUDA else None


def release() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def tables(source: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The settings of recipes/medgemma_sft_grpo.toml for a few steps."""
    steps = {"max_steps": options.steps, "gradient_checkpointing": not options.smoke}
    optimizer = {"optimizer": "paged_adamw_8bit" if CUDA else "adamw_torch"}
    completion = {"max_completion_tokens": 8 if options.smoke else 128}
    return {
        "model": {"name": str(source), "precision": options.precision if CUDA else "32bit"},
        "lora": {"dropout": 0.05},
        "data": {"phantom": {"kind": "chest", "train": 8 * options.steps + 8, "test": 2, "size": 1024}},
        "images": {"max_side": 112 if options.smoke else options.side, "disk_cache": False},
        "sft": {"batch_size": 1, "accumulation": 8, **steps, **optimizer},
        "grpo": {"prompts_per_step": 2, "generations": 4, "micro_batch": 1, **steps, **optimizer, **completion},
    }


def measure(name: str, options: argparse.Namespace) -> dict[str, Cost]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / name
        started = time.perf_counter()
        build(name, folder, options)
        print(f"{name}: written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        with context_of(make_recipe(Path(place), tables(folder, options))) as context:
            return {way: work(context, str(folder)) for way, work in WAYS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(file.stem for file in CONFIGS.glob("*.json"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: {' '.join(DEFAULT)}")
    parser.add_argument("--precision", choices=["4bit", "8bit", "16bit"], default="4bit")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--side", type=int, default=896)
    parser.add_argument("--smoke", action="store_true", help="a few layers, on any device: does it run?")
    options = parser.parse_args()
    if not CUDA and not options.smoke:
        print("a CUDA device is needed (or --smoke)", file=sys.stderr)
        return 1
    costs = {name: measure(name, options) for name in options.names or DEFAULT}
    device = torch.cuda.get_device_name() if CUDA else "cpu"
    print(f"{'model':<16} {'way':<10} {'SFT step':>9} {'peak':>9} {'GRPO step':>10} {'peak':>9}   on {device}")
    for name, ways in costs.items():
        for way, found in ways.items():
            peaks = [f"{peak:.1f} GiB" if peak is not None else "-" for peak in (found.sft_peak, found.grpo_peak)]
            print(f"{name:<16} {way:<10} {found.sft_step:>8.2f}s {peaks[0]:>9} {found.grpo_step:>9.2f}s {peaks[1]:>9}")
    results = {name: {way: asdict(found) for way, found in ways.items()} for name, ways in costs.items()}
    settings = {"device": device, "precision": options.precision, "steps": options.steps, "smoke": options.smoke}
    print(json.dumps({"benchmark": Path(__file__).stem, **settings, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
