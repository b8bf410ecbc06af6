"""Train the tiny model that ships in ``toolkit/tiny/model``: tokenizer, vision tower, language model.

    python -m tests.tiny_training.make [--out FOLDER] [--seeing-steps N] [--steps N] [--seed N] [--images N]

Linear heads first pretrain the vision tower: they predict labels from its image tokens, and are then discarded. Text
supervision alone trains a vision tower slowly, because for a long time guessing frequent answers works as well.
"""

import argparse
import logging
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, l1_loss
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor

from tests.tiny_training.build import IMAGE_TOKENS, WIDTH, build_model, build_processor
from tests.tiny_training.curriculum import FIRST
from tests.tiny_training.loader import CurriculumLoader
from tests.tiny_training.turns import ImageLabels
from toolkit.tiny import FOLDER

log = logging.getLogger(__name__)

VISION_LEARNING_RATE = 1e-3
"""Learning rate of the vision pretraining."""
NUMBERS_WEIGHT = 8.0
"""Loss weight of the L1 error of numbers in [0, 1], relative to the cross-entropy of a class."""
LEARNING_RATE = 2.5e-3
VISION_LR_FACTOR = 0.1
"""Factor on ``LEARNING_RATE`` for the pretrained vision parameters. Early gradients from untrained text are noise."""


def main() -> None:
    """Train the model and save it. The shipped weights come from the default options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seeing-steps", type=int, default=2400)
    parser.add_argument("--steps", type=int, default=900)
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


def pretrain_vision(model: Gemma3ForConditionalGeneration, loader: CurriculumLoader, steps: int) -> None:
    """Train the vision tower and the projector to predict classes, boxes and coverage maps of each domain."""
    heads = nn.ModuleDict(
        {name: nn.Linear(WIDTH * IMAGE_TOKENS, _outputs(labels)) for name, labels in loader.label_examples().items()}
    )
    trained = [*vision_parameters(model), *heads.parameters()]
    optimizer = torch.optim.AdamW(trained, VISION_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    for step in range(steps):
        losses: Mapping[str, torch.Tensor] = {
            domain.name: domain.weight
            * _loss(heads[domain.name](image_tokens(model, pixels).flatten(1)), label_examples)
            for domain, pixels, label_examples in loader.images()
        }
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            log.info(
                "vision pretraining, step %d: %s",
                step,
                ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()),
            )


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


def lr_factor(step: int, steps: int, warmup: int = 100) -> float:
    """Return the factor on the learning rate at a step, in [0, 1]: linear warm-up, then cosine decay to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def vision_parameters(model: Gemma3ForConditionalGeneration) -> list[nn.Parameter]:
    """Return the parameters of the vision tower and the projector."""
    return [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]


def image_tokens(model: Gemma3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return the image tokens that the language model receives, shape (images, image tokens, width)."""
    tokens: torch.Tensor = model.get_image_features(pixels).pooler_output
    return tokens


def _outputs(labels: ImageLabels) -> int:
    return sum(count for _, count in labels.classes) + len(labels.numbers)


def _loss(read: torch.Tensor, label_examples: list[ImageLabels]) -> torch.Tensor:
    loss, at = torch.zeros(()), 0
    for number, (_, count) in enumerate(label_examples[0].classes):
        right = torch.tensor([labels.classes[number][0] for labels in label_examples])
        loss = loss + cross_entropy(read[:, at : at + count], right)
        at += count
    if label_examples[0].numbers:
        right = torch.tensor([labels.numbers for labels in label_examples])
        loss = loss + NUMBERS_WEIGHT * l1_loss(read[:, at:], right)
    return loss


def _hub_name(name: str) -> str:
    """Return the Hub's name: transformers 5 drops ``vision_model`` if it builds a model from a configuration."""
    if "vision_tower." in name and "vision_tower.vision_model." not in name:
        return name.replace("vision_tower.", "vision_tower.vision_model.")
    return name


if __name__ == "__main__":
    main()
