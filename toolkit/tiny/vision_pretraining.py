"""Pretrain the vision tower of the tiny model: linear heads predict labels from its image tokens, and are then dropped.

Text supervision alone trains a vision tower slowly, because for a long time guessing frequent answers works as well.
"""

import logging
import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import cross_entropy, l1_loss
from transformers import Gemma3ForConditionalGeneration

from toolkit.tiny.build import IMAGE_TOKENS, WIDTH
from toolkit.tiny.curriculum import ImageLabels
from toolkit.tiny.curriculum_loader import CurriculumLoader

log = logging.getLogger(__name__)

LEARNING_RATE = 1e-3
NUMBERS_WEIGHT = 8.0
"""Loss weight of the L1 error of numbers in [0, 1], relative to the cross-entropy of a class."""


def pretrain_vision(model: Gemma3ForConditionalGeneration, loader: CurriculumLoader, steps: int) -> None:
    """Train the vision tower and the projector to predict classes, boxes and coverage maps of each domain."""
    heads = nn.ModuleDict(
        {name: nn.Linear(WIDTH * IMAGE_TOKENS, _outputs(labels)) for name, labels in loader.label_examples().items()}
    )
    trained = [*vision_parameters(model), *heads.parameters()]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    for step in range(steps):
        losses: Mapping[str, torch.Tensor] = {
            domain.name: _loss(heads[domain.name](image_tokens(model, pixels).flatten(1)), label_examples)
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


def lr_factor(step: int, steps: int, warmup: int = 100) -> float:
    """Return the factor on the learning rate at a step, in [0, 1]: linear warm-up, then cosine decay to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _outputs(labels: ImageLabels) -> int:
    return sum(count for _, count in labels.classes) + len(labels.numbers)


def vision_parameters(model: Gemma3ForConditionalGeneration) -> list[nn.Parameter]:
    """Return the parameters of the vision tower and the projector."""
    return [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]


def image_tokens(model: Gemma3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return the image tokens that the language model receives, shape (images, image tokens, width)."""
    tokens: torch.Tensor = model.get_image_features(pixels).pooler_output
    return tokens


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
