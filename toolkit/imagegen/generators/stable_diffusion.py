"""Stable Diffusion 1.x and 2.x pipelines of diffusers as generators, with a LoRA on the UNet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer


PREFIX = "unet"
INDEX = "model_index.json"
TRAINED_PARTS = ("unet", "vae", "text_encoder")

WITHOUT_SAFETY_CHECKER: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
"""All three are needed. With the first alone, loading fails if the folder of the feature extractor is missing."""

SIDE = 32
"""Pixels of its images."""
TOKENS = 77
"""Tokens of a prompt, as CLIP's text encoder has."""


@dataclass(frozen=True, slots=True, eq=False)
class StableDiffusionGenerator:
    """A Stable Diffusion pipeline with a LoRA on its UNet. It implements ``Generator``."""

    base: BaseModel
    pipeline: "StableDiffusionPipeline"
    scheduler: "DDIMScheduler"
    device: torch.device
    precision: torch.dtype
    guidance_scale: float
    latent_shape: tuple[int, int, int]
    unconditional: Tensor

    @property
    def network(self) -> nn.Module:
        """Return the UNet."""
        unet: nn.Module = self.pipeline.unet
        return unet

    @property
    def image_size(self) -> int:
        """Return the side of an image in pixels."""
        size: int = self.latent_shape[1] * self.pipeline.vae_scale_factor
        return size

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise a DataError that lists prompts longer than the text encoder takes, with their token counts."""
        limit: int = self.pipeline.tokenizer.model_max_length
        counts = {
            prompt: len(self.pipeline.tokenizer(prompt, verbose=False).input_ids) for prompt in dict.fromkeys(prompts)
        }
        long = {prompt: count for prompt, count in counts.items() if count > limit}
        if long:
            prompt, count = max(long.items(), key=lambda item: item[1])
            raise DataError(
                "imagegen.prompt_too_long",
                f"a prompt must have at most {limit} tokens for this text encoder. {len(long)} of {len(counts)} "
                "distinct prompts have more",
                place=f"prompt {prompt!r}",
                value=count,
                remedy="Shorten these prompts.",
            )

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return the text encoder's hidden states (N, tokens, width)."""
        self.check_prompts(prompts)
        return _encode(self.pipeline, prompts, self.device)

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Tensor, *, guided: bool = True) -> Tensor:
        """Return noise or velocity (N, C, H, W) in float32."""
        scale = self.guidance_scale if guided else 1.0
        with autocast(self.device, self.precision):
            return guided_prediction(self._call, (latents, timesteps, condition), self.unconditional, scale)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the scaled latents, in float32 on the CPU.

        Raises:
            ImageError: the images have another size than the generator's.
        """
        check_images(images, self.image_size)
        vae = self.pipeline.vae
        posterior = vae.encode((2 * images - 1).to(self.device, vae.dtype)).latent_dist
        factor = vae.config.scaling_factor
        return posterior.mean.float().cpu() * factor, posterior.std.float().cpu() * factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [0, 1].

        Raises:
            ModelError: the decoder overflows in half precision.
        """
        vae: AutoencoderKL = self.pipeline.vae
        images = vae.decode(latents.to(self.device, vae.dtype) / vae.config.scaling_factor).sample.float().cpu()
        if not bool(torch.isfinite(images).all()):
            raise ModelError(
                "imagegen.decoded_images_not_finite",
                "decoded images must be finite",
                place="vae",
                value=str(vae.dtype),
                remedy="Set imagegen.generator.precision to bfloat16 or float32.",
            )
        decoded: Tensor = (images / 2 + 0.5).clamp(0, 1)
        return decoded

    def save_lora(self, folder: Path) -> None:
        """Write ``pytorch_lora_weights.safetensors`` with its adapter metadata, as diffusers loads it."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.network))
        write_lora(folder, self.network, state, PREFIX)

    def load_lora(self, folder: Path) -> None:
        """Set the LoRA to a saved one of the same rank, alpha and targets."""
        from diffusers.utils import convert_unet_state_dict_to_peft

        state = read_lora(folder, self.network, PREFIX)
        own = {name.replace(".default.", "."): name for name in copy_lora(self.network)}
        converted = convert_unet_state_dict_to_peft(state)
        restore_lora(self.network, {own.get(name, name): tensor for name, tensor in converted.items()})

    def _call(self, latents: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        latents = latents.to(self.precision)
        output: Tensor = self.network(latents, timesteps, encoder_hidden_states=condition, return_dict=False)[0]
        return output


def load_stable_diffusion(settings: GeneratorSettings, device: torch.device) -> StableDiffusionGenerator:
    """Load a pipeline, attach a new LoRA to its UNet, and replace its sampler by DDIM.

    Raises:
        ModelError: the base is missing, of another type, or stored as a pickle only.
    """
    from diffusers import StableDiffusionPipeline

    folder = _find_folder(settings)
    _check_folder(folder)
    precision: torch.dtype = getattr(torch, settings.precision)
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, dtype=precision, use_safetensors=True, **WITHOUT_SAFETY_CHECKER
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _unusable(folder, error) from error
    _freeze(pipeline, device)
    shape = _latent_shape(pipeline, settings)
    if settings.vae_slicing:
        pipeline.vae.enable_slicing()
    if settings.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    attach_lora(pipeline.unet, settings.lora, settings.seed)
    return StableDiffusionGenerator(
        BaseModel(settings.base, _revision(folder), digest(list((folder / "unet").glob("*.safetensors")))),
        pipeline,
        make_scheduler(pipeline.scheduler.config, clip_sample=settings.clip_sample, prediction=settings.prediction),
        device,
        precision,
        settings.guidance_scale,
        shape,
        _encode(pipeline, [""], device),
    )


def save_tiny_pipeline(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon", tokens: int = TOKENS) -> None:
    """Write a pipeline with random parameters (2 MB): UNet, VAE, CLIP text encoder, byte tokenizer, PNDM scheduler.

    Args:
        folder: where to write.
        seed: the seed of the parameters.
        prediction_type: "epsilon" or "v_prediction".
        tokens: bytes of the longest prompt, with its start and end. The default is CLIP's limit.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _byte_tokenizer(tokens)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=tokens,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=(16, 32),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=8,
                sample_size=SIDE,
            ),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=SIDE // 2,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=32,
                attention_head_dim=2,
                norm_num_groups=8,
            ),
            scheduler=PNDMScheduler(  # Stable Diffusion 1.5's own configuration
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type=prediction_type,
                set_alpha_to_one=False,
                skip_prk_steps=True,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)


