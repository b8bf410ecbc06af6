"""Batches of the curriculum: each image is drawn once and gets new turns whenever it is sampled."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import cv2
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Gemma3Processor

from tests.tiny_training.curriculum import DOMAINS, FIRST
from tests.tiny_training.turns import SIDE, Example, ImageDomain, ImageLabels, QuestionAnswer
from toolkit.synthetic import Bytes

BATCH = 72

Batch = dict[str, torch.Tensor]


class CurriculumLoader:
    """Images of every domain, and batches of turns about them."""

    def __init__(self, processor: Gemma3Processor, images: int, seed: int) -> None:
        self._processor = processor
        self._rng = np.random.default_rng(seed)
        self._drawings = {domain: _draw(domain, round(images * domain.weight), seed) for domain in DOMAINS}

    def batches(self) -> Iterator[list[tuple[float, Batch]]]:
        """Yield for each optimizer step a (weight, batch) of each domain, without end. The weights sum to 1.

        Each domain has its own batches, because its turns have similar lengths.
        """
        while True:
            yield [(domain.weight, self._batch(domain)) for domain in DOMAINS]

    def images(self) -> Iterator[tuple[ImageDomain, torch.Tensor, list[ImageLabels]]]:
        """Yield for one optimizer step a batch of images of each domain and their labels."""
        for domain in DOMAINS:
            chosen = self._choose(domain)
            yield domain, _light([one.pixels for one in chosen]), [one.labels for one in chosen]

    def label_examples(self) -> Mapping[str, ImageLabels]:
        """Return domain name -> the labels of one of its images."""
        return {domain.name: examples[0].labels for domain, examples in self._drawings.items()}

    def _choose(self, domain: ImageDomain) -> list[Example]:
        examples = self._drawings[domain]
        return [examples[i] for i in self._rng.integers(len(examples), size=round(BATCH * domain.weight))]

    def _batch(self, domain: ImageDomain) -> Batch:
        chosen = self._choose(domain)
        turns = [[one.make_turn(self._rng) for _ in range(domain.turns)] for one in chosen]
        return collate(self._processor, turns, [one.pixels for one in chosen])


def collate(
    processor: Gemma3Processor, conversations: Sequence[Sequence[QuestionAnswer]], pixels: Sequence[Bytes]
) -> Batch:
    """Return the model inputs of conversations with one image each. Only answers and their turn ends have labels."""
    pairs = [_tokens(processor, turns) for turns in conversations]
    ids = pad_sequence([row for row, _ in pairs], batch_first=True, padding_value=0)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": pad_sequence([labels for _, labels in pairs], batch_first=True, padding_value=-100),
        "token_type_ids": (ids == processor.tokenizer.image_token_id).long(),
        "pixel_values": _light(pixels),
    }


def _light(pixels: Sequence[Bytes]) -> torch.Tensor:
    """Return shape (images, 3, side, side) with values in [-1, 1]."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _tokens(processor: Gemma3Processor, turns: Sequence[QuestionAnswer]) -> tuple[torch.Tensor, torch.Tensor]:
    ids: list[int] = []
    labels: list[int] = []
    head = f"<bos><start_of_turn>user\n{processor.full_image_sequence}"
    for question, answer in turns:
        prompt = f"{head}{question}<end_of_turn>\n<start_of_turn>model\n"
        prompt_ids, answer_ids = (
            processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, f"{answer}<end_of_turn>")
        )
        ids += prompt_ids + answer_ids
        labels += [-100] * len(prompt_ids) + answer_ids
        head = "\n<start_of_turn>user\n"
    return torch.tensor(ids), torch.tensor(labels)


def _draw(domain: ImageDomain, count: int, seed: int) -> list[Example]:
    """Return ``count`` examples of a domain, at the size that the model receives."""
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(_small, domain, seed), range(FIRST, FIRST + count), chunksize=64))


def _small(domain: ImageDomain, seed: int, number: int) -> Example:
    drawn = domain.draw(seed, number)
    return drawn._replace(pixels=cv2.resize(drawn.pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
