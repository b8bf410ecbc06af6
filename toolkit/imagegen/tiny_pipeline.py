"""A Stable Diffusion pipeline of tiny random parts, for dry runs and tests. It learns nothing visible."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SIDE = 32
"""Pixels of its images."""
TOKENS = 77
"""Tokens of a prompt, as CLIP's text encoder has."""


def save_tiny_pipeline(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon", tokens: int = TOKENS) -> None:
    """Write a pipeline with random parameters (2 MB): UNet, VAE, CLIP text encoder, byte tokenizer, PNDM scheduler.

    Args:
        folder: where to write.
        seed: of the parameters.
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


def _byte_tokenizer(tokens_of_a_prompt: int) -> "CLIPTokenizer":
    """Return a CLIP tokenizer without merges: one token per byte."""
    from tokenizers.pre_tokenizers import ByteLevel  # type: ignore[import-untyped]
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        {token: number for number, token in enumerate(tokens)}, [], model_max_length=tokens_of_a_prompt
    )
