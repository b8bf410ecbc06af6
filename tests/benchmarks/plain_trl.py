"""The training benchmarks' recipe on synthetic data, and the same training as a plain TRL script."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from tests.helpers.recipes import make_recipe
from tests.helpers.training import Tables
from toolkit.models.backend import Policy, RowSource, TrainingJob
from toolkit.models.families import LAYERS
from toolkit.models.hf import make_policy
from toolkit.recipe import Lora, Recipe
from toolkit.runfolder import Progress

transformers_logging.set_verbosity_error()  # transformers warns about aligned special tokens in each plain script
transformers_logging.disable_progress_bar()


def bench_recipe(folder: Path, tables: Tables) -> Recipe:
    """Return a recipe of SFT and GRPO without checkpoints. ``tables`` replaces keys."""
    base: dict[str, dict[str, Any]] = {
        "run": {"name": "bench", "folder": folder / "runs", "checkpoint_steps": 1_000_000},
        "lora": {"r": 16, "alpha": 32},
        "data": {"task": "mcq"},
        "sft": {"gradient_checkpointing": False},
        "grpo": {"gradient_checkpointing": False},
    }
    for table, keys in tables.items():
        base.setdefault(table, {}).update(keys)
    return make_recipe(base)


def plain_model(source: str, lora: Lora, seed: int, **options: Any) -> Any:
    """Return the model with LoRA on the language model's layers, as a script would load it."""
    model = AutoModelForImageTextToText.from_pretrained(source, **options)
    torch.manual_seed(seed)
    layers = rf".*language_model.*\.({'|'.join(LAYERS)})"
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def plain_policy(source: str) -> Policy:
    """Return the processor, with the end of turn as EOS, which every GRPO script needs."""
    return make_policy(None, AutoProcessor.from_pretrained(source), None)


def plain_sft(model: Any, processor: Any, job: TrainingJob, settings: Mapping[str, Any]) -> SFTTrainer:
    """Return TRL's trainer with TRL's own collator over rows whose images are opened when a batch needs them."""

    def columns(batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        rows = [job.rows(index) for index in batch["index"]]
        return {
            "images": [row.images for row in rows],
            "prompt": [row.messages for row in rows],
            "completion": [_assistant(row.answer) for row in rows],
        }

    return SFTTrainer(
        model=model,
        args=SFTConfig(**settings),
        train_dataset=_lazy(job.count, columns),
        processing_class=processor,
        callbacks=list(job.callbacks),
    )


def plain_grpo(
    model: Any, processor: Any, job: TrainingJob, settings: Mapping[str, Any], reward: Callable[..., list[float]]
) -> GRPOTrainer:
    """Return TRL's trainer with TRL's own processing over the same rows."""

    def columns(batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        rows = [job.rows(index) for index in batch["index"]]
        return {"images": [row.images for row in rows], "prompt": [row.messages for row in rows]}

    return GRPOTrainer(
        model=model,
        reward_funcs=[reward],
        args=GRPOConfig(**settings),
        train_dataset=_lazy(job.count, columns),
        processing_class=processor,
        callbacks=list(job.callbacks),
    )


class StepTimes(TrainerCallback):
    """Measures the time from the end of one optimizer step to the end of the next, with the loading of the batch.

    ``seconds`` is wall-clock time. ``cpu`` is the CPU time of this process, which other processes disturb less.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self._last: tuple[float, float] | None = None

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.seconds.append(now[0] - self._last[0])
            self.cpu.append(now[1] - self._last[1])
        self._last = now


class ReportSteps(TrainerCallback):
    """Calls ``progress`` after each optimizer step of a stage, as the toolkit's own stages do."""

    def __init__(self, stage: str, progress: Progress) -> None:
        self.stage, self.progress = stage, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress(self.stage, state.global_step, state.max_steps)


def timed(trainer: Any) -> StepTimes:
    """Train and return the times of each step but the first. Exit if there was no second step."""
    times = StepTimes()
    trainer.add_callback(times)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if not times.seconds:
        sys.exit("a round ended before its second step: give at least two --steps, and start again if it was stopped")
    return times


def plain_rows(rows: RowSource) -> RowSource:
    """Return the rows without the keys by which our processor caches images."""

    def row(index: int) -> Any:
        opened = rows(index)
        for image in opened.images:
            image.info.clear()
        return opened

    return row


def _lazy(count: int, columns: Callable[[Mapping[str, list[int]]], dict[str, list[Any]]]) -> Any:
    return datasets.Dataset.from_dict({"index": list(range(count))}).with_transform(columns)


def _assistant(text: str | None) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
