"""The encoders of the scoring models: their shapes, and what a scoring pass takes. They compute in float32."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.errors import Problem
from toolkit.planning.findings import Finding
from toolkit.planning.imagegen.layout import TextEncoder, text_encoder_of
from toolkit.planning.imagegen.pipeline import DOWNLOAD, cached
from toolkit.planning.passes import Load
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import BIOMEDCLIP, TINY_ENCODERS, scoring_batch

FLOAT = 4
LAUNCHES = 14
"""Kernels of a layer."""


@dataclass(frozen=True, slots=True)
class Vit:
    """A vision transformer: width, inner width and layers, and patch and image sides in pixels."""

    width: int
    inner: int
    layers: int
    patch: int
    size: int

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.size // self.patch) ** 2 + 1

    @property
    def parameters(self) -> int:
        """Number of parameters, as CLIP's vision model has them."""
        width, inner = self.width, self.inner
        layer = 4 * (width**2 + width) + 2 * width * inner + inner + width + 4 * width
        return self.layers * layer + 3 * self.patch**2 * width + (self.tokens + 5) * width

    @property
    def flops(self) -> float:
        """FLOPs of one view of an image."""
        return 2.0 * self.parameters * self.tokens + 4.0 * self.layers * self.tokens**2 * self.width


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder with the text half of a dual tower, if it has one."""

    vision: Vit
    text: TextEncoder | None = None


KNOWN: Mapping[str, Encoder] = {
    "openai/clip-vit-large-patch14": Encoder(Vit(1024, 4096, 24, 14, 224), TextEncoder()),
    "openai/clip-vit-base-patch16": Encoder(Vit(768, 3072, 12, 16, 224), TextEncoder(512, 2048)),
    "openai/clip-vit-base-patch32": Encoder(Vit(768, 3072, 12, 32, 224), TextEncoder(512, 2048)),
    "facebook/dinov2-small": Encoder(Vit(384, 1536, 12, 14, 518)),
    "facebook/dinov2-base": Encoder(Vit(768, 3072, 12, 14, 518)),
    "facebook/dinov2-large": Encoder(Vit(1024, 4096, 24, 14, 518)),
    BIOMEDCLIP: Encoder(Vit(768, 3072, 12, 16, 224)),
}
"""Name -> shapes, for encoders that are not in this machine."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """One scoring model.

    Attributes:
        key: of the recipe that names its encoder.
        name: of the encoder.
        encoder: its shapes. None: of random parameters, or not known.
        views: of an image: the whole, and its crops.
        local: whether the shapes come from files in this machine.
        revision: of a Hub encoder.
    """

    key: str
    name: str
    encoder: Encoder | None
    views: int = 1
    local: bool = False
    revision: str | None = None

    @property
    def known(self) -> bool:
        """Whether its size is known. Encoders of random parameters are too small to count."""
        return self.encoder is not None or self.name in TINY_ENCODERS

    @property
    def bytes(self) -> int:
        """Bytes of its parameters."""
        if self.encoder is None:
            return 0
        text = self.encoder.text if self.key.startswith("policy") else None
        return FLOAT * (self.encoder.vision.parameters + (0 if text is None else text.parameters))

    @property
    def flops(self) -> float:
        """FLOPs for one image."""
        return 0.0 if self.encoder is None else self.views * self.encoder.vision.flops

    def load(self, images: float) -> Load:
        """Return the load of scoring some images."""
        if self.encoder is None:
            return Load()
        batches = images / scoring_batch(self.encoder.vision.size)
        launches = LAUNCHES * self.encoder.vision.layers * self.views * batches
        return Load(self.flops * images, 3.0 * self.bytes * self.views * batches, launches)


def scorers_of(section: Imagegen) -> Mapping[str, Scorer]:
    """Return selector, policy, judge and extractor."""
    selector, policy, judge = section.selector, section.policy, section.judge
    found = {
        "selector": _scorer("selector.encoder", selector.encoder, selector.revision),
        "policy": _scorer("policy.encoder", policy.encoder, policy.revision),
        "judge": _scorer("judge.encoder", judge.encoder, judge.revision),
        "extractor": _scorer("judge.encoder", judge.encoder, judge.revision),
    }
    views = 1 + selector.crop_grid**2
    return found | {
        name: replace(found[name], views=views) for name in ("selector", "judge") if _has_crops(section, found[name])
    }


RESIDENT = (("selector", "policy"), ("judge",), ("extractor",))
"""Scoring models that are on the GPU at the same time (``imagegen.scorers.train``). Otherwise they are in RAM."""


def resident_bytes(scorers: Mapping[str, Scorer], shared: Collection[str]) -> int:
    """Return the bytes of the scoring models that are on the GPU at the same time, at most.

    Args:
        scorers: of ``scorers_of``.
        shared: names of the scorers whose vision tower is frozen. Those with the same encoder share it.
    """
    return max(_together([(name, scorers[name]) for name in names], shared) for names in RESIDENT)


def stored_bytes(scorers: Mapping[str, Scorer], shared: Collection[str]) -> int:
    """Return the bytes of all scoring models, which are in RAM."""
    return _together(list(scorers.items()), shared)


def _together(scorers: Sequence[tuple[str, Scorer]], shared: Collection[str]) -> int:
    towers: dict[object, int] = {}
    total = 0
    for name, one in scorers:
        vision = 0 if one.encoder is None else FLOAT * one.encoder.vision.parameters
        towers[(one.name, one.revision) if name in shared else name] = vision
        total += one.bytes - vision
    return total + sum(towers.values())


def scoring_bytes(scorers: Mapping[str, Scorer], side: int) -> int:
    """Return the bytes of the largest scoring pass: pixels, all hidden states, and one layer at work."""
    most = 0
    for one in scorers.values():
        if one.encoder is None:
            continue
        vit = one.encoder.vision
        states = (vit.layers + 1) * vit.width + 2 * vit.inner + 4 * vit.width
        pixels = 3 * (vit.size**2 + side**2)
        most = max(most, scoring_batch(vit.size) * FLOAT * (vit.tokens * states + pixels))
    return most


def check_encoder(scorer: Scorer) -> Iterator[Finding]:
    """Yield what keeps an encoder from being loaded: pickles only, or a machine that is offline and lacks it."""
    from huggingface_hub import constants

    if scorer.name in (*TINY_ENCODERS, BIOMEDCLIP):
        return
    place, folder = f"[imagegen] {scorer.key}", Path(scorer.name)
    if folder.is_dir():
        if not any(folder.glob("*.safetensors")):
            rule = "the encoder must be stored as safetensors, because a pickle can run code"
            remedy = "Choose a revision with safetensors, or convert it with save_pretrained."
            yield Finding(Problem("imagegen.encoder_pickled", rule, place, str(folder), remedy))
    elif constants.HF_HUB_OFFLINE and cached(scorer.name, "config.json", scorer.revision) is None:
        rule, remedy = "the encoder must be in the Hub's cache while HF_HUB_OFFLINE=1", DOWNLOAD
        yield Finding(Problem("imagegen.encoder_not_cached", rule, place, scorer.name, remedy))


def _scorer(key: str, name: str, revision: str | None) -> Scorer:
    if name in TINY_ENCODERS:
        return Scorer(key, name, None)
    fields = _local_fields(name, revision)
    found = None if fields is None else read_encoder(fields)
    return Scorer(key, name, found or KNOWN.get(name), 1, found is not None, revision)


def _has_crops(section: Imagegen, scorer: Scorer) -> bool:
    """Return whether images are larger than the encoder's input, as ``build_tower`` requires for crops."""
    return scorer.encoder is not None and section.size > scorer.encoder.vision.size


def read_encoder(fields: Mapping[str, Any]) -> Encoder | None:
    """Return the shapes of a config.json. None: it is of an architecture that is not known here."""
    text = fields.get("text_config") if isinstance(fields.get("vision_config"), Mapping) else None
    vision = fields.get("vision_config", fields)
    try:
        width = int(vision["hidden_size"])
        inner = int(vision.get("intermediate_size") or width * vision.get("mlp_ratio", 4))
        vit = Vit(width, inner, int(vision["num_hidden_layers"]), int(vision["patch_size"]), int(vision["image_size"]))
        if text is None:
            return Encoder(vit)
        return Encoder(vit, text_encoder_of(text))
    except (KeyError, TypeError, ValueError):
        return None


def _local_fields(name: str, revision: str | None) -> Mapping[str, Any] | None:
    file = Path(name) / "config.json" if Path(name).is_dir() else cached(name, "config.json", revision)
    if file is None or not file.is_file():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, Mapping) else None
