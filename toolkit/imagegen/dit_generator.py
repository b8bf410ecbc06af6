"""The DiT as a generator: pixels are the latents."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toolkit.errors import ModelError
from toolkit.imagegen.ddim import make_scheduler
from toolkit.imagegen.dit import CONFIG, KIND, WEIGHTS, Dit, encode_words, load_dit
from toolkit.imagegen.generator import BaseModel, GeneratorSettings, autocast, check_images, digest, guided_prediction
from toolkit.imagegen.lora import attach_lora, copy_lora, read_lora, restore_lora, write_lora

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

PREFIX = "dit"


@dataclass(frozen=True, slots=True, eq=False)
class DitGenerator:
    """A DiT with a LoRA. It implements ``Generator``."""

    base: BaseModel
    network: Dit
    scheduler: "DDIMScheduler"
    device: torch.device
    precision: torch.dtype
    guidance_scale: float

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the image."""
        config = self.network.config
        return config.channels, config.image_size, config.image_size

    @property
    def image_size(self) -> int:
        """Return the side of an image in pixels."""
        return self.network.config.image_size

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise a DataError for a prompt with an unknown word or too many words."""
        encode_words(self.network.config, prompts)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return word ids (N, words)."""
        return encode_words(self.network.config, prompts).to(self.device)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Tensor, *, guided: bool = True) -> Tensor:
        """Return noise or velocity (N, C, H, W) in float32."""
        scale = self.guidance_scale if guided else 1.0
        empty = torch.zeros_like(condition[:1])
        with autocast(self.device, self.precision):
            return guided_prediction(self.network, (latents, timesteps, condition), empty, scale)

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels in [-1, 1], and zeros. A grey model takes the mean of the colours.

        Raises:
            ImageError: the images have another size than the generator's.
        """
        check_images(images, self.image_size)
        pixels = images.float().mean(1, keepdim=True) if self.network.config.channels == 1 else images.float()
        return 2 * pixels - 1, torch.zeros_like(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [0, 1]. A grey model's three channels are equal."""
        images = (latents.float().cpu() / 2 + 0.5).clamp(0, 1)
        return images.expand(-1, 3, -1, -1).contiguous()

    def save_lora(self, folder: Path) -> None:
        """Write ``pytorch_lora_weights.safetensors`` with its adapter metadata."""
        write_lora(folder, self.network, copy_lora(self.network), PREFIX)

    def load_lora(self, folder: Path) -> None:
        """Set the LoRA to a saved one of the same rank, alpha and targets."""
        restore_lora(self.network, read_lora(folder, self.network, PREFIX))


def is_dit(folder: Path) -> bool:
    """Return whether a folder holds a DiT that this toolkit saved."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(config, dict) and config.get("model_type") == KIND


def load_dit_generator(settings: GeneratorSettings, device: torch.device) -> DitGenerator:
    """Load a DiT and attach a new LoRA.

    Raises:
        ModelError: a file is damaged, or a setting does not apply to a DiT.
    """
    folder = Path(settings.base)
    network = load_dit(folder)
    if settings.image_size not in (None, network.config.image_size):
        raise ModelError(
            "imagegen.image_size_not_bases",
            f"the image size must be {network.config.image_size} pixels, the only one of this base",
            place="imagegen.generator.image_size",
            value=settings.image_size,
            remedy="Leave the key out.",
        )
    if settings.prediction not in (None, network.config.prediction_type):
        raise ModelError(
            "imagegen.prediction_not_bases",
            f"the prediction must be {network.config.prediction_type}, as this base was trained",
            place="imagegen.generator.prediction",
            value=settings.prediction,
            remedy="Leave the key out.",
        )
    if settings.gradient_checkpointing:
        raise ModelError(
            "imagegen.dit_gradient_checkpointing",
            "a DiT must run without gradient checkpointing",
            place="imagegen.generator.gradient_checkpointing",
            value=True,
            remedy="Set it to false. The model is small.",
        )
    precision: torch.dtype = getattr(torch, settings.precision)
    # The parameters stay in float32: they are few, and autocast converts them.
    network = network.to(device)
    attach_lora(network, settings.lora, settings.seed)
    base = BaseModel(folder.name, None, digest([folder / WEIGHTS]))
    scheduler = make_scheduler(network.config.scheduler, clip_sample=settings.clip_sample)
    return DitGenerator(base, network, scheduler, device, precision, settings.guidance_scale)
