"""Prompts: from a Sample to the text and images for the model, which are the same in every stage.

This module does not import transformers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from PIL import Image

from toolkit.data.placeholders import prompt_turns, split_at_images
from toolkit.data.sample import Preference, Sample, Turn
from toolkit.data.task import Task
from toolkit.errors import DataError
from toolkit.images import ImageStore
from toolkit.models import chat_template
from toolkit.models.backend import Row, RowSource
from toolkit.models.image_tokens import special_pattern
from toolkit.models.messages import Message, messages_of
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
        return cls(TASKS[recipe.dataset.task], recipe.prompt, images)

    def text(self, sample: Sample) -> str:
        """Return the context, the question and the instruction. The text never contains the reference.

        Of a conversation, it has the text of all turns.
        """
        return "\n".join(turn.text for turn in self.turns(sample))

    def turns(self, sample: Sample) -> list[Turn]:
        """Return the turns before the answer, without the recipe's system prompt.

        The context precedes the first user turn, and the instruction follows the last one.
        """
        turns = list(prompt_turns(self.task, sample))
        users = [number for number, turn in enumerate(turns) if turn.role == "user"]
        context = [f"{name}: {sample.fields[name]}" for name in self.prompt.context if sample.fields.get(name)]
        instruction = self.task.instruction(sample) if self.prompt.instruction is None else self.prompt.instruction
        turns[users[-1]] = _user_turn(turns[users[-1]].text, instruction)
        turns[users[0]] = _user_turn(*context, turns[users[0]].text)
        return turns

    def messages(self, sample: Sample) -> list[Message]:
        """Return the conversation, with a placeholder for each image."""
        system = [Turn("system", self.prompt.system)] if self.prompt.system else []
        return messages_of([*system, *self.turns(sample)], len(sample.images))

    def of_pair(self, answer: Literal["chosen", "rejected"]) -> "Prompts":
        """Return the same prompts with one of the two answers of a preference as the answer."""
        task = replace(self.task, target=lambda sample: getattr(preference_of(sample), answer))
        return replace(self, task=task)

    def pairs(self, samples: Sequence[Sample]) -> RowSource:
        """Return a function from a row number to the row with both answers, whose images are opened on each call."""

        def row(number: int) -> Row:
            answers = preference_of(samples[number])
            return replace(self.row(samples[number]), answer=answers.chosen, rejected=answers.rejected)

        return row

    def row(self, sample: Sample, *, answer: bool = False) -> Row:
        """Return the conversation and its opened images, for SFT with the reference answer."""
        images = [set_image_key(self.images.get(ref), f"{ref.path}#{ref.part}") for ref in sample.images]
        return Row(self.messages(sample), images, self.task.target(sample) if answer else None)

    def rows(self, samples: Sequence[Sample], *, answer: bool = False) -> RowSource:
        """Return a function from a row number to the row, whose images are opened on each call."""
        return lambda number: self.row(samples[number], answer=answer)


def preference_of(sample: Sample) -> Preference:
    """Return the two answers of a training row.

    Raises:
        DataError: The row was read without them.
    """
    if sample.preference is None:
        rule, remedy = "a row for DPO must have a chosen and a rejected answer", "Set dpo.rejected."
        raise DataError("data.preference_missing", rule, place=sample.shown, remedy=remedy)
    return sample.preference


def _user_turn(*parts: str) -> Turn:
    return Turn("user", "\n".join(part for part in parts if part))


def set_image_key(image: Image.Image, key: str) -> Image.Image:
    """Store the identity of an image in the image, and return it."""
    image.info[IMAGE_KEY] = key
    return image


def render_samples(recipe: Recipe, samples: Sequence[Sample], images: ImageStore) -> Iterator[tuple[str, str]]:
    """Yield id and text of each row, with the supervised part between ⟦ and ⟧. No model is loaded.

    Raises:
        ModelError: The processor is not available.
        DataError: A row contains a special token of the model.
    """
    from toolkit.models.collate import collate  # these modules import transformers
    from toolkit.models.hf import HfBackend

    policy = HfBackend().load_without_model(recipe)  # all backends use this processor
    prompts = Prompts.of(recipe, images)
    special = special_tokens(policy.processor)
    for sample in samples:
        check_no_special_tokens(prompt_texts(sample, prompts, with_answer=True), special, sample.shown)
        batch = collate(policy, [prompts.row(sample, answer=True)])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        yield sample.id, chat_template.show_supervised(policy.processor, ids, labels)


def special_tokens(processor: Any) -> re.Pattern[str]:
    """Return a pattern that matches the model's special tokens."""
    return re.compile(special_pattern(processor))


def prompt_texts(sample: Sample, prompts: Prompts, *, with_answer: bool) -> list[str]:
    """Return the texts of a row that the model reads, with the reference answer for SFT.

    Placeholders of images are left out, because ``<image>`` is also a special token of some models.
    """
    texts = [str(sample.fields.get(name, "")) for name in prompts.prompt.context]
    texts += [turn.text for turn in prompt_turns(prompts.task, sample)]
    texts = [part for text in texts for part in split_at_images(text) if part is not None]
    return [*texts, prompts.task.target(sample)] if with_answer else texts


def check_no_special_tokens(texts: Sequence[str], special: re.Pattern[str], place: str) -> None:
    """Check that texts contain no special token, which the model would read as a turn or an image.

    Raises:
        DataError: One of the texts contains a special token.
    """
    if found := special.search("\n".join(texts)):
        raise DataError(
            "data.special_token_in_text",
            "text must not contain special tokens of the model, which would read as a turn or an image",
            place=place,
            value=found[0],
            remedy="Remove the token.",
        )
