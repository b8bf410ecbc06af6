"""The tiny model learns to see before it learns to talk: heads that are thrown away read truth off its image tokens.

Words alone teach a vision tower slowly: for a long time a model does as well by guessing what is frequent.
"""

import logging
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import cross_entropy, l1_loss
from transformers import Gemma3ForConditionalGeneration

from toolkit.tiny.build import IMAGE_TOKENS, WIDTH
from toolkit.tiny.curriculum import ImageLabels
from toolkit.tiny.curriculum_batches import CurriculumLoader
from toolkit.tiny.schedule import rate

log = logging.getLogger(__name__)

LEARNING_RATE = 1e-3
NUMBERS_WEIGHT = 8.0
"""Of the mean error of numbers from 0 to 1 beside the cross-entropy of a class."""


def learn_to_see(model: Gemma3ForConditionalGeneration, school: CurriculumLoader, steps: int) -> None:
    """Train the vision tower and the projector on classes, boxes and maps of each subject's pictures."""
    heads = nn.ModuleDict(
        {name: nn.Linear(WIDTH * IMAGE_TOKENS, _outputs(truth)) for name, truth in school.truths().items()}
    )
    trained = [*eyes(model), *heads.parameters()]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    for step in range(steps):
        losses: Mapping[str, torch.Tensor] = {
            subject.name: _loss(heads[subject.name](see(model, pixels).flatten(1)), truths)
            for subject, pixels, truths in school.pictures()
        }
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            log.info("seeing, step %d: %s", step, ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))


def _outputs(truth: ImageLabels) -> int:
    return sum(count for _, count in truth.classes) + len(truth.numbers)


def eyes(model: Gemma3ForConditionalGeneration) -> list[nn.Parameter]:
    """The parameters of the vision tower and the projector."""
    return [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]


def see(model: Gemma3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """The image tokens as the language model gets them: pictures x image tokens x width."""
    tokens: torch.Tensor = model.get_image_features(pixels).pooler_output
    return tokens


def _loss(read: torch.Tensor, truths: list[ImageLabels]) -> torch.Tensor:
    loss, at = torch.zeros(()), 0
    for number, (_, count) in enumerate(truths[0].classes):
        right = torch.tensor([truth.classes[number][0] for truth in truths])
        loss = loss + cross_entropy(read[:, at : at + count], right)
        at += count
    if truths[0].numbers:
        right = torch.tensor([truth.numbers for truth in truths])
        loss = loss + NUMBERS_WEIGHT * l1_loss(read[:, at:], right)
    return loss
