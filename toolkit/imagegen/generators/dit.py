"""A plain diffusion transformer (DiT) in pixel space as a generator: about one million parameters, made for CPUs.

Differences to the DiT paper: prompts are words of a fixed vocabulary instead of class labels, and the network predicts
noise or velocity only, no variance. The attention's linear layers are named as in diffusers (to_q, to_k, to_v,
to_out.0), so that the LoRA settings of Stable Diffusion apply unchanged. Pixels are the latents.
"""

import difflib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import DataError, ModelError
from toolkit.imagegen.generators.ddim import make_scheduler
from toolkit.imagegen.generators.generator import (
    BaseModel,
    GeneratorSettings,
    autocast,
    check_images,
    digest,
    guided_prediction,
)
from toolkit.imagegen.generators.lora import attach_lora, copy_lora, read_lora, restore_lora, write_lora

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


WEIGHTS, CONFIG = "model.safetensors", "config.json"
KIND = "toolkit-dit"
"""Value of ``model_type`` in config.json. It distinguishes the folder from a diffusers pipeline."""

_WORD = re.compile(r"[a-z0-9]+")

PREFIX = "dit"


@dataclass(frozen=True, slots=True)
class DitConfig:
    """Shape, vocabulary and noise schedule of a DiT.

    Attributes:
        words: the vocabulary, lower case.
        image_size: side of the square image in pixels.
        patch_size: side of a patch in pixels.
        channels: 1 (grey) or 3 (RGB).
        width: dimension of a token.
        layers: transformer layers.
        heads: attention heads.
        prompt_words: largest number of words in a prompt.
        prediction_type: "v_prediction" or "epsilon". Velocity stays well defined at pure noise, where this
            schedule begins. There an error in the predicted noise would be amplified 20,000 times.
        beta_schedule: a beta schedule of diffusers' schedulers.
    """

    words: tuple[str, ...]
    image_size: int = 32
    patch_size: int = 4
    channels: int = 1
    width: int = 128
    layers: int = 3
    heads: int = 4
    prompt_words: int = 24
    prediction_type: str = "v_prediction"
    beta_schedule: str = "squaredcos_cap_v2"

    @property
    def scheduler(self) -> dict[str, object]:
        """The configuration of the noise scheduler."""
        return {
            "num_train_timesteps": 1000,
            "beta_schedule": self.beta_schedule,
            "prediction_type": self.prediction_type,
            "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
        }


def split_words(prompt: str) -> list[str]:
    """Return the words of a prompt in lower case. Everything but letters and digits separates them.

    >>> split_words("Chest X-ray: pleural effusion")
    ['chest', 'x', 'ray', 'pleural', 'effusion']
    """
    return _WORD.findall(prompt.lower())


def encode_words(config: DitConfig, prompts: Sequence[str]) -> Tensor:
    """Return word ids (prompts, ``prompt_words``). 0 is padding, and the empty prompt is the unconditional one.

    Raises:
        DataError: a prompt has an unknown word or too many words.
    """
    known = {word: number for number, word in enumerate(config.words, start=1)}
    ids = torch.zeros(len(prompts), config.prompt_words, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        words = split_words(prompt)
        _check_words(config, known, prompt, words)
        ids[row, : len(words)] = torch.tensor([known[word] for word in words], dtype=torch.long)
    return ids


class Dit(nn.Module):
    """Noise or velocity (N, C, H, W) from a noisy image, its timestep and the word ids of its prompt."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.patchify = nn.Conv2d(config.channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, (config.image_size // patch) ** 2, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.prompt = _PromptEncoder(config)
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zeroed(nn.Linear(width, 2 * width))
        self.unpatchify = _zeroed(nn.Linear(width, config.channels * patch**2))

    def forward(self, sample_NCHW: Tensor, timesteps_N: Tensor, word_ids_NL: Tensor) -> Tensor:
        """Return the prediction (N, C, H, W)."""
        tokens = self.patchify(sample_NCHW).flatten(2).transpose(1, 2) + self.position
        condition = functional.silu(self.time(_sinusoids(timesteps_N)) + self.prompt(word_ids_NL))
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)
        patches = self.unpatchify(self.norm(tokens) * (1 + scale) + shift).transpose(1, 2)
        size, patch = self.config.image_size, self.config.patch_size
        image: Tensor = functional.fold(patches, (size, size), kernel_size=patch, stride=patch)
        return image


def save_dit(folder: Path, model: Dit, dtype: torch.dtype = torch.float16) -> None:
    """Save configuration and parameters. float16 halves the file, and loading converts back to float32."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config = {"model_type": KIND} | asdict(model.config)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_dit(folder: Path) -> Dit:
    """Return the model that ``save_dit`` saved, in float32 and evaluation mode.

    Raises:
        ModelError: a file is missing, damaged or of another model.
    """
    config = _read_config(folder / CONFIG)
    model = Dit(config)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            "imagegen.dit_parameters_unreadable",
            "the file must hold the parameters of the DiT that config.json describes",
            place=folder / WEIGHTS,
            value=str(error),
            remedy="Restore the folder, or train the base again.",
        ) from error
    return model.eval()


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


