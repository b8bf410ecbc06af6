"""The models of a recipe before they are loaded: where they are, whether they can be loaded, and their shapes.

The generator's base with its prompts, and the encoders of the scoring models. Encoders compute in float32.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import ModelError, Problem, ToolkitError
from toolkit.models.weight_files import model_weights
from toolkit.planning.findings import PlanFinding, from_error
from toolkit.planning.imagegen.layout import KNOWN, PARTS, Layout, TextEncoder, read_layout, text_encoder_of
from toolkit.planning.passes import Cost
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import BIOMEDCLIP, TINY_ENCODERS, TINY_GENERATOR, scoring_batch
from toolkit.recipe.model_kind import is_folder_name

INDEX = "model_index.json"
PIPELINE = "StableDiffusionPipeline"
DIT = "toolkit-dit"
"""``model_type`` of the DiT that ships with the package."""
PLACE, PROMPTS = "[imagegen.generator] model", "[imagegen] prompts"
DOWNLOAD = "Download it, or unset HF_HUB_OFFLINE."
SHOWN = 3
CLIP_POSITIONS = 77

State = Literal["shipped", "folder", "cache", "reachable", "missing"]

FLOAT = 4
LAUNCHES = 14
"""Kernels of a layer."""


@dataclass(frozen=True, slots=True)
class Base:
    """The base of a recipe.

    Attributes:
        state: where it is. ``reachable``: on the Hub, as far as its name says.
        folder: the folder of a local model. None otherwise.
        kind: the kind of the model in the folder or the package.
        layout: None if it is a DiT or not known.
        findings: problems.
        untried: what -> why it was not tried.
    """

    state: State
    folder: Path | None = None
    kind: Literal["pipeline", "dit"] = "pipeline"
    layout: Layout | None = None
    findings: tuple[PlanFinding, ...] = ()
    untried: Mapping[str, str] = field(default_factory=dict)


def find_pipeline(section: Imagegen) -> Base:
    """Return the base, looked for in a folder, in the package and in the Hub's cache. No request is made."""
    from huggingface_hub import constants

    name = section.generator.model
    if name == TINY_GENERATOR:
        return Base("shipped", _tiny_folder(), "dit")
    folder = Path(name)
    if folder.is_dir():
        return Base("folder", folder, "dit") if _is_dit(folder) else _inspect_pipeline(section, folder, "folder")
    index = cached(name, INDEX, section.generator.revision)
    if index is not None:
        return _inspect_pipeline(section, index.parent, "cache")
    layout = KNOWN.get(name)
    if is_folder_name(name):
        absent = Problem("imagegen.base_folder_missing", "must be an existing folder", PLACE, name, "Correct the path.")
        return Base("missing", findings=(PlanFinding(absent),))
    if constants.HF_HUB_OFFLINE:
        rule = "the base must be in the Hub's cache while HF_HUB_OFFLINE=1"
        absent = Problem("imagegen.base_not_cached", rule, PLACE, name, DOWNLOAD)
        return Base("missing", layout=layout, findings=(PlanFinding(absent),))
    return Base("reachable", layout=layout, untried={"base": f"not tried: {name} is not downloaded"})