@torch.no_grad()
def _encode(pipeline: "StableDiffusionPipeline", prompts: Sequence[str], device: torch.device) -> Tensor:
    condition: Tensor = pipeline.encode_prompt(list(prompts), device, 1, False)[0]
    return condition


def _find_folder(settings: GeneratorSettings) -> Path:
    """Return the local folder of the base, downloaded from the Hub if it is an id."""
    from diffusers import DiffusionPipeline

    folder = Path(settings.base)
    if folder.is_dir():
        return folder
    try:
        return Path(
            DiffusionPipeline.download(
                settings.base, revision=settings.revision, use_safetensors=True, **WITHOUT_SAFETY_CHECKER
            )
        )
    except (OSError, ValueError) as error:
        raise _unusable(settings.base, error) from error


def _check_folder(folder: Path) -> None:
    try:
        kind = json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(folder / INDEX, error) from error
    if kind != "StableDiffusionPipeline":
        raise ModelError(
            "imagegen.pipeline_not_stable_diffusion",
            "the base must be a Stable Diffusion 1.x or 2.x text-to-image pipeline",
            place=folder / INDEX,
            value=kind,
            remedy="Choose a base whose _class_name is StableDiffusionPipeline.",
        )
    pickled = [part for part in TRAINED_PARTS if not any((folder / part).glob("*.safetensors"))]
    if pickled:
        files = sorted(path.name for part in pickled for path in (folder / part).glob("*.bin"))
        raise ModelError(
            "imagegen.pipeline_pickled",
            "every part of the base must be stored as safetensors, because a pickle can run code",
            place=folder,
            value={"parts": pickled, "pickles": files},
            remedy="Choose a revision with safetensors, or convert the base with save_pretrained.",
        )


def _freeze(pipeline: "StableDiffusionPipeline", device: torch.device) -> None:
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    # Without a limit of its own the tokenizer pads to 1e30 tokens.
    limit = pipeline.text_encoder.config.max_position_embeddings
    pipeline.tokenizer.model_max_length = min(pipeline.tokenizer.model_max_length, limit)


def _latent_shape(pipeline: "StableDiffusionPipeline", settings: GeneratorSettings) -> tuple[int, int, int]:
    unet, factor = pipeline.unet, pipeline.vae_scale_factor
    if unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise ModelError(
            "imagegen.unet_channels_not_latent",
            f"the UNet must take the {pipeline.vae.config.latent_channels} channels of a latent",
            place="unet/config.json: in_channels",
            value=unet.config.in_channels,
            remedy="Choose a text-to-image base, not one for inpainting or editing.",
        )
    size = settings.image_size or unet.config.sample_size * factor
    unit = factor * 2 ** (len(unet.config.block_out_channels) - 1)
    if size % unit:
        raise ModelError(
            "imagegen.image_size_not_multiple",
            f"the image size must be a multiple of {unit} pixels for this base",
            place="imagegen.generator.image_size",
            value=size,
            remedy=f"Use {max(unit, round(size / unit) * unit)}.",
        )
    return pipeline.vae.config.latent_channels, size // factor, size // factor


def _revision(folder: Path) -> str | None:
    """Return the commit of a folder in the Hub's cache (``snapshots/<commit>``)."""
    return folder.name if folder.parent.name == "snapshots" else None


def _unusable(place: object, error: Exception) -> ModelError:
    return ModelError(
        "imagegen.pipeline_incomplete",
        "the base must be a complete diffusers pipeline",
        place=place,
        value=str(error),
        remedy="Check the path or the Hub id, and download the base if the machine is offline.",
    )


def _byte_tokenizer(tokens_of_a_prompt: int) -> "CLIPTokenizer":
    """Return a CLIP tokenizer without merges: one token per byte."""
    from tokenizers.pre_tokenizers import ByteLevel  # type: ignore[import-untyped]
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        {token: number for number, token in enumerate(tokens)}, [], model_max_length=tokens_of_a_prompt
    )
