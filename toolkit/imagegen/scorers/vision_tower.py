"""Vision towers: from images to feature vectors that include image quality, which experts rate.

A tower resizes the whole image to the size its backbone was trained at, so that position embeddings stay as they are.
It can add crops at the image's own resolution, because resizing removes the noise and the fine structure that a rating
is about. Images as small as the backbone's own size or smaller are enlarged and have no crops. A backbone pools several
of its layers, because texture is in the early ones and content in the late ones. Pretrained backbones are frozen by
default. The two small ones, "cnn" and "tiny-clip", start from random parameters and are trained.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from toolkit.errors import MissingExtraError, ModelError
from toolkit.imagegen.scorers.fitting import as_floats
from toolkit.imagegen.scorers.text_tower import load_half
from toolkit.recipe.imagegen_sections import scoring_batch

log = logging.getLogger(__name__)

CNN = "cnn"
TINY_CLIP = "tiny-clip"
FROM_SCRATCH = (CNN, TINY_CLIP)
OPEN_CLIP = "open_clip:"
"""Prefix of an encoder that open_clip loads, such as
``open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224``."""

TINY_SIZE = 32
"""Side of the images that the tiny CLIP tower takes, in pixels."""

_EPSILON = 1e-6

Features = Callable[[Tensor, torch.Generator], Tensor]
"""Features of some training rows, given as indices. The generator is for augmentation."""


@dataclass(frozen=True, slots=True)
class TowerSettings:
    """Which backbone encodes the images, and how.

    ``encoder`` is "cnn", "tiny-clip", the folder or Hub name of a Transformers vision model, or ``open_clip:`` and a
    name that open_clip knows. ``layers`` are the hidden states to pool, 1 for the output of the first block. If it is
    empty, ``layer_count`` evenly spaced ones that end with the last are pooled. ``crop_grid`` adds that many times that
    many crops at the image's own resolution, if images are larger than the backbone takes. ``frozen`` of None freezes
    pretrained backbones. ``width`` is that of the CNN's first layer.
    """

    encoder: str = CNN
    revision: str | None = None
    layers: tuple[int, ...] = ()
    layer_count: int = 4
    crop_grid: int = 0
    frozen: bool | None = None
    width: int = 16

    @property
    def is_frozen(self) -> bool:
        """Whether the backbone's parameters stay as they are."""
        return self.encoder not in FROM_SCRATCH if self.frozen is None else self.frozen


