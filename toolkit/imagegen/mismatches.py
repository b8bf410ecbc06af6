"""Prompts that do not belong to an image: what teaches a policy that agreement is about the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from toolkit.errors import DataError


@dataclass(frozen=True, slots=True)
class Mismatches:
    """One mismatched prompt per row.

    Attributes:
        prompts: A prompt of each row whose text differs from the row's own.
        same_modality: Whether each prompt is one of the row's modality.
        without_same: Rows that should have had a prompt of their modality, which has no other text. They got a prompt
            of another modality.
    """

    prompts: tuple[str, ...]
    same_modality: tuple[bool, ...]
    without_same: int


class MismatchPool:
    """The distinct prompts of some rows, to draw mismatches from.

    Two prompts are the same text if they differ only in case and spaces.

    Raises:
        DataError: There is only one distinct prompt.
    """

    def __init__(self, prompts: Sequence[str], modalities: Sequence[str]) -> None:
        self._by_text = {plain_text(prompt): prompt for prompt in reversed(prompts)}
        if len(self._by_text) < 2:
            raise DataError(
                "imagegen.prompts_too_few",
                "the policy must have ratings of at least 2 distinct prompts",
                place="prompt",
                value=next(iter(self._by_text.values()), ""),
                remedy="Add ratings of images with other prompts, or remove the policy from the recipe.",
            )
        texts: dict[str, set[str]] = {}
        for prompt, modality in zip(prompts, modalities, strict=True):
            texts.setdefault(modality, set()).add(plain_text(prompt))
        # Sorted, so that a seed gives the same draws whatever the order of the rows.
        self._same = {modality: sorted(found) for modality, found in texts.items()}
        self._other = {modality: sorted(set(self._by_text) - found) for modality, found in texts.items()}

    @property
    def distinct(self) -> tuple[str, ...]:
        """The distinct prompts, sorted by text."""
        return tuple(self._by_text[text] for text in sorted(self._by_text))

    def draw(self, prompts: Sequence[str], modalities: Sequence[str], generator: torch.Generator) -> Mismatches:
        """Draw a mismatch for each row, for half of the rows (rounded down) one of the same modality.

        Prompts of the other half are of another modality. If no other modality has another text, they are of the same.
        Distinct texts are equally likely.
        """
        order = torch.randperm(len(prompts), generator=generator).tolist()
        hard = set(order[: len(prompts) // 2])
        picks = torch.rand(len(prompts), generator=generator).tolist()
        drawn, same, without = [], [], 0
        for row, (prompt, modality, pick) in enumerate(zip(prompts, modalities, picks, strict=True)):
            near = self._others(self._same.get(modality, []), prompt)
            far = self._others(self._other.get(modality, sorted(self._by_text)), prompt)
            is_same = bool(near) and (row in hard or not far)
            without += row in hard and not near
            choices = near if is_same else far
            drawn.append(self._by_text[choices[int(pick * len(choices))]])
            same.append(is_same)
        return Mismatches(tuple(drawn), tuple(same), without)

    @staticmethod
    def _others(texts: Sequence[str], prompt: str) -> list[str]:
        own = plain_text(prompt)
        return [text for text in texts if text != own]


def plain_text(prompt: str) -> str:
    """Return the text by which prompts are compared.

    >>> plain_text("Chest  CT: Nodule ")
    'chest ct: nodule'
    """
    return " ".join(prompt.split()).casefold()
