"""Prompts: from a Sample to the text and images for the model, which are the same in every stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from toolkit.data.sample import Sample
from toolkit.data.task import Task
from toolkit.images import ImageStore
from toolkit.models import chat_template
from toolkit.models.backend import Row, RowSource
from toolkit.recipe import Prompt, Recipe
from toolkit.tasks import TASKS

IMAGE_KEY = "toolkit_key"
"""Key of an image's identity in ``Image.info``, which survives a deep copy. Processed images are cached by it."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a task, with the prompt section and the image store of a recipe."""

    task: Task
    prompt: Prompt
    images: ImageStore

    @classmethod
    def of(cls, recipe: Recipe, images: ImageStore) -> "Prompts":
        """Return the prompts of a recipe."""
        return cls(TASKS[recipe.data.task], recipe.prompt, images)

    def text(self, sample: Sample) -> str:
        """Return the context, the question and the instruction. The text never contains the reference."""
        context = [f"{name}: {sample.fields[name]}" for name in self.prompt.context if sample.fields.get(name)]
        instruction = self.task.instruction(sample) if self.prompt.instruction is None else self.prompt.instruction
        return "\n".join(part for part in (*context, self.task.question(sample), instruction) if part)

    def messages(self, sample: Sample) -> list[chat_template.Message]:
        """Return the conversation, with a placeholder for each image."""
        return chat_template.conversation(self.text(sample), len(sample.images), self.prompt.system)

    def row(self, sample: Sample, *, answer: bool = False) -> Row:
        """Return the conversation and its opened images, for SFT with the reference answer."""
        images = [set_image_key(self.images.get(ref), f"{ref.path}#{ref.part}") for ref in sample.images]
        return Row(self.messages(sample), images, self.task.target(sample) if answer else None)

    def rows(self, samples: Sequence[Sample], *, answer: bool = False) -> RowSource:
        """Return a function from a row number to the row, whose images are opened on each call."""
        return lambda number: self.row(samples[number], answer=answer)


def set_image_key(image: Image.Image, key: str) -> Image.Image:
    """Store the identity of an image in the image, and return it."""
    image.info[IMAGE_KEY] = key
    return image