class _PromptEncoder(nn.Module):
    """One vector per prompt: the mean over its words of a small network on word and position."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width = config.width
        self.words = nn.Embedding(len(config.words) + 1, width, padding_idx=0)
        self.order = nn.Parameter(torch.randn(config.prompt_words, width) * 0.1)
        self.hidden = nn.Linear(width, width)
        self.mixed = nn.Linear(width, width)
        self.empty = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, ids_NL: Tensor) -> Tensor:
        present = (ids_NL > 0).unsqueeze(2)
        count = present.sum(1)
        words = functional.silu(self.hidden(self.words(ids_NL) + self.order)) * present
        mixed: Tensor = self.mixed(words.sum(1) / count.clamp(min=1))
        return torch.where(count > 0, mixed, self.empty)


class _Block(nn.Module):
    """A transformer layer whose normalisations are modulated by the condition and whose branches start at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])  # to_out.0, as in diffusers
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = _zeroed(nn.Linear(width, 6 * width))

    def forward(self, tokens_NLD: Tensor, condition_ND: Tensor) -> Tensor:
        parts = self.modulation(condition_ND)[:, None].chunk(6, dim=2)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        tokens = tokens_NLD + gate * self._attend(self.norm_attention(tokens_NLD) * (1 + scale) + shift)
        hidden = self.mlp_in(self.norm_mlp(tokens) * (1 + mlp_scale) + mlp_shift)
        out: Tensor = tokens + mlp_gate * self.mlp_out(functional.gelu(hidden, approximate="tanh"))
        return out

    def _attend(self, tokens_NLD: Tensor) -> Tensor:
        query, key, value = (
            layer(tokens_NLD).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.to_out[0](attended.transpose(1, 2).flatten(2))
        return out


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _sinusoids(timesteps_N: Tensor) -> Tensor:
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, device=timesteps_N.device) / 128)
    angles = timesteps_N.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _check_words(config: DitConfig, known: dict[str, int], prompt: str, words: list[str]) -> None:
    if len(words) > config.prompt_words:
        raise DataError(
            "imagegen.prompt_too_long",
            f"a prompt must have at most {config.prompt_words} words for this generator",
            place=f"prompt {prompt!r}",
            value=len(words),
            remedy="Shorten the prompt.",
        )
    unknown = [word for word in words if word not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], config.words, n=1)
        raise DataError(
            "imagegen.prompt_word_unknown",
            "a prompt must use only words of the generator's vocabulary",
            place=f"prompt {prompt!r}",
            value=unknown,
            remedy=(f"Did you mean {near[0]!r}? " if near else "") + f"The words are: {', '.join(config.words)}.",
        )


def _read_config(path: Path) -> DitConfig:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind = raw.pop("model_type", None)
        if kind != KIND:
            raise ValueError(f"model_type is {kind!r}, not {KIND!r}")
        return DitConfig(**(raw | {"words": tuple(raw["words"])}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            "imagegen.dit_config_unreadable",
            "the folder must hold the configuration of a DiT that this toolkit saved",
            place=path,
            value=str(error),
            remedy="Restore the folder, or train the base again.",
        ) from error
