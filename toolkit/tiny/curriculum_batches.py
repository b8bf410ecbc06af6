"""Lessons as batches: every picture drawn once, asked about anew each time it comes."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import cv2
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Gemma3Processor

from toolkit.synthetic.lesion_shapes import Bytes
from toolkit.tiny.build import SIDE
from toolkit.tiny.curriculum import FIRST, SUBJECTS, Drawing, ImageLabels, QuestionAnswer, Subject

BATCH = 64

Batch = dict[str, torch.Tensor]


class CurriculumLoader:
    """Pictures of every subject, and batches of lessons about them."""

    def __init__(self, processor: Gemma3Processor, pictures: int, seed: int) -> None:
        self._processor = processor
        self._rng = np.random.default_rng(seed)
        self._drawings = {subject: _draw(subject, round(pictures * subject.weight), seed) for subject in SUBJECTS}

    def batches(self) -> Iterator[list[tuple[float, Batch]]]:
        """Without end: for each step a batch of each subject and its weight, which sum to 1.

        A subject has batches of its own, since its lessons are about as long as each other.
        """
        while True:
            yield [(subject.weight, self._batch(subject)) for subject in SUBJECTS]

    def pictures(self) -> Iterator[tuple[Subject, torch.Tensor, list[ImageLabels]]]:
        """For one step a batch of each subject's pictures, as the model takes them, with their truth."""
        for subject in SUBJECTS:
            chosen = self._choose(subject)
            yield subject, _light([one.pixels for one in chosen]), [one.truth for one in chosen]

    def truths(self) -> Mapping[str, ImageLabels]:
        """Name of a subject -> the truth of one of its pictures."""
        return {subject.name: drawings[0].truth for subject, drawings in self._drawings.items()}

    def _choose(self, subject: Subject) -> list[Drawing]:
        drawings = self._drawings[subject]
        return [drawings[i] for i in self._rng.integers(len(drawings), size=round(BATCH * subject.weight))]

    def _batch(self, subject: Subject) -> Batch:
        chosen = self._choose(subject)
        lessons = [[one.lesson(self._rng) for _ in range(subject.turns)] for one in chosen]
        return collate(self._processor, lessons, [one.pixels for one in chosen])


def collate(
    processor: Gemma3Processor, conversations: Sequence[Sequence[QuestionAnswer]], pixels: Sequence[Bytes]
) -> Batch:
    """Conversations about a picture each, as the model takes them; labels are on the answers and their turns' ends."""
    pairs = [_tokens(processor, lessons) for lessons in conversations]
    ids = pad_sequence([row for row, _ in pairs], batch_first=True, padding_value=0)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": pad_sequence([labels for _, labels in pairs], batch_first=True, padding_value=-100),
        "token_type_ids": (ids == processor.tokenizer.image_token_id).long(),
        "pixel_values": _light(pixels),
    }


def _light(pixels: Sequence[Bytes]) -> torch.Tensor:
    """Pictures x 3 x side x side, -1 to 1."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _tokens(processor: Gemma3Processor, lessons: Sequence[QuestionAnswer]) -> tuple[torch.Tensor, torch.Tensor]:
    ids: list[int] = []
    labels: list[int] = []
    head = f"<bos><start_of_turn>user\n{processor.full_image_sequence}"
    for question, answer in lessons:
        prompt = f"{head}{question}<end_of_turn>\n<start_of_turn>model\n"
        asked, told = (
            processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, f"{answer}<end_of_turn>")
        )
        ids += asked + told
        labels += [-100] * len(asked) + told
        head = "\n<start_of_turn>user\n"
    return torch.tensor(ids), torch.tensor(labels)


def _draw(subject: Subject, count: int, seed: int) -> list[Drawing]:
    """So many pictures of a subject, as the model sees them."""
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(_small, subject, seed), range(FIRST, FIRST + count), chunksize=64))


def _small(subject: Subject, seed: int, number: int) -> Drawing:
    drawn = subject.draw(seed, number)
    return drawn._replace(pixels=cv2.resize(drawn.pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
