"""The interface of a generator that an update needs: prompts, predictions, latents and images, and a LoRA."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from toolkit.errors import ImageError
from toolkit.imagegen.generators.ddim import Prediction
from toolkit.imagegen.generators.lora import LoraSettings

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class GeneratorSettings:
    """A base model and how it is run.

    Attributes:
        base: folder of a DiT, or folder or Hub id of a Stable Diffusion 1.x or 2.x pipeline.
        revision: Hub revision of the base.
        precision: the data type of the base's parameters and of autocast. The LoRA is always float32.
        guidance_scale: classifier-free guidance. 1 switches it off.
        image_size: side of the generated image in pixels, or None for the base's own.
        prediction: the quantity that the network predicts, or None for that of the scheduler's configuration.
        clip_sample: whether DDIM clips the predicted clean sample to [-1, 1].
        vae_slicing: decode images one by one, which saves GPU memory.
        gradient_checkpointing: recompute activations in the backward pass.
        lora: the trainable part.
        seed: the seed of the LoRA's initial parameters.
    """

    base: str
    revision: str | None = None
    precision: Precision = "float32"
    guidance_scale: float = 1.0
    image_size: int | None = None
    prediction: Prediction | None = None
    clip_sample: bool = False
    vae_slicing: bool = True
    gradient_checkpointing: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class BaseModel:
    """Which base a generator has: id, revision, and a digest of the parameters that the LoRA changes."""

    name: str
    revision: str | None
    sha256: str


class Generator(Protocol):
    """A text-to-image diffusion model with a LoRA. Images are (N, 3, H, W) in [0, 1], on the CPU, in float32."""

    @property
    def base(self) -> BaseModel:
        """Return the identity of the base."""

    @property
    def network(self) -> nn.Module:
        """Return the denoiser, which holds the LoRA and is in evaluation mode."""

    @property
    def scheduler(self) -> "DDIMScheduler":
        """Return the noise scheduler."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of a latent."""

    @property
    def image_size(self) -> int:
        """Return the side of an image in pixels."""

    @property
    def device(self) -> torch.device:
        """Return where the network is."""

    @property
    def precision(self) -> torch.dtype:
        """Return the precision of the forward pass."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise a DataError that lists prompts which the text encoder cannot take whole."""

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return the condition of each prompt, rows first, on the device."""

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Tensor, *, guided: bool = True) -> Tensor:
        """Return the prediction of the network, with guidance if ``guided``, in float32."""

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the images' latents, in float32 on the CPU.

        Raises:
            ImageError: the images have another size than the generator's.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents."""

    def save_lora(self, folder: Path) -> None:
        """Write ``pytorch_lora_weights.safetensors`` with its adapter metadata."""

    def load_lora(self, folder: Path) -> None:
        """Set the LoRA to a saved one of the same rank, alpha and targets."""


def load_generator(settings: GeneratorSettings, device: torch.device) -> Generator:
    """Load the base, attach a new LoRA, and return the generator.

    Raises:
        ModelError: the base is missing, stored as a pickle only, or of an unknown type.
    """
    from toolkit.imagegen.generators.dit import is_dit, load_dit_generator

    if is_dit(Path(settings.base)):
        return load_dit_generator(settings, device)
    from toolkit.imagegen.generators.stable_diffusion import load_stable_diffusion

    return load_stable_diffusion(settings, device)


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Return the context of every forward pass, in rollouts and updates alike.

    A context spans one pass only: autocast caches its casts of the float32 LoRA, and a cast from a pass without
    gradients would cut the graph of the next one.
    """
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def guided_prediction(
    call: Callable[[Tensor, Tensor, Tensor], Tensor],
    inputs: tuple[Tensor, Tensor, Tensor],
    unconditional: Tensor,
    scale: float,
) -> Tensor:
    """Return the prediction with classifier-free guidance, from one pass on twice the rows.

    Args:
        call: the network on latents, timesteps and condition.
        inputs: latents, timesteps and condition.
        unconditional: the condition of the empty prompt, one row.
        scale: 1 gives the conditional prediction, without the second half.
    """
    latents, timesteps, condition = inputs
    if scale == 1:
        return call(latents, timesteps, condition).float()
    empty = unconditional.expand(len(condition), *unconditional.shape[1:])
    both = call(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), torch.cat([empty, condition])).float()
    without, conditional = both.chunk(2)
    return without + scale * (conditional - without)


def check_images(images: Tensor, side: int) -> None:
    """Check that images are (N, 3, side, side).

    Raises:
        ImageError: they are not.
    """
    if images.ndim != 4 or images.shape[1:] != (3, side, side):
        raise ImageError(
            "imagegen.training_image_shape",
            f"training images must be RGB of {side} x {side} pixels, as this generator makes them",
            place="imagegen.generator",
            value=tuple(images.shape),
            remedy="Resize the images to the generator's size.",
        )


def digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the files' contents, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