class Tower(nn.Module):
    """A backbone with its image size and normalisation.

    Attributes:
        image_size: Side of the images it takes, in pixels.
        num_features: Length of a feature vector.
        frozen: Whether the backbone is never trained.
        batch_size: Images of a pass without gradients.
        known: Digest of an image -> its features on the CPU, of a frozen backbone (``training_features``).
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, backbone: "Backbone", image_size: int, crop_grid: int, frozen: bool) -> None:
        super().__init__()
        self.backbone, self.image_size, self.crop_grid, self.frozen = backbone.module, image_size, crop_grid, frozen
        self.size, self.batch_size = backbone.size, scoring_batch(backbone.size)
        self.known: dict[bytes, Tensor] = {}
        self.register_buffer("mean_C", torch.tensor(backbone.mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(backbone.std), persistent=False)
        if frozen:
            self.backbone.requires_grad_(False)
        self.eval()
        with torch.no_grad():
            self.num_features = int(self(torch.zeros(1, 3, image_size, image_size)).shape[1])

    def train(self, mode: bool = True) -> "Tower":
        """Set train mode, except for a frozen backbone: its dropout stays off."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return features_NF of images in [0, 1] with 1 or 3 channels.

        With crops these are the features of the whole image, the mean of the crops' features and their maximum.
        """
        side = self.image_size
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] not in (1, 3) or images_NCHW.shape[2:] != (side, side):
            raise ValueError(f"images must be N x 1 or 3 x {side} x {side}, got {tuple(images_NCHW.shape)}")
        images_NCHW = images_NCHW.expand(-1, 3, -1, -1)
        whole_NF = self._features(_resized(images_NCHW, self.size))
        if not self.crop_grid:
            return whole_NF
        crops_GNF = torch.stack([self._features(crop) for crop in self._crops(images_NCHW)])
        return torch.cat([whole_NF, crops_GNF.mean(dim=0), crops_GNF.amax(dim=0)], dim=1)

    def _crops(self, images_NCHW: Tensor) -> Iterator[Tensor]:
        spare, grid = self.image_size - self.size, self.crop_grid
        starts = [spare // 2] if grid == 1 else [round(spare * index / (grid - 1)) for index in range(grid)]
        for top in starts:
            for left in starts:
                yield images_NCHW[:, :, top : top + self.size, left : left + self.size]

    def _features(self, images_NCHW: Tensor) -> Tensor:
        mean, std = self.mean_C[:, None, None], self.std_C[:, None, None]
        features: Tensor = self.backbone((images_NCHW - mean) / std)
        return features


@dataclass(frozen=True, slots=True)
class Backbone:
    """A module from normalised images of ``size`` pixels to features, with the normalisation it was trained with."""

    module: nn.Module
    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)


FrozenBackbones = dict[TowerSettings, Backbone]
"""Loaded backbones that are never trained. Towers that differ only in their crops use the same one."""


def build_tower(settings: TowerSettings, image_size: int, seed: int, shared: FrozenBackbones | None = None) -> Tower:
    """Return the tower for images of ``image_size`` pixels.

    Args:
        settings: Backbone, layers and crops.
        image_size: Side of the images.
        seed: Of random parameters.
        shared: Where a frozen backbone is found, or put when it is loaded.

    Raises:
        ModelError: The model cannot be loaded, or a setting does not fit it.
        MissingExtraError: The encoder needs open_clip, which is not installed.
    """
    if settings.encoder in FROM_SCRATCH and settings.is_frozen:
        raise ModelError(
            "imagegen.random_encoder_frozen",
            "an encoder with random parameters must be trained",
            place=settings.encoder,
            value="frozen = true",
            remedy="Set frozen to false, or name a pretrained encoder.",
        )
    backbone = _backbone(settings, image_size, seed, {} if shared is None else shared)
    crop_grid = settings.crop_grid
    if crop_grid and image_size <= backbone.size:
        # The whole image loses nothing by being enlarged, so that crops would add nothing.
        text = "%s: no crops, because it takes images of %d pixels and these have %d"
        log.info(text, settings.encoder, backbone.size, image_size)
        crop_grid = 0
    return Tower(backbone, image_size, crop_grid, settings.is_frozen)


def training_features(tower: Tower, images_NCHW: Tensor, augment: bool) -> tuple[Features, Tensor]:
    """Return a function from rows to their features, and the features_NF of all images before training."""
    plain_NF, device = all_features(tower, images_NCHW), tower.mean_C.device
    if tower.frozen:
        mirrored_VNF = [all_features(tower, images_NCHW.flip(-1))] if augment else []
        return _views(torch.stack([plain_NF, *mirrored_VNF])), plain_NF

    def features(rows_B: Tensor, generator: torch.Generator) -> Tensor:
        batch = as_floats(images_NCHW[rows_B])
        found: Tensor = tower((_augment(batch, generator) if augment else batch).to(device))
        return found

    return features, plain_NF


def held_out_features(tower: Tower, images_NCHW: Tensor) -> Callable[[], Tensor]:
    """Return a function that gives features_NF by the tower's present parameters. A frozen tower runs once."""
    if tower.frozen:
        fixed_NF = all_features(tower, images_NCHW)
        return lambda: fixed_NF
    return lambda: all_features(tower, images_NCHW)


@torch.no_grad()
def all_features(tower: Tower, images_NCHW: Tensor) -> Tensor:
    """Return features_NF of all images in eval mode, a batch at a time.

    A frozen tower caches the features of images in uint8. Those are the rated images, and each is encoded once.
    """
    was_training = tower.training
    tower.eval()
    is_cached = tower.frozen and images_NCHW.dtype == torch.uint8 and len(images_NCHW) > 0
    features_NF = (_cached if is_cached else _encoded)(tower, images_NCHW)
    tower.train(was_training)
    return features_NF


