"""Shapes of a Stable Diffusion 1.x or 2.x pipeline: its blocks, counted from three config.json files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError
from toolkit.planning.model_files import DOWNLOAD_AGAIN

PARTS = ("unet", "vae", "text_encoder")
"""The subfolders with parameters, in the order of ``Layout``."""


@dataclass(frozen=True, slots=True)
class Resnet:
    """A residual block at one level. Level 0 has the resolution of the latent, each further level half of it."""

    inputs: int
    outputs: int
    level: int
    joins: bool = False
    """Its input is a concatenation with an earlier output."""


@dataclass(frozen=True, slots=True)
class Transformer:
    """A transformer block with self-attention, attention to the prompt, and a gated MLP."""

    width: int
    level: int


@dataclass(frozen=True, slots=True)
class Sampler:
    """The convolution that halves a resolution, or that follows its doubling. The level is that of its output."""

    width: int
    level: int


Block = Resnet | Transformer | Sampler


@dataclass(frozen=True)
class Unet:
    """Fields of unet/config.json.

    Attributes:
        channels: the channels of each level, from the finest.
        attends: whether each level has transformer blocks.
        layers: residual blocks of a level in the down blocks. The up blocks have one more.
        text: width of the text encoder's states.
        latent: channels of a latent.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attends: tuple[bool, ...] = (True, True, True, False)
    layers: int = 2
    text: int = 768
    latent: int = 4

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks in the order of a forward pass."""
        return (*self._down(), *self._middle(), *self._up())

    @cached_property
    def skips(self) -> tuple[tuple[int, int], ...]:
        """Channels and level of each output of the down blocks that the up blocks join again, in order."""
        found = [(self.channels[0], 0)]
        for level, width in enumerate(self.channels):
            found += [(width, level)] * self.layers
            if level < len(self.channels) - 1:
                found.append((width, level + 1))
        return tuple(found)

    @property
    def transformers(self) -> tuple[Transformer, ...]:
        """The transformer blocks, which hold the LoRA."""
        return tuple(block for block in self.blocks if isinstance(block, Transformer))

    def _down(self) -> Iterator[Block]:
        before = self.channels[0]
        for level, width in enumerate(self.channels):
            for _ in range(self.layers):
                yield Resnet(before, width, level)
                before = width
                if self.attends[level]:
                    yield Transformer(width, level)
            if level < len(self.channels) - 1:
                yield Sampler(width, level + 1)

    def _middle(self) -> Iterator[Block]:
        width, level = self.channels[-1], len(self.channels) - 1
        yield Resnet(width, width, level)
        yield Transformer(width, level)
        yield Resnet(width, width, level)

    def _up(self) -> Iterator[Block]:
        before, skips = self.channels[-1], [width for width, _ in self.skips]
        for level in reversed(range(len(self.channels))):
            for _ in range(self.layers + 1):
                yield Resnet(before + skips.pop(), self.channels[level], level, joins=True)
                before = self.channels[level]
                if self.attends[level]:
                    yield Transformer(before, level)
            if level:
                yield Sampler(before, level - 1)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, without an adapter."""
        first, time = self.channels[0], 4 * self.channels[0]
        ends = _convolution(self.latent, first) + 2 * first + _convolution(first, self.latent)
        return ends + _linear(first, time) + _linear(time, time) + sum(map(self._parameters, self.blocks))

    def lora_parameters(self, rank: int) -> int:
        """Return the parameters of an adapter on to_q, to_k, to_v and to_out of every attention."""
        return rank * sum(14 * block.width + 2 * self.text for block in self.transformers)

    def _parameters(self, block: Block) -> int:
        if isinstance(block, Sampler):
            return _convolution(block.width, block.width)
        if isinstance(block, Resnet):
            return _resnet(block.inputs, block.outputs) + _linear(4 * self.channels[0], block.outputs)
        width = block.width
        own, prompt = 4 * width**2 + width, 2 * width**2 + 2 * self.text * width + width
        inner = _linear(width, 8 * width) + _linear(4 * width, width)
        return 2 * width + 2 * _linear(width, width) + 6 * width + own + prompt + inner


@dataclass(frozen=True)
class Vae:
    """Fields of vae/config.json."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent: int = 4

    @cached_property
    def encoder(self) -> tuple[Block, ...]:
        """The encoder's residual blocks and samplers. Level 0 has the resolution of the image."""
        blocks: list[Block] = []
        before = self.channels[0]
        for level, width in enumerate(self.channels):
            for _ in range(self.layers):
                blocks.append(Resnet(before, width, level))
                before = width
            if level < len(self.channels) - 1:
                blocks.append(Sampler(width, level + 1))
        return (*blocks, *self._middle)

    @cached_property
    def decoder(self) -> tuple[Block, ...]:
        """The same of the decoder."""
        blocks: list[Block] = [*self._middle]
        before = self.channels[-1]
        for level in reversed(range(len(self.channels))):
            for _ in range(self.layers + 1):
                blocks.append(Resnet(before, self.channels[level], level))
                before = self.channels[level]
            if level:
                blocks.append(Sampler(before, level - 1))
        return tuple(blocks)

    @property
    def _middle(self) -> tuple[Block, ...]:
        width, level = self.channels[-1], len(self.channels) - 1
        return (Resnet(width, width, level),) * 2

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        first, last, latent = self.channels[0], self.channels[-1], self.latent
        attention = 2 * last + 4 * _linear(last, last)
        encoder = _convolution(3, first) + 2 * last + _convolution(last, 2 * latent) + _linear(2 * latent, 2 * latent)
        decoder = _convolution(latent, last) + 2 * first + _convolution(first, 3) + _linear(latent, latent)
        blocks = (*self.encoder, *self.decoder)
        return encoder + decoder + 2 * attention + sum(map(_vae_block, blocks))


