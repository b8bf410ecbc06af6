"""Rendered rows: the text that the model reads, with the supervised part marked."""

from collections.abc import Iterator, Sequence

from toolkit.data.sample import Sample
from toolkit.images import ImageStore
from toolkit.models.chat_template import show_supervised
from toolkit.models.collate import collate
from toolkit.models.hf import HfBackend
from toolkit.models.lengths import check_no_special_tokens, prompt_texts, special_tokens
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe


def render_samples(recipe: Recipe, samples: Sequence[Sample], images: ImageStore) -> Iterator[tuple[str, str]]:
    """Yield id and text of each row, with the supervised part between ⟦ and ⟧. No model is loaded.

    Raises:
        ModelError: The processor is not available.
        DataError: A row contains a special token of the model.
    """
    policy = HfBackend().load_without_model(recipe)  # all backends use this processor
    prompts = Prompts.of(recipe, images)
    special = special_tokens(policy.processor)
    for sample in samples:
        check_no_special_tokens(prompt_texts(sample, prompts, with_answer=True), special, sample.id)
        batch = collate(policy, [prompts.row(sample, answer=True)])
        yield sample.id, show_supervised(policy.processor, batch["input_ids"][0].tolist(), batch["labels"][0].tolist())
