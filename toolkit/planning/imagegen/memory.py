"""GPU memory of work with a Stable Diffusion 1.x or 2.x pipeline: formulas over its blocks.

The counts follow the tensors that torch saves, operation by operation: a residual block keeps the inputs of its norms,
activations and convolutions, a transformer block those of its norms and linear layers, with queries, keys and values.
Attention keeps no scores (flash or memory-efficient kernels). Checked against an allocation trace of Stable Diffusion
1.5 at its real size in 512 and 768 pixels, not against a GPU. Formulas are at the trace or up to 10 % above it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.planning.imagegen.layout import Layout, Resnet, Sampler, Transformer, Unet
from toolkit.planning.memory.estimate import CONTEXT, Moment

FLOAT = 4
RESNET_IN, RESNET_OUT = {2: 10, 4: 8}, {2: 12, 4: 16}
"""Bytes of a value -> bytes that a residual block keeps for each number of its input and of its output. In 16 bits,
autocast computes norms and activations in float32."""
TRANSFORMER = {2: 71.5, 4: 106}
"""The same of a transformer block, for each number of its input."""
PROMPT = 4
"""Tensors of a prompt's keys and values that each transformer block keeps."""
BACKWARD = {2: 32, 4: 44}
"""Bytes of a backward pass at its peak for each number of the finest level."""
UNCHECKPOINTED = 0.41
"""Fraction that gradient checkpointing leaves on the GPU, besides the blocks' inputs, as a first trace had it. A second
trace and allocations counted on a CPU were near 0 instead, so that the estimate is on the safe side."""
WORKING = {2: 15, 4: 16}
"""Bytes of a pass without gradients for each number of the largest input of a residual block."""
DECODING, ENCODING = {2: 3.78, 4: 3.1}, {2: 5.3, 4: 4.4}
"""Tensors of the VAE that are alive at its peak, in units of its largest one."""
TRAINING_PIECES, PASS_PIECES = 0.13, 0.5
"""Memory that torch's allocator holds in pieces of no use, relative to activations of training and of other passes."""
DECODING_PIECES, ENCODING_PIECES = {2: 2.25, 4: 3.0}, 2.1
"""The same for the VAE, in units of its largest tensor."""


@dataclass(frozen=True, slots=True)
class ImagegenSetting:
    """The settings that the GPU memory of a stage depends on, besides the pipeline.

    Attributes:
        side: of an image in pixels.
        value: bytes of a parameter and of an activation: 2 under autocast, or 4.
        rank: of the LoRA.
        guided: whether a pass has twice the rows, for classifier-free guidance.
        checkpointing: whether the backward pass recomputes activations.
        micro_batch: images of a forward and backward pass.
        batch: images that are generated at once in an evaluation.
        scorers: bytes of the scoring models that are on the GPU while they compute.
        scoring: bytes of a scoring pass.
        prompts: prompts whose states stay on the GPU during a round.
        factor: pixels for one position of a latent, in each direction.
    """

    side: int = 512
    value: int = 2
    rank: int = 16
    guided: bool = True
    checkpointing: bool = False
    micro_batch: int = 4
    batch: int = 8
    scorers: int = 0
    scoring: int = 0
    prompts: int = 0
    factor: int = 8

    @property
    def latent(self) -> int:
        """Side of a latent."""
        return self.side // self.factor

    def rows(self, images: int) -> int:
        """Return the rows of a pass of the UNet for some images."""
        return images * (2 if self.guided else 1)


