"""Generate images from a finished run as PNG files, with a table of how each was generated."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from toolkit.errors import DataError, ModelError, RunError
from toolkit.imagegen.generators.ddim import DdimSchedule, make_schedule
from toolkit.imagegen.generators.generator import Generator, load_generator
from toolkit.imagegen.generators.lora import reset_lora
from toolkit.imagegen.generators.sampling import generate
from toolkit.imagegen.lora_card import check_lora_file, read_lora_record
from toolkit.imagegen.ratings.load import load_ratings
from toolkit.imagegen.ratings.prepare import SYNTHETIC_FOLDER
from toolkit.imagegen.ratings.sheet import check_folder
from toolkit.imagegen.ratings.synthetic import RATINGS_FILE
from toolkit.imagegen.results import BASE, arm_figures
from toolkit.imagegen.scorers.fitting import load_trained_state
from toolkit.imagegen.scorers.selector import Selector
from toolkit.imagegen.scorers.train_scorers import STAGE, load_trained
from toolkit.imagegen.seeds import seed_of
from toolkit.imagegen.settings import generator_settings, selector_settings
from toolkit.recipe import Recipe, for_image_generators
from toolkit.recipe.imagegen import Imagegen
from toolkit.runfolder import (
    Progress,
    RunFolder,
    StopRequest,
    csv_text,
    find_run,
    new_folder,
    no_progress,
    write_text,
)
from toolkit.tasks import TASKS

TABLE = "images.csv"
NOTICE = "Synthetic image, generated for research. Not for diagnosis."


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run of a recipe with [imagegen], opened to read from."""

    run: RunFolder
    recipe: Recipe
    section: Imagegen

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def methods(self) -> tuple[str, ...]:
        """The base and the recipe's methods."""
        return BASE, *self.section.update.methods

    def require(self, method: str) -> str:
        """Return a method whose generator can be used.

        Raises:
            RunError: the run has no such method, or has not finished it.
        """
        if method not in self.methods:
            rule, remedy = (
                f"the method must be one of this run's, {', '.join(self.methods)}",
                "Choose another --method.",
            )
            raise RunError("imagegen.method_unknown", rule, place=self.run.path, value=method, remedy=remedy)
        for stage in (STAGE, method):
            if not self.run.is_done(stage):
                rule, remedy = f"the stage {stage} of this run must be finished", "Finish the run with toolkit run."
                raise RunError(
                    "imagegen.stage_not_finished", rule, place=self.run.path, value="unfinished", remedy=remedy
                )
        return method

    def best_method(self) -> str:
        """Return the method with the highest mean judge score, the base excepted.

        Raises:
            RunError: a method has not finished, or has no judge score.
        """
        methods = [self.require(method) for method in self.section.update.methods]
        figures = arm_figures(self.run)
        scores = {method: figures[method].metrics.judge.value for method in methods}
        known = {method: score for method, score in scores.items() if score is not None}
        if len(known) < len(scores):
            undefined = ", ".join(method for method in scores if method not in known)
            rule, remedy = "every method must have a judge score to compare", "Name one with --method."
            raise RunError("imagegen.judge_score_undefined", rule, place=self.run.path, value=undefined, remedy=remedy)
        return max(known, key=lambda method: known[method])


def open_finished(path: Path, command: str) -> FinishedRun:
    """Return the run in ``path``.

    Args:
        path: the run folder.
        command: how the user calls it, for the error.

    Raises:
        RunError: no run is there.
        RecipeError: it is the run of a vision-language model.
    """
    run = find_run(path)
    recipe = run.recipe(TASKS)
    return FinishedRun(run, recipe, for_image_generators(recipe, command))


def prompts_by_modality(finished: FinishedRun) -> Mapping[str, tuple[str, ...]]:
    """Return the prompts that the run generates images for: the recipe's, otherwise those of the ratings.

    Raises:
        DataError: the ratings cannot be read.
    """
    section = finished.section
    if section.prompts:
        return section.prompts
    synthetic = (str(finished.run.path / SYNTHETIC_FOLDER / RATINGS_FILE),)
    return load_ratings(section, None if section.synthetic is None else synthetic).prompts


def load_base(finished: FinishedRun) -> Generator:
    """Return the run's base with a LoRA that changes nothing yet.

    Raises:
        ModelError: the base cannot be loaded.
    """
    return load_generator(generator_settings(finished.recipe, finished.device), finished.device)


def use_method(finished: FinishedRun, generator: Generator, method: str) -> None:
    """Set the generator's LoRA to that of a finished method, or for the base to one that changes nothing.

    Raises:
        ModelError: the base is not the one that the LoRA was trained on, or the LoRA was changed or cannot be read.
        RunError: the record of the LoRA is missing.
    """
    if method == BASE:
        reset_lora(generator.network, seed_of(finished.recipe, "generator"))
        return
    record = read_lora_record(finished.run, method)
    if record.base_sha256 != generator.base.sha256:
        rule = "the base must be the one that the LoRA was trained on"
        remedy = f"Restore {record.base} at revision {record.revision or record.base_sha256}."
        raise ModelError(
            "imagegen.base_changed", rule, place="imagegen.generator.model", value=generator.base.name, remedy=remedy
        )
    generator.load_lora(check_lora_file(finished.run.weights_folder(method), record))


def load_selector(finished: FinishedRun) -> Selector:
    """Return the selector after stage 1, in evaluation mode.

    Raises:
        RunError: its file is missing or damaged.
    """
    section = finished.section
    selector = Selector(selector_settings(finished.recipe), len(section.rating_range), section.size)
    # Not through stage_folder, which would make the folder.
    load_trained_state(selector, load_trained(finished.run.path / "stages" / STAGE / "selector.pt").model)
    return selector.to(finished.device).eval()


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """The images to generate.

    Attributes:
        prompts: each with its modality, or with an empty one if that is not known.
        count: images of each prompt.
        best_of: images generated for each file. Only the one with the highest selector score is kept.
        seed: the seed of the noise. The same request gives the same images.
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
        prompt: the prompt of the image.
        modality: the modality of the prompt. Empty: not known.
        method: the method, as in ``ImageRequest``.
        seed: the seed, as in ``ImageRequest``.
        noise: number of the noise, with which the seed gives this image again.
        selector_score: the selector's score, from 0 to 1. It is no evidence of quality, because the reward contains it.
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
        request: the images to generate.
        folder: complete at the end. After an error or a signal it is as it was before.
        stop: checked between batches.
        progress: called after each batch.

    Raises:
        DataError: the folder has files, or a prompt is too long or has a word that the generator does not know.
        ModelError: the base cannot be loaded, or is another one.
        RunError: the method has not finished.
        Interrupted: a signal came.
    """
    finished.require(request.method)
    check_folder(folder)
    generator = load_base(finished)
    generator.check_prompts([prompt for prompt, _ in request.prompts])
    use_method(finished, generator, request.method)
    with new_folder(folder) as work:
        (work / "images").mkdir()
        sampler = _Sampler(generator, load_selector(finished), finished.section, request)
        total, files = len(request.prompts) * request.count, list[GeneratedFile]()
        while len(files) < total:
            stop.check("no file was written")
            files += sampler.write(work, len(files), min(sampler.step, total - len(files)))
            progress("images", len(files), total)
        write_text(work / TABLE, _table(files))
    return tuple(files)


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
    return csv_text([[field.name for field in fields(GeneratedFile)], *(astuple(file) for file in files)])
