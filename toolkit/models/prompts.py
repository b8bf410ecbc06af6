"""From a Sample to what the model sees: the same text and the same pictures in every stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.data.sample import Sample
from toolkit.data.task import Task
from toolkit.images import ImageStore
from toolkit.models import chat_template
from toolkit.models.backend import Row, RowSource
from toolkit.models.image_ids import mark
from toolkit.recipe import Prompt, Recipe
from toolkit.tasks import TASKS


@dataclass(frozen=True, slots=True)
class Prompts:
    """Puts the questions of one task, with the recipe's prompt section and picture store."""

    task: Task
    prompt: Prompt
    images: ImageStore

    @classmethod
    def of(cls, recipe: Recipe, images: ImageStore) -> "Prompts":
        """The prompts of a recipe."""
        return cls(TASKS[recipe.dataset.task], recipe.prompt, images)

    def text(self, sample: Sample) -> str:
        """Context that the recipe names, the question, the instruction; nothing of the reference."""
        context = [f"{name}: {sample.fields[name]}" for name in self.prompt.context if sample.fields.get(name)]
        instruction = self.task.instruction(sample) if self.prompt.instruction is None else self.prompt.instruction
        return "\n".join(part for part in (*context, self.task.question(sample), instruction) if part)

    def messages(self, sample: Sample) -> list[chat_template.Message]:
        """The conversation, with a placeholder for each picture."""
        return chat_template.conversation(self.text(sample), len(sample.images), self.prompt.system)

    def row(self, sample: Sample, *, answer: bool = False) -> Row:
        """The conversation and its opened pictures; with the reference answer for SFT."""
        pictures = [mark(self.images.get(ref), f"{ref.path}#{ref.part}") for ref in sample.images]
        return Row(self.messages(sample), pictures, self.task.target(sample) if answer else None)

    def rows(self, samples: Sequence[Sample], *, answer: bool = False) -> RowSource:
        """Row number -> row, opened when asked for."""
        return lambda number: self.row(samples[number], answer=answer)
