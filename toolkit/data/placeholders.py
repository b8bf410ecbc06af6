"""Placeholders of images in the texts of a prompt: ``<image>``, and ``<image 2>`` with the number of the image.

Images without placeholders come first. With placeholders, every image is at the place of its placeholder.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.data.sample import Sample, Turn
from toolkit.errors import RowProblem

if TYPE_CHECKING:
    from toolkit.data.task import Task

PLACEHOLDER = re.compile(r"<image(?: (\d+))?>")
"""``<image>`` is the next image of the row. ``<image 2>`` is the second one, as in MMMU (arXiv 2311.16502)."""

_OTHERS = re.compile(
    r"<img>[^<]*</img>|<\|?(?:image|img)(?:[_ ]?\d+|_(?:pad|placeholder|context|soft_token)|here)?\|?>"
    r"|<\|?(?:vision_start|vision_end|start_of_image|end_of_image)\|?>",
    re.IGNORECASE,
)
"""Images in texts of Qwen-VL, InternVL, Gemma, Phi and others, and the placeholders above in capitals."""

_NOT_READ = re.compile(r"<\|?(?:video|audio)(?:_pad)?\|?>|<(?:bbox|ref-object)>(?![^<]*</)", re.IGNORECASE)
"""Placeholders of ms-swift, LLaMA-Factory and Qwen-VL for content of other columns that is not read.

A tag that encloses a text, such as ``<bbox>[1, 2, 3, 4]</bbox>``, is none.
"""


def check_placeholders(text: str) -> None:
    """Check that a text has no placeholder of another model, which would be text in the prompt or in the target.

    Raises:
        RowProblem: it has one, such as ``<img>``, ``<image_1>``, ``<IMAGE>``, ``<video>`` or ``<bbox>``.
    """
    if (unread := _NOT_READ.search(text)) is not None:
        rule = "a text must not have a placeholder of a video, an audio or a box, because only images are inserted"
        remedy = "Write the box as text, or remove the row."
        raise RowProblem("data.placeholder_not_read", rule, value=unread[0], remedy=remedy)
    other = next((one[0] for one in _OTHERS.finditer(text) if not PLACEHOLDER.fullmatch(one[0])), None)
    if other is not None:
        rule = "the place of an image must be <image> or <image 2>"
        remedy = "Replace it by <image>, and name the image in the column images."
        raise RowProblem("data.placeholder_unknown", rule, value=other, remedy=remedy)


def prompt_turns(task: "Task", sample: Sample) -> tuple[Turn, ...]:
    """Return the turns before the answer: those of a conversation, otherwise one user turn with the question."""
    return task.turns(sample) if task.turns else (Turn("user", task.question(sample)),)


def split_at_images(text: str) -> Iterator[str | None]:
    """Yield the parts of a text that are not empty, with None for each image.

    >>> list(split_at_images("2023: <image> 2024: <image 2>"))
    ['2023: ', None, ' 2024: ', None]
    """
    end = 0
    for found in PLACEHOLDER.finditer(text):
        if found.start() > end:
            yield text[end : found.start()]
        yield None
        end = found.end()
    if end < len(text):
        yield text[end:]


def place_images(task: "Task", sample: Sample, context: Sequence[str] = (), numbered: int = 0) -> Sample:
    """Return the sample with its images in the order of the placeholders in its prompt.

    An image whose number is repeated is shown again. A sample without placeholders is returned unchanged.

    Args:
        task: the task of the sample.
        sample: the sample. Its images are in the order of the row.
        context: columns for the prompt, which precede the question.
        numbered: number of columns image_1, image_2, … with one image each. An image of them without a placeholder is
            not shown if the placeholders have numbers, as in the protocol of MMMU. 0: the row has other columns.

    Raises:
        RowProblem: the placeholders do not match the images, or one is not in a user turn or of another model.
    """
    answers = [text for text in sample.reference.values() if isinstance(text, str)]
    shown = [text for name in context if isinstance(text := sample.fields.get(name), str)]
    turns = prompt_turns(task, sample)
    # Nearly all rows have none, and this comparison is much faster than a search.
    if not any("<" in text for text in (*shown, *answers, *(turn.text for turn in turns))):
        return sample
    for text in (*shown, *answers, *(turn.text for turn in turns)):
        check_placeholders(text)
    options = sample.fields.get("options")
    in_prompt = set(options.values()) if isinstance(options, Mapping) else set()  # an option of MMMU can be an image
    others = [(turn.role, turn.text) for turn in turns if turn.role != "user"]
    others += [("answer", text) for text in answers if text not in in_prompt]
    for place, text in others:
        if found := PLACEHOLDER.search(text):
            rule = "an image placeholder must be in a user turn"
            remedy = "Move it into a user turn, or remove it."
            raise RowProblem("data.image_outside_user_turn", rule, place=place, value=found[0], remedy=remedy)
    numbers = [found[1] for text in (*shown, *(turn.text for turn in turns)) for found in PLACEHOLDER.finditer(text)]
    if not numbers:
        return sample
    order = _order(numbers, len(sample.images), numbered == len(sample.images))
    return replace(sample, images=tuple(sample.images[index] for index in order))


def _order(numbers: Sequence[str | None], images: int, name_columns: bool) -> list[int]:
    """Return the index of the image at each placeholder, whose numbers are None for ``<image>``.

    If numbers name columns, some images need no placeholder.
    """
    plain = numbers.count(None)
    order = list(range(len(numbers))) if plain else [int(number or 0) - 1 for number in numbers]
    if plain not in (0, len(numbers)):
        rule = "image placeholders must all be numbered, or none of them"
        raise RowProblem("data.image_placeholders_mixed", rule, value=_shown(numbers), remedy="Write all of one kind.")
    is_complete = set(order) == set(range(images))
    if not is_complete and not (name_columns and not plain and set(order) < set(range(images))):
        rule = "the image placeholders in the prompt must match the images of the row"
        remedy = "Correct the placeholders or the images. A row without placeholders shows its images first."
        value = f"{_shown(numbers)} for {images} {'image' if images == 1 else 'images'}"
        raise RowProblem("data.image_placeholders_mismatch", rule, value=value, remedy=remedy)
    return order


def _shown(numbers: Sequence[str | None]) -> str:
    return " ".join("<image>" if number is None else f"<image {number}>" for number in numbers)
