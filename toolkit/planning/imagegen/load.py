"""The load of one image on a GPU in each kind of work: FLOPs, bytes moved and kernel launches, counted from blocks.

FLOPs are sums over convolutions, linear layers and attention. Bytes and launches were counted with torch's dispatcher
on Stable Diffusion 1.5, and follow the bytes that a forward pass keeps.
"""

from dataclasses import dataclass, replace

from toolkit.planning.imagegen.layout import Block, Layout, Resnet, Sampler, Transformer, Vae
from toolkit.planning.imagegen.memory import ImagegenSetting, kept_bytes
from toolkit.planning.passes import Load

FORWARD_MOVED, BACKWARD_MOVED = {2: 5.05, 4: 4.75}, {2: 7.0, 4: 6.9}
"""Bytes of a value -> bytes that a forward and a backward pass move, relative to what the forward pass keeps."""
RECOMPUTED = 0.73
"""Fraction of a forward pass that gradient checkpointing repeats: a block's last operations need no repetition."""
FORWARD_LAUNCHES, BACKWARD_LAUNCHES, RECOMPUTED_LAUNCHES = 50, 59, 42
"""Kernels of a block on average."""
VAE_MOVED = 13
"""Bytes that the VAE moves for each number of a residual block's input, relative to the bytes of a value."""
VAE_LAUNCHES = 150
FLASH_BACKWARD = 2.5
"""FLOPs of attention's backward pass relative to its forward pass, with the scores computed again."""


@dataclass(frozen=True, slots=True)
class ImagegenLoads:
    """Loads of one pipeline and setting."""

    layout: Layout
    setting: ImagegenSetting

    def denoise(self, images: int, *, guided: bool | None = None) -> Load:
        """Return a pass without gradients for ``images`` images, such as one step of their rollout."""
        guided = self.setting.guided if guided is None else guided
        return self._forward(images * (2 if guided else 1))

    def update(self, images: int, *, guided: bool | None = None) -> Load:
        """Return a forward and a backward pass for ``images`` images at one denoising step each."""
        guided = self.setting.guided if guided is None else guided
        rows = images * (2 if guided else 1)
        forward = self._forward(rows)
        found = forward + self._backward(rows)
        if not self.setting.checkpointing:
            return found
        blocks = len(self.layout.unet.blocks)
        again = Load(RECOMPUTED * forward.flops, RECOMPUTED * forward.moved, RECOMPUTED_LAUNCHES * blocks)
        return found + again

    def decode(self, images: int) -> Load:
        """Return the VAE's decoding, image by image."""
        return self._vae(self.layout.vae.decoder) * images

    def encode(self, images: int) -> Load:
        """Return the VAE's encoding."""
        return self._vae(self.layout.vae.encoder) * images

    def _forward(self, rows: int) -> Load:
        products, attention = self._flops
        return Load(
            rows * (products + attention),
            FORWARD_MOVED[self.setting.value] * rows * self._kept + self._parameters,
            FORWARD_LAUNCHES * len(self.layout.unet.blocks),
        )

    def _backward(self, rows: int) -> Load:
        """Return the load of a backward pass. Frozen parameters get no gradient: a product costs as much as forward."""
        products, attention = self._flops
        return Load(
            rows * (products + FLASH_BACKWARD * attention),
            BACKWARD_MOVED[self.setting.value] * rows * self._kept + self._parameters,
            BACKWARD_LAUNCHES * len(self.layout.unet.blocks),
        )

    @property
    def _kept(self) -> float:
        plain = replace(self.setting, checkpointing=False)
        return kept_bytes(self.layout.unet, plain)

    @property
    def _parameters(self) -> float:
        return float(self.setting.value * self.layout.unet.parameters)

    @property
    def _flops(self) -> tuple[float, float]:
        """FLOPs of a row: matrix products and convolutions, and attention among positions."""
        unet, tokens = self.layout.unet, self.layout.text.tokens
        products = attention = 0.0
        for block in unet.blocks:
            positions = _area(self.setting.latent, block.level)
            if isinstance(block, Transformer):
                width = block.width
                lora = 12 * width * self.setting.rank
                products += 2 * positions * (20 * width**2 + lora) + 4 * tokens * width * unet.text
                attention += 4 * positions * width * (positions + tokens)
            else:
                products += _convolutions(block, positions)
        return products, attention

    def _vae(self, blocks: tuple[Block, ...]) -> Load:
        side, vae = self.setting.side, self.layout.vae
        flops = moved = 0.0
        for block in blocks:
            positions = _area(side, block.level)
            flops += _convolutions(block, positions)
            width = block.inputs if isinstance(block, Resnet) else _width(block)
            moved += VAE_MOVED * self.setting.value * width * positions
        return Load(flops + _middle_attention(vae, side), moved, VAE_LAUNCHES)


def _convolutions(block: Block, positions: float) -> float:
    if isinstance(block, Resnet):
        shortcut = block.inputs * block.outputs if block.inputs != block.outputs else 0
        return 2 * positions * (9 * block.outputs * (block.inputs + block.outputs) + shortcut)
    return 2 * positions * 9 * _width(block) ** 2


def _middle_attention(vae: Vae, side: int) -> float:
    width, positions = vae.channels[-1], _area(side, len(vae.channels) - 1)
    return 8 * positions * width**2 + 4 * positions**2 * width


def _area(side: int, level: int) -> float:
    """Return the number of positions of a level."""
    across = side / (1 << level)
    return across * across


def _width(block: Block) -> int:
    if isinstance(block, Sampler | Transformer):
        return block.width
    return block.outputs
