"""Images of a finished run as PNG files, with a table of how each was generated."""

import csv
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from toolkit.errors import DataError
from toolkit.imagegen.ddim import DdimSchedule, make_schedule
from toolkit.imagegen.finished import FinishedRun, load_base, load_selector, prompts_by_modality, use_method
from toolkit.imagegen.generator import Generator
from toolkit.imagegen.sampling import generate
from toolkit.imagegen.selector import Selector
from toolkit.recipe.imagegen import Imagegen
from toolkit.runfolder import Progress, StopRequest, no_progress, write_text

TABLE = "images.csv"
NOTICE = "Synthetic image, generated for research. Not for diagnosis."


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """The images to generate.

    Attributes:
        prompts: each with its modality, or with an empty one if that is not known.
        count: images of each prompt.
        best_of: images generated for each file. Only the one with the highest selector score is kept.
        seed: of the noise. The same request gives the same images.
        method: ``base``, or a finished method of the run.
    """

    prompts: tuple[tuple[str, str], ...]
    count: int
    best_of: int
    seed: int
    method: str

    def __post_init__(self) -> None:
        """Check ranges."""
        if min(self.count, self.best_of) < 1 or not self.prompts:
            raise ValueError("a request must have a prompt, and at least one image")


@dataclass(frozen=True, slots=True)
class GeneratedFile:
    """One row of the table.

    Attributes:
        image_path: relative to the folder.
        prompt: what it was generated for.
        modality: of the prompt. Empty: not known.
        method: as in ``ImageRequest``.
        seed: as in ``ImageRequest``.
        noise: number of the noise, with which the seed gives this image again.
        selector_score: from 0 to 1. The reward contains the selector, so that it is no evidence of quality.
        candidates: images among which this one has the highest selector score.
    """

    image_path: str
    prompt: str
    modality: str
    method: str
    seed: int
    noise: int
    selector_score: float
    candidates: int


def find_prompts(finished: FinishedRun, prompts: Sequence[str], modality: str | None) -> tuple[tuple[str, str], ...]:
    """Return prompts with their modality.

    Args:
        finished: the run.
        prompts: the user's. Empty: the run's own prompts of the modality.
        modality: one of the recipe's modalities. None: not known.

    Raises:
        DataError: the modality is unknown or has no prompt, or a prompt is empty.
    """
    known = finished.section.modalities
    if modality is not None and modality not in known:
        remedy = "Choose one of them, or train with imagegen.modalities that has it."
        raise DataError(
            "imagegen.modality_unknown",
            f"the modality must be one of {', '.join(known)}",
            place="--modality",
            value=modality,
            remedy=remedy,
        )
    if any(not prompt.strip() for prompt in prompts):
        raise DataError(
            "imagegen.prompt_empty", "a prompt must be text", place="--prompt", value="", remedy="Describe the image."
        )
    if prompts:
        return tuple((prompt.strip(), modality or "") for prompt in prompts)
    own = prompts_by_modality(finished).get(modality, ()) if modality else ()
    if not own:
        rule = "there must be a prompt"
        remedy = "Give --prompt, or --modality with one of the modalities of the run's prompts."
        raise DataError("imagegen.prompts_missing", rule, place="--prompt", value=modality or "none", remedy=remedy)
    return tuple((prompt, modality or "") for prompt in own)


def write_images(
    finished: FinishedRun, request: ImageRequest, folder: Path, stop: StopRequest, progress: Progress = no_progress
) -> tuple[GeneratedFile, ...]:
    """Generate the images into a folder that is new or empty, and return the rows of its table.

    Args:
        finished: the run.
        request: what to generate.
        folder: complete at the end. After an error or a signal it is as it was before.
        stop: looked at between batches.
        progress: called after each batch.

    Raises:
        DataError: the folder has files, or a prompt is too long or has a word that the generator does not know.
        ModelError: the base cannot be loaded, or is another one.
        RunError: the method has not finished.
        Interrupted: a signal came.
    """
    finished.require(request.method)
    folder = folder.absolute()
    check_folder(folder)
    generator = load_base(finished)
    generator.check_prompts([prompt for prompt, _ in request.prompts])
    use_method(finished, generator, request.method)
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        (work / "images").mkdir(parents=True)
        sampler = _Sampler(generator, load_selector(finished), finished.section, request)
        total, files = len(request.prompts) * request.count, list[GeneratedFile]()
        while len(files) < total:
            stop.check("no file was written")
            files += sampler.write(work, len(files), min(sampler.step, total - len(files)))
            progress("images", len(files), total)
        write_text(work / TABLE, _table(files))
        if folder.is_dir():
            folder.rmdir()
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return tuple(files)


def check_folder(folder: Path) -> None:
    """Check that nothing would be overwritten.

    Raises:
        DataError: the folder has files, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            "imagegen.folder_not_empty",
            "the folder must be absent or empty",
            place=folder,
            remedy="Choose another folder.",
        )


def to_pixels(images_NCHW: Tensor) -> NDArray[np.uint8]:
    """Return pixels_NHWC of images in [0, 1]."""
    rounded_NHWC = (images_NCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    pixels: NDArray[np.uint8] = rounded_NHWC.numpy()
    return pixels


@dataclass(frozen=True, slots=True, eq=False)
class _Sampler:
    """A generator with the selector that scores its images."""

    generator: Generator
    selector: Selector
    section: Imagegen
    request: ImageRequest

    @property
    def step(self) -> int:
        """Files that are written at a time."""
        return max(1, self.section.generator.batch_size // self.request.best_of)

    @property
    def schedule(self) -> DdimSchedule:
        """The steps of an image, as in the run's evaluations."""
        return make_schedule(self.generator.scheduler, self.section.generator.steps)

    def write(self, work: Path, first: int, count: int) -> list[GeneratedFile]:
        """Generate and write the files ``first`` to ``first + count - 1``."""
        request, best_of = self.request, self.request.best_of
        wanted = [request.prompts[number // request.count] for number in range(first, first + count)]
        repeated = [prompt for prompt, _ in wanted for _ in range(best_of)]
        batch_size = self.section.generator.batch_size
        images = generate(self.generator, self.schedule, repeated, request.seed, batch_size, first * best_of)
        pixels = to_pixels(images)
        # Of the pixels in the file, which are rounded.
        scores_NB = self.selector.score(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).scores_N.reshape(
            -1, best_of
        )
        files = []
        for row, ((prompt, modality), best) in enumerate(zip(wanted, scores_NB.argmax(dim=1).tolist(), strict=True)):
            name, noise = f"images/{first + row:05}.png", (first + row) * best_of + best
            score = round(float(scores_NB[row, best]), 6)
            _save(work / name, pixels[row * best_of + best])
            files.append(GeneratedFile(name, prompt, modality, request.method, request.seed, noise, score, best_of))
        return files


def _save(path: Path, pixels_HWC: NDArray[np.uint8]) -> None:
    """Write a PNG that says in its metadata that it is synthetic."""
    info = PngInfo()
    info.add_text("Comment", NOTICE)
    Image.fromarray(pixels_HWC).save(path, "PNG", pnginfo=info)


def _table(files: Sequence[GeneratedFile]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(GeneratedFile)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(file) for file in files)
    return text.getvalue()
