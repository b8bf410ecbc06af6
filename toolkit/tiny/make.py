"""Build the tiny model: train its tokenizer, its vision tower and its text output, and save it with the Hub's names.

python -m toolkit.tiny.make [--out FOLDER] [--seeing-steps N] [--steps N] [--seed N] [--images N]
"""

import argparse
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor

from toolkit.tiny import FOLDER
from toolkit.tiny.build import build_model, build_processor
from toolkit.tiny.curriculum import FIRST
from toolkit.tiny.curriculum_loader import CurriculumLoader
from toolkit.tiny.vision_pretraining import lr_factor, pretrain_vision, vision_parameters

log = logging.getLogger(__name__)

LEARNING_RATE = 2.5e-3
VISION_LR_FACTOR = 0.1
"""Factor on ``LEARNING_RATE`` for the pretrained vision parameters. Early gradients from untrained text are noise."""


def main() -> None:
    """Train the model and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seeing-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--images", type=int, default=24_000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        processor = build_processor(Path(folder), FIRST, np.random.default_rng(options.seed))
        model = build_model(processor.tokenizer)
        loader = CurriculumLoader(processor, options.images, options.seed)
        pretrain_vision(model, loader, options.seeing_steps)
        train(model, loader, options.steps)
        save(model, processor, Path(folder), options.out)


def train(model: Gemma3ForConditionalGeneration, loader: CurriculumLoader, steps: int) -> None:
    """Train all parameters with AdamW, warm-up and cosine decay. The loss covers only the answers."""
    vision = vision_parameters(model)
    vision_ids = {id(parameter) for parameter in vision}
    language = [parameter for parameter in model.parameters() if id(parameter) not in vision_ids]
    groups: list[dict[str, Any]] = [{"params": language}, {"params": vision, "lr": VISION_LR_FACTOR * LEARNING_RATE}]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    model.train()
    for step, batches in zip(range(steps), loader.batches(), strict=False):
        losses = []
        for weight, batch in batches:
            loss = model(**batch).loss
            (weight * loss).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            log.info("step %d: loss %s", step, ", ".join(f"{loss:.3f}" for loss in losses))


def save(model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, spm: Path, out: Path) -> None:
    """Save bfloat16 weights under the Hub's tensor names, the processor and the SentencePiece model."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        model.eval().to(torch.bfloat16).save_pretrained(folder)
        weights = Path(folder) / "model.safetensors"
        tensors = {_hub_name(name): tensor for name, tensor in load_file(weights).items()}
        save_file(tensors, weights, {"format": "pt"})
        processor.save_pretrained(folder)
        shutil.copy(spm / "tokenizer.model", folder)
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(folder, out)


def _hub_name(name: str) -> str:
    """Return the Hub's name: transformers 5 drops ``vision_model`` if it builds a model from a configuration."""
    if "vision_tower." in name and "vision_tower.vision_model." not in name:
        return name.replace("vision_tower.", "vision_tower.vision_model.")
    return name


if __name__ == "__main__":
    main()