def cached(name: str, file: str, revision: str | None) -> Path | None:
    """Return a file of a Hub repository in the local cache. None: not cached, or not a Hub name."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def check_prompts(section: Imagegen, base: Base, prompts: Sequence[str]) -> tuple[list[PlanFinding], Mapping[str, str]]:
    """Return prompts that the text encoder of generator or policy cannot take, and the checks that were not tried."""
    if not prompts:
        return [], {"prompts": "not tried: they come with the ratings"}
    findings: list[PlanFinding] = []
    untried: dict[str, str] = {}
    policy = _encoder_folder(section.policy.encoder, section.policy.revision)
    tries: dict[str, Callable[[], list[PlanFinding]] | None] = {"prompts": None, "prompts of the policy": None}
    if base.kind == "dit" and base.folder is not None:
        tries["prompts"] = partial(_dit_prompts, base.folder, prompts)
    elif base.folder is not None and (base.folder / "tokenizer").is_dir():
        tries["prompts"] = partial(_long_prompts, base.folder / "tokenizer", base.folder / "text_encoder", prompts)
    if section.policy.encoder in TINY_ENCODERS:
        del tries["prompts of the policy"]
    elif policy is not None:
        tries["prompts of the policy"] = partial(_long_prompts, policy, policy, prompts)
    for what, find in tries.items():
        if find is None:
            untried[what] = "not tried: the tokenizer is not downloaded"
            continue
        try:
            findings += find()
        except (ToolkitError, OSError, ValueError) as error:
            untried[what] = f"not tried: the tokenizer cannot be loaded ({str(error).splitlines()[0]})"
    return findings, untried


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


KNOWN_ENCODERS: Mapping[str, Encoder] = {
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
        key: the recipe's key that names the encoder.
        name: the name of the encoder.
        encoder: its shapes. None: of random parameters, or not known.
        views: the views of an image: the whole, and its crops.
        local: whether the shapes come from files in this machine.
        revision: the revision of a Hub encoder.
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

    def load(self, images: float) -> Cost:
        """Return the load of scoring some images."""
        if self.encoder is None:
            return Cost()
        batches = images / scoring_batch(self.encoder.vision.size)
        launches = LAUNCHES * self.encoder.vision.layers * self.views * batches
        return Cost(self.flops * images, 3.0 * self.bytes * self.views * batches, launches)


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
"""Scoring models that are on the GPU at the same time (``scorers.train_scorers``). Otherwise they are in RAM."""


def resident_bytes(scorers: Mapping[str, Scorer], shared: Collection[str]) -> int:
    """Return the bytes of the scoring models that are on the GPU at the same time, at most.

    Args:
        scorers: the scorers from ``scorers_of``.
        shared: names of the scorers whose vision tower is frozen. Those with the same encoder use it together.
    """
    return max(_together([(name, scorers[name]) for name in names], shared) for names in RESIDENT)


def stored_bytes(scorers: Mapping[str, Scorer], shared: Collection[str]) -> int:
    """Return the bytes of all scoring models, which are in RAM."""
    return _together(list(scorers.items()), shared)


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


def check_encoder(scorer: Scorer) -> Iterator[PlanFinding]:
    """Yield the reasons that an encoder cannot be loaded: pickles only, or a machine that is offline and lacks it."""
    from huggingface_hub import constants

    if scorer.name in (*TINY_ENCODERS, BIOMEDCLIP):
        return
    place, folder = f"[imagegen] {scorer.key}", Path(scorer.name)
    if folder.is_dir():
        if not any(folder.glob("*.safetensors")):
            rule = "the encoder must be stored as safetensors, because a pickle can run code"
            remedy = "Choose a revision with safetensors, or convert it with save_pretrained."
            yield PlanFinding(Problem("imagegen.encoder_pickled", rule, place, str(folder), remedy))
            return
        try:
            model_weights(folder)
        except ModelError as error:
            yield from_error(error, place)
    elif constants.HF_HUB_OFFLINE and cached(scorer.name, "config.json", scorer.revision) is None:
        rule, remedy = "the encoder must be in the Hub's cache while HF_HUB_OFFLINE=1", DOWNLOAD
        yield PlanFinding(Problem("imagegen.encoder_not_cached", rule, place, scorer.name, remedy))


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


def _encoder_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of an encoder with its tokenizer. None: it is not on this machine."""
    if Path(name).is_dir():
        return Path(name)
    file = cached(name, "tokenizer_config.json", revision)
    return None if file is None else file.parent


def _inspect_pipeline(section: Imagegen, folder: Path, state: Literal["folder", "cache"]) -> Base:
    """Return a pipeline on this machine. A part that the cache lacks can still be downloaded."""
    found = list(_check_folder(folder, certain=state == "folder"))
    try:
        layout: Layout | None = read_layout(folder)
    except ToolkitError as error:
        layout = None
        if not found:
            found.append(PlanFinding(replace(error.problem, place=PLACE), certain=state == "folder"))
    if layout is not None:
        found += _check_layout(section, layout)
    return Base(state, folder, "pipeline", layout or KNOWN.get(section.generator.model), tuple(found))


def _check_folder(folder: Path, *, certain: bool) -> Iterator[PlanFinding]:
    """Yield what ``imagegen.stable_diffusion`` rejects: another pipeline, and parts that are stored as pickles only."""
    kind = _fields(folder / INDEX).get("_class_name")
    if kind != PIPELINE:
        rule = "the base must be a Stable Diffusion 1.x or 2.x text-to-image pipeline"
        remedy = f"Choose a base whose _class_name is {PIPELINE}."
        yield PlanFinding(Problem("imagegen.pipeline_not_stable_diffusion", rule, PLACE, kind, remedy))
        return
    for part in PARTS:
        if any((folder / part).glob("*.safetensors")):
            continue
        pickles = sorted(path.name for pattern in ("*.bin", "*.ckpt", "*.pt") for path in (folder / part).glob(pattern))
        if not certain and not pickles:
            continue
        rule = "every part of the base must be stored as safetensors, because a pickle can run code"
        remedy = "Choose a revision with safetensors, or convert it with save_pretrained."
        value = {"part": part, "pickles": pickles}
        yield PlanFinding(Problem("imagegen.pipeline_pickled", rule, PLACE, value, remedy), certain=certain)


