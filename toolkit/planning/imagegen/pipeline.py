"""The generator's base before it is loaded: where it is, whether it can be loaded, and whether prompts are too long."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import Problem, ToolkitError
from toolkit.planning.findings import Finding
from toolkit.planning.imagegen.layout import KNOWN, PARTS, Layout, read_layout
from toolkit.recipe.checks import is_folder_name
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import TINY_ENCODERS, TINY_GENERATOR

INDEX = "model_index.json"
PIPELINE = "StableDiffusionPipeline"
DIT = "toolkit-dit"
"""``model_type`` of the DiT that ships with the package."""
PLACE, PROMPTS = "[imagegen.generator] model", "[imagegen] prompts"
DOWNLOAD = "Download it, or unset HF_HUB_OFFLINE."
SHOWN = 3
CLIP_POSITIONS = 77

State = Literal["shipped", "folder", "cache", "reachable", "missing"]


@dataclass(frozen=True, slots=True)
class Base:
    """The base of a recipe.

    Attributes:
        state: where it is. ``reachable``: on the Hub, as far as its name says.
        folder: in this machine, if it is.
        kind: what a folder or the package holds.
        layout: None if it is a DiT or not known.
        findings: problems.
        untried: what -> why it was not tried.
    """

    state: State
    folder: Path | None = None
    kind: Literal["pipeline", "dit"] = "pipeline"
    layout: Layout | None = None
    findings: tuple[Finding, ...] = ()
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
        return Base("missing", findings=(Finding(absent),))
    if constants.HF_HUB_OFFLINE:
        rule = "the base must be in the Hub's cache while HF_HUB_OFFLINE=1"
        absent = Problem("imagegen.base_not_cached", rule, PLACE, name, DOWNLOAD)
        return Base("missing", layout=layout, findings=(Finding(absent),))
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


def check_prompts(section: Imagegen, base: Base, prompts: Sequence[str]) -> tuple[list[Finding], Mapping[str, str]]:
    """Return prompts that the generator's or the policy's text encoder cannot take, and what was not tried."""
    if not prompts:
        return [], {"prompts": "not tried: they come with the ratings"}
    findings: list[Finding] = []
    untried: dict[str, str] = {}
    policy = _encoder_folder(section.policy.encoder, section.policy.revision)
    tries: dict[str, Callable[[], list[Finding]] | None] = {"prompts": None, "prompts of the policy": None}
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
            found.append(Finding(replace(error.problem, place=PLACE), certain=state == "folder"))
    if layout is not None:
        found += _check_layout(section, layout)
    return Base(state, folder, "pipeline", layout or KNOWN.get(section.generator.model), tuple(found))


def _check_folder(folder: Path, *, certain: bool) -> Iterator[Finding]:
    """Yield what ``imagegen.stable_diffusion`` rejects: another pipeline, and parts that are stored as pickles only."""
    kind = _fields(folder / INDEX).get("_class_name")
    if kind != PIPELINE:
        rule = "the base must be a Stable Diffusion 1.x or 2.x text-to-image pipeline"
        remedy = f"Choose a base whose _class_name is {PIPELINE}."
        yield Finding(Problem("imagegen.pipeline_not_stable_diffusion", rule, PLACE, kind, remedy))
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
        yield Finding(Problem("imagegen.pipeline_pickled", rule, PLACE, value, remedy), certain=certain)


def _check_layout(section: Imagegen, layout: Layout) -> Iterator[Finding]:
    unit = layout.unit
    if section.size % unit:
        nearest = max(unit, round(section.size / unit) * unit)
        rule, place = f"the image size must be a multiple of {unit} pixels for this base", "[imagegen] size"
        yield Finding(Problem("imagegen.image_size_not_multiple", rule, place, section.size, f"Use {nearest}."))
    if layout.unet.latent != layout.vae.latent:
        rule = f"the UNet must take the {layout.vae.latent} channels of a latent"
        remedy = "Choose a text-to-image base, not one for inpainting or editing."
        yield Finding(Problem("imagegen.unet_channels_not_latent", rule, PLACE, layout.unet.latent, remedy))


def _long_prompts(tokenizer: Path, encoder: Path, prompts: Sequence[str]) -> list[Finding]:
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
    return [Finding(Problem("imagegen.prompt_too_long", rule, PROMPTS, shown, "Shorten these prompts."))]


def _dit_prompts(folder: Path, prompts: Sequence[str]) -> list[Finding]:
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
        return [Finding(replace(error.problem, place=f"{PROMPTS}, {error.place}"))]
    return []


def _tiny_folder() -> Path:
    import toolkit

    return Path(toolkit.__file__).parent / "imagegen" / "tiny_base"


def _is_dit(folder: Path) -> bool:
    return _fields(folder / "config.json").get("model_type") == DIT


def _fields(file: Path) -> Mapping[str, Any]:
    """Return the fields of a JSON file. Empty: it is missing or damaged."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, Mapping) else {}