@dataclass(frozen=True, slots=True)
class ImagegenMemory:
    """Formulas for one pipeline and setting. Every method returns a moment with its parts."""

    layout: Layout
    setting: ImagegenSetting

    def sft(self) -> Moment:
        """Return an update of ``sft``, which has no guidance."""
        return self._update("sft update", self.setting.micro_batch)

    def ddpo(self) -> Moment:
        """Return an update of ``ddpo``."""
        moment = self._update("ddpo update", self.setting.rows(self.setting.micro_batch))
        return Moment(moment.name, {**moment.parts, "prompts": self._prompts})

    def rollout(self, images: int | None = None, *, trains: bool = False) -> Moment:
        """Return the denoising of ``images`` images (default: of a batch of an evaluation).

        Args:
            images: that are denoised at once.
            trains: whether the optimizer of an update is alive.
        """
        rows = self.setting.rows(self.setting.batch if images is None else images)
        activations = int(rows * pass_bytes(self.layout.unet, self.setting))
        parts = {**self._always(trains), "activations": activations, "prompts": self._prompts if trains else 0}
        return _moment("rollout", parts, int(PASS_PIECES * activations))

    def decode(self, images: int, *, sliced: bool = True) -> Moment:
        """Return the VAE's decoding of latents, one by one if ``sliced``."""
        at_once, value = 1 if sliced else images, self.setting.value
        largest = at_once * _largest(self.layout.vae.channels[1], self.setting)
        done = images * 3 * self.setting.side**2 * value if sliced else 0
        parts = {**self._always(trains=False), "decoding": int(DECODING[value] * largest) + done}
        return _moment("decoding", parts, int(DECODING_PIECES[value] * largest))

    def encode(self, images: int) -> Moment:
        """Return the VAE's encoding of training images."""
        largest = images * _largest(self.layout.vae.channels[0], self.setting)
        parts = {**self._always(trains=False), "encoding": int(ENCODING[self.setting.value] * largest)}
        return _moment("encoding", parts, int(ENCODING_PIECES * largest))

    def score(self) -> Moment:
        """Return a pass of the scoring models, which are on the GPU with the generator and its optimizer."""
        scoring = self.setting.scoring
        parts = {**self._always(trains=True), "scorers": self.setting.scorers, "scoring": scoring}
        return _moment("scoring", parts, int(TRAINING_PIECES * scoring))

    @property
    def _prompts(self) -> int:
        return self.setting.prompts * self.layout.text.tokens * self.layout.unet.text * self.setting.value

    @property
    def _lora(self) -> int:
        return FLOAT * self.layout.unet.lora_parameters(self.setting.rank)

    def _always(self, trains: bool) -> dict[str, int]:
        value = self.setting.value
        return {
            "unet": value * self.layout.unet.parameters,
            "vae": value * self.layout.vae.parameters,
            "text_encoder": value * self.layout.text.parameters,
            "lora": self._lora,
            "optimizer": 2 * self._lora if trains else 0,
        }

    def _update(self, name: str, rows: int) -> Moment:
        kept = rows * kept_bytes(self.layout.unet, self.setting) + self._copies
        layer = rows * BACKWARD[self.setting.value] * self.layout.unet.channels[0] * self.setting.latent**2
        parts = {**self._always(trains=True), "gradients": self._lora, "activations": int(kept), "layer": layer}
        return _moment(name, parts, int(TRAINING_PIECES * (kept + layer)))

    @property
    def _copies(self) -> int:
        """The LoRA in 16 bits, which autocast keeps."""
        return self._lora // 2 if self.setting.value < FLOAT else 0


def kept_bytes(unet: Unet, setting: ImagegenSetting) -> float:
    """Return what a forward pass keeps of one row for its backward pass."""
    everything = sum(_saved_activations(unet, setting))
    if not setting.checkpointing:
        return everything
    return UNCHECKPOINTED * everything + sum(_inputs(unet, setting))


def pass_bytes(unet: Unet, setting: ImagegenSetting) -> float:
    """Return what a forward pass without gradients takes for one row: outputs that are joined later, and one block."""
    skips = sum(width * _positions(setting, level) for width, level in unet.skips)
    largest = max(block.inputs * _positions(setting, block.level) for block in unet.blocks if isinstance(block, Resnet))
    return setting.value * skips + WORKING[setting.value] * largest


def _saved_activations(unet: Unet, setting: ImagegenSetting) -> Iterator[float]:
    """Return the bytes of each block. Before the first LoRA, a block keeps only its output, which is joined later."""
    value, graded = setting.value, False
    for block in unet.blocks:
        positions = _positions(setting, block.level)
        if isinstance(block, Transformer):
            graded = True
            yield TRANSFORMER[value] * block.width * positions + PROMPT * value * 77 * block.width
        elif isinstance(block, Sampler):
            yield 2 * value * block.width * positions
        elif graded:
            yield (RESNET_IN[value] * block.inputs + RESNET_OUT[value] * block.outputs) * positions
        else:
            yield value * block.outputs * positions


def _inputs(unet: Unet, setting: ImagegenSetting) -> Iterator[float]:
    """Return the bytes of each block's input. A transformer block's norm and projection are not recomputed."""
    value = setting.value
    for block in unet.blocks:
        width = block.inputs if isinstance(block, Resnet) else block.width
        tensors = 6 if isinstance(block, Transformer) else 1
        yield tensors * value * width * _positions(setting, block.level)


def _positions(setting: ImagegenSetting, level: int) -> int:
    side = math.ceil(setting.latent / (1 << level))
    return side * side


def _largest(width: int, setting: ImagegenSetting) -> int:
    """Return the bytes of the VAE's largest tensor for one image."""
    return int(width * setting.side**2 * setting.value)


def _moment(name: str, parts: dict[str, int], fragmentation: int) -> Moment:
    return Moment(name, {**parts, "fragmentation": fragmentation, "context": CONTEXT})