class SmallCnn(nn.Module):
    """Convolutions that halve the image down to 4 pixels or less. Pools mean and standard deviation of their maps.

    A 3 x 3 convolution, GroupNorm and ReLU per layer. The first convolution has no GroupNorm, which would remove the
    contrast of the image.
    """

    def __init__(self, width: int, image_size: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        widths, side = [width], image_size
        while side > 4:
            side = -(-side // 2)
            widths.append(min(2 * widths[-1], 4 * width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after))
            for before, after in pairwise(widths)
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return features_NF."""
        maps_NCHW = self.stem(images_NCHW)
        pooled = [_moments(maps_NCHW.flatten(2))]
        for block in self.blocks:
            maps_NCHW = block(maps_NCHW)
            pooled.append(_moments(maps_NCHW.flatten(2)))
        return torch.cat(pooled, dim=1)


class HiddenStates(nn.Module):
    """A Transformers vision model: its own pooling, and mean and deviation over the tokens of some hidden states."""

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.model, self.layers = model, tuple(layers)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return features_NF."""
        output = self.model(pixel_values=images_NCHW, output_hidden_states=True)
        parts = [_moments(_channels_first(output.hidden_states[layer])) for layer in self.layers]
        pooled = getattr(output, "pooler_output", None)
        return torch.cat(parts if pooled is None else [*parts, pooled.flatten(1)], dim=1)


class TimmLayers(nn.Module):
    """A timm vision transformer, as in open_clip: its first token, and mean and deviation over patches of blocks."""

    def __init__(self, trunk: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.trunk, self.indices = trunk, [layer - 1 for layer in layers]

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return features_NF."""
        trunk: Any = self.trunk
        last, maps = trunk.forward_intermediates(images_NCHW, indices=self.indices)
        pooled = last[:, 0] if trunk.num_prefix_tokens else last.mean(dim=1)
        return torch.cat([*(_moments(each.flatten(2)) for each in maps), pooled], dim=1)


def _backbone(settings: TowerSettings, image_size: int, seed: int, shared: FrozenBackbones) -> Backbone:
    if settings.encoder in FROM_SCRATCH:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if settings.encoder == CNN:
                return Backbone(SmallCnn(settings.width, image_size), image_size)
            return _tiny_clip(settings)
    load = _open_clip_backbone if settings.encoder.startswith(OPEN_CLIP) else _pretrained
    if not settings.is_frozen:
        return load(settings)
    key = replace(settings, crop_grid=0, frozen=True)
    if key not in shared:
        shared[key] = load(settings)
    return shared[key]


def _tiny_clip(settings: TowerSettings) -> Backbone:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=TINY_SIZE,
        patch_size=8,
    )
    model = CLIPVisionModel(config)
    return Backbone(HiddenStates(model, _chosen_layers(settings, config.num_hidden_layers)), TINY_SIZE)


def _pretrained(settings: TowerSettings) -> Backbone:
    """Return a vision model of Transformers: one of its own, or the vision half of a CLIP or SigLIP model."""
    from transformers import AutoImageProcessor

    name = settings.encoder
    model, config = load_half(name, settings.revision, "vision_config", "vision")
    try:
        processor = AutoImageProcessor.from_pretrained(name, revision=settings.revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            "imagegen.encoder_preprocessor_missing", "the encoder must have a preprocessor_config.json", place=name
        ) from error
    if getattr(config, "image_size", None) is None or getattr(config, "num_hidden_layers", None) is None:
        raise ModelError(
            "imagegen.encoder_config_unsupported",
            "the encoder's config must have image_size and num_hidden_layers",
            place=name,
        )
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    layers = _chosen_layers(settings, config.num_hidden_layers)
    return Backbone(HiddenStates(model, layers), size, tuple(processor.image_mean), tuple(processor.image_std))


def _open_clip_backbone(settings: TowerSettings) -> Backbone:
    """Return the vision half of an open_clip model with a timm trunk, such as BiomedCLIP.

    open_clip's text half loads its config from the Hub, so that an offline machine needs the Hub's cache filled before.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("open-clip-torch", "imagegen-biomedclip", f"The encoder {settings.encoder}") from error
    name = settings.encoder.removeprefix(OPEN_CLIP)
    if settings.revision is not None:
        raise ModelError(
            "imagegen.open_clip_revision",
            "an open_clip encoder must have no revision",
            place=name,
            value=settings.revision,
            remedy="Remove it.",
        )
    try:
        # Without require_pretrained open_clip only warns and keeps random parameters.
        visual = open_clip.create_model(name, require_pretrained=True, weights_only=True).visual
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            "imagegen.open_clip_not_loadable",
            "the encoder must be a pretrained model that open_clip can load",
            place=name,
            remedy=f"Correct the name, or download it first. open_clip says: {str(error).splitlines()[0]}",
        ) from error
    trunk: Any = getattr(visual, "trunk", None)
    if not hasattr(trunk, "forward_intermediates"):
        raise ModelError(
            "imagegen.open_clip_trunk_missing", "the open_clip model must have a timm vision trunk", place=name
        )
    layers = _chosen_layers(settings, len(trunk.blocks))
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    return Backbone(TimmLayers(trunk, layers), size, tuple(visual.image_mean), tuple(visual.image_std))


def _chosen_layers(settings: TowerSettings, n_layers: int) -> tuple[int, ...]:
    if not settings.layers:
        count = min(settings.layer_count, n_layers)
        return tuple(round(n_layers * (index + 1) / count) for index in range(count))
    if not all(1 <= layer <= n_layers for layer in settings.layers):
        raise ModelError(
            "imagegen.encoder_layer_out_of_range",
            f"layers must be from 1 to {n_layers}",
            place=settings.encoder,
            value=settings.layers,
        )
    return settings.layers


def _channels_first(hidden: Tensor) -> Tensor:
    """Return N x channels x positions from N x tokens x channels or (convolutions) N x channels x H x W."""
    return hidden.flatten(2) if hidden.ndim == 4 else hidden.transpose(1, 2)


def _moments(maps_NCP: Tensor) -> Tensor:
    """Return mean and standard deviation over positions, side by side: N x 2C."""
    mean_NC1 = maps_NCP.mean(dim=2, keepdim=True)
    # Tensor.var takes several times as long on a CPU.
    variance_NC = (maps_NCP - mean_NC1).square().mean(dim=2)
    return torch.cat([mean_NC1[:, :, 0], (variance_NC + _EPSILON).sqrt()], dim=1)


def _resized(images_NCHW: Tensor, size: int) -> Tensor:
    if images_NCHW.shape[-1] == size:
        return images_NCHW
    return interpolate(images_NCHW, (size, size), mode="bilinear", antialias=True, align_corners=False)


def _encoded(tower: Tower, images_NCHW: Tensor) -> Tensor:
    device = tower.mean_C.device
    return torch.cat([tower(as_floats(batch).to(device)) for batch in images_NCHW.split(tower.batch_size)])


def _cached(tower: Tower, images_NCHW: Tensor) -> Tensor:
    keys = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images_NCHW]
    new: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        if key not in tower.known:
            new.setdefault(key, row)
    if new:
        found_NF = _encoded(tower, images_NCHW[list(new.values())])
        tower.known.update(zip(new, found_NF.cpu(), strict=True))
    return torch.stack([tower.known[key] for key in keys]).to(tower.mean_C.device)


def _views(features_VNF: Tensor) -> Features:
    """Return a function that draws one of the views of each row: the image or its mirror image."""

    def features(rows_B: Tensor, generator: torch.Generator) -> Tensor:
        views_B = torch.randint(0, len(features_VNF), (len(rows_B),), generator=generator)
        return features_VNF[views_B, rows_B]

    return features


def _augment(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images from left to right, and shift the batch by at most 1/16 of the side.

    Neither changes the quality that a rating is about.
    """
    mirror_N = torch.rand(len(images_NCHW), generator=generator) < 0.5
    images_NCHW = torch.where(mirror_N[:, None, None, None], images_NCHW.flip(-1), images_NCHW)
    side = images_NCHW.shape[-1]
    reach = side // 16
    if not reach:
        return images_NCHW
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = pad(images_NCHW, (reach, reach, reach, reach), mode="reflect")
    return padded[:, :, top : top + side, left : left + side]