def _check_layout(section: Imagegen, layout: Layout) -> Iterator[PlanFinding]:
    unit = layout.unit
    if section.size % unit:
        nearest = max(unit, round(section.size / unit) * unit)
        rule, place = f"the image size must be a multiple of {unit} pixels for this base", "[imagegen] size"
        yield PlanFinding(Problem("imagegen.image_size_not_multiple", rule, place, section.size, f"Use {nearest}."))
    if layout.unet.latent != layout.vae.latent:
        rule = f"the UNet must take the {layout.vae.latent} channels of a latent"
        remedy = "Choose a text-to-image base, not one for inpainting or editing."
        yield PlanFinding(Problem("imagegen.unet_channels_not_latent", rule, PLACE, layout.unet.latent, remedy))


def _long_prompts(tokenizer: Path, encoder: Path, prompts: Sequence[str]) -> list[PlanFinding]:
    """Return prompts with more tokens than a text encoder, or the text half of a dual tower, has positions."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    fields = _fields(encoder / "config.json")
    positions = fields.get("text_config", fields).get("max_position_embeddings", CLIP_POSITIONS)
    limit = min(int(loaded.model_max_length), int(positions))
    lengths = {text: len(loaded(text, verbose=False).input_ids) for text in dict.fromkeys(prompts)}
    long = sorted((text for text in lengths if lengths[text] > limit), key=lambda text: -lengths[text])
    if not long:
        return []
    shown = {text[:40]: lengths[text] for text in long[:SHOWN]}
    rule = f"a prompt must have at most the text encoder's {limit} tokens. {len(long)} of {len(lengths)} have more"
    return [PlanFinding(Problem("imagegen.prompt_too_long", rule, PROMPTS, shown, "Shorten these prompts."))]


def _dit_prompts(folder: Path, prompts: Sequence[str]) -> list[PlanFinding]:
    """Return prompts with words outside a DiT's vocabulary, or with too many words."""
    from pydantic import TypeAdapter

    from toolkit.errors import DataError
    from toolkit.imagegen.generators.dit import DitConfig, encode_words

    fields = _fields(folder / "config.json")
    if not fields:
        return []
    names = DitConfig.__dataclass_fields__.keys()
    config = TypeAdapter(DitConfig).validate_python({key: one for key, one in fields.items() if key in names})
    try:
        encode_words(config, list(prompts))
    except DataError as error:
        return [PlanFinding(replace(error.problem, place=f"{PROMPTS}, {error.place}"))]
    return []


def _tiny_folder() -> Path:
    import toolkit

    return Path(toolkit.__file__).parent / "imagegen" / "tiny_base"


def _is_dit(folder: Path) -> bool:
    return _fields(folder / "config.json").get("model_type") == DIT


def _fields(file: Path) -> Mapping[str, Any]:
    """Return the fields of a JSON file. Empty: it is missing or damaged."""
    return _read_object(file) or {}


def _read_object(file: Path) -> Mapping[str, Any] | None:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return fields if isinstance(fields, Mapping) else None


def _together(scorers: Sequence[tuple[str, Scorer]], shared: Collection[str]) -> int:
    towers: dict[object, int] = {}
    total = 0
    for name, one in scorers:
        vision = 0 if one.encoder is None else FLOAT * one.encoder.vision.parameters
        towers[(one.name, one.revision) if name in shared else name] = vision
        total += one.bytes - vision
    return total + sum(towers.values())


def _scorer(key: str, name: str, revision: str | None) -> Scorer:
    if name in TINY_ENCODERS:
        return Scorer(key, name, None)
    fields = _local_fields(name, revision)
    found = None if fields is None else read_encoder(fields)
    return Scorer(key, name, found or KNOWN_ENCODERS.get(name), 1, found is not None, revision)


def _has_crops(section: Imagegen, scorer: Scorer) -> bool:
    """Return whether images are larger than the encoder's input, as ``build_tower`` requires for crops."""
    return scorer.encoder is not None and section.size > scorer.encoder.vision.size


def _local_fields(name: str, revision: str | None) -> Mapping[str, Any] | None:
    file = Path(name) / "config.json" if Path(name).is_dir() else cached(name, "config.json", revision)
    return _read_object(file) if file is not None and file.is_file() else None