@dataclass(frozen=True)
class TextEncoder:
    """Fields of text_encoder/config.json: a CLIP text model."""

    width: int = 768
    inner: int = 3072
    layers: int = 12
    vocabulary: int = 49_408
    tokens: int = 77

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        layer = 4 * _linear(self.width, self.width) + 4 * self.width
        layer += _linear(self.width, self.inner) + _linear(self.inner, self.width)
        return (self.vocabulary + self.tokens + 2) * self.width + self.layers * layer


@dataclass(frozen=True)
class Layout:
    """A whole pipeline."""

    unet: Unet = field(default_factory=Unet)
    vae: Vae = field(default_factory=Vae)
    text: TextEncoder = field(default_factory=TextEncoder)

    @property
    def factor(self) -> int:
        """Side in pixels of the square that one position of a latent covers."""
        return 1 << (len(self.vae.channels) - 1)

    @property
    def unit(self) -> int:
        """Pixels that an image's side must be a multiple of."""
        return self.factor << (len(self.unet.channels) - 1)

    @property
    def parameters(self) -> int:
        """Number of parameters of all parts."""
        return self.unet.parameters + self.vae.parameters + self.text.parameters


STABLE_DIFFUSION_1 = Layout()
STABLE_DIFFUSION_2 = Layout(Unet(text=1024), text=TextEncoder(width=1024, inner=4096, layers=23))
KNOWN: Mapping[str, Layout] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
    "runwayml/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
    "CompVis/stable-diffusion-v1-4": STABLE_DIFFUSION_1,
    "stabilityai/stable-diffusion-2-base": STABLE_DIFFUSION_2,
    "stabilityai/stable-diffusion-2": STABLE_DIFFUSION_2,
    "stabilityai/stable-diffusion-2-1-base": STABLE_DIFFUSION_2,
    "stabilityai/stable-diffusion-2-1": STABLE_DIFFUSION_2,
}
"""Hub name -> layout, for pipelines that are not in this machine."""


def read_layout(folder: Path) -> Layout:
    """Return the layout of a pipeline in a folder.

    Raises:
        ModelError: a config.json is missing or damaged, or has a block that this module does not know.
    """
    unet, vae, text = (_fields(folder / part / "config.json") for part in PARTS)
    try:
        return Layout(_unet(unet), _vae(vae), text_encoder_of(text))
    except (KeyError, TypeError, ValueError) as error:
        rule = "the pipeline must have the layout of Stable Diffusion 1.x or 2.x"
        raise ModelError(
            "imagegen.layout_unsupported", rule, place=folder, value=repr(error), remedy="Choose another base."
        ) from error


def text_encoder_of(fields: Mapping[str, Any]) -> TextEncoder:
    """Return the shape of a CLIP text model, whose config.json can leave CLIP's defaults out."""
    standard = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "vocab_size": 49_408,
        "max_position_embeddings": 77,
    }
    return TextEncoder(*(int(fields.get(name, value)) for name, value in standard.items()))


def _unet(fields: Mapping[str, Any]) -> Unet:
    kinds: Mapping[str, bool] = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    channels, text = tuple(map(int, fields["block_out_channels"])), int(fields["cross_attention_dim"])
    attends = tuple(kinds[str(name)] for name in fields["down_block_types"])
    if len(attends) != len(channels):
        raise ValueError(f"{len(attends)} down blocks, {len(channels)} widths")
    return Unet(channels, attends, int(fields.get("layers_per_block", 2)), text, int(fields["in_channels"]))


def _vae(fields: Mapping[str, Any]) -> Vae:
    channels = tuple(map(int, fields["block_out_channels"]))
    return Vae(channels, int(fields.get("layers_per_block", 1)), int(fields["latent_channels"]))


def _fields(file: Path) -> Mapping[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        rule = "the base must be a complete diffusers pipeline"
        raise ModelError(
            "imagegen.pipeline_incomplete", rule, place=file, value=error, remedy=DOWNLOAD_AGAIN
        ) from error
    if not isinstance(fields, Mapping):
        raise ModelError(
            "imagegen.config_not_an_object",
            "a model's configuration must be a JSON object",
            place=file,
            value=type(fields).__name__,
            remedy=DOWNLOAD_AGAIN,
        )
    return fields


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _convolution(inputs: int, outputs: int) -> int:
    return 9 * inputs * outputs + outputs


def _resnet(inputs: int, outputs: int) -> int:
    shortcut = 0 if inputs == outputs else _linear(inputs, outputs)
    return 2 * inputs + _convolution(inputs, outputs) + 2 * outputs + _convolution(outputs, outputs) + shortcut


def _vae_block(block: Block) -> int:
    if isinstance(block, Resnet):
        return _resnet(block.inputs, block.outputs)
    return _convolution(block.width, block.width)
