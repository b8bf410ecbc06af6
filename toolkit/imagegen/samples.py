"""Samples: a few images of each evaluation, which a report shows beside each other.

All evaluations have the same prompts and noise, so the images of one prompt differ only by what the generator learned.
A file has the images of one evaluation in a row, and their prompts as a text chunk.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from toolkit.errors import warn
from toolkit.identifiers import open_private
from toolkit.images.header import MALFORMED_BY_PILLOW, open_with_pillow
from toolkit.runfolder import RunFolder, replace_file

FOLDER = "samples"
MOST = 8
"""Images of an evaluation that are kept. The first ones have different prompts, if there are as many."""

SIDE = 128
"""Largest side of a kept image in pixels."""

PROMPTS = "prompts"
"""The text chunk with the prompts, as a JSON list."""

Pixels = NDArray[np.uint8]


def save_samples(run: RunFolder, arm: str, name: str, images_NHWC: Pixels, prompts: Sequence[str]) -> None:
    """Save images as ``stages/<arm>/samples/<name>.png``, atomically and readable only by the owner.

    Args:
        run: the run.
        arm: base, control, sft or ddpo.
        name: the evaluation, such as ``table`` or ``round-003``.
        images_NHWC: RGB images of equal size.
        prompts: the prompt of each image.
    """
    images = [Image.fromarray(pixels) for pixels in images_NHWC]
    for image in images:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(images), height))
    for number, image in enumerate(images):
        strip.paste(image, (number * width, 0))
    info = PngInfo()
    info.add_itxt(PROMPTS, json.dumps(list(prompts), ensure_ascii=False))
    file = run.stage_folder(arm) / FOLDER / f"{name}.png"
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with os.fdopen(open_private(temporary), "wb") as stream:
        strip.save(stream, "PNG", pnginfo=info)
    replace_file(temporary, file)


def read_samples(run: RunFolder, arm: str) -> dict[str, list[tuple[str, Image.Image]]]:
    """Return name of an evaluation -> prompt and image of each sample, sorted by name.

    A damaged file is left out with a warning.
    """
    found = {}
    for file in sorted((run.path / "stages" / arm / FOLDER).glob("*.png")):
        try:
            found[file.stem] = _read(file)
        except MALFORMED_BY_PILLOW as error:
            rule = "samples of an evaluation must be complete, and are left out"
            remedy = f"Delete the file if the run of {run.name} is to be reported without them."
            warn("imagegen.samples_damaged", rule, place=file, value=type(error).__name__, remedy=remedy)
    return found


def _read(file: Path) -> list[tuple[str, Image.Image]]:
    with file.open("rb") as stream, open_with_pillow(stream) as opened:
        strip: Any = opened
        prompts = [str(prompt) for prompt in json.loads(strip.text[PROMPTS])]
        image = opened.convert("RGB")
    width, left = divmod(image.width, len(prompts))
    if left:
        raise ValueError(f"{image.width} pixels are not {len(prompts)} images")
    return [
        (prompt, image.crop((number * width, 0, (number + 1) * width, image.height)))
        for number, prompt in enumerate(prompts)
    ]
