"""Disk that a run of [imagegen] takes, and what it downloads."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.errors import Problem
from toolkit.planning.disk import SPARE, Disk
from toolkit.planning.findings import Finding, warning
from toolkit.planning.imagegen.encoders import FLOAT, Encoder, Scorer
from toolkit.planning.imagegen.layout import Layout
from toolkit.planning.imagegen.pipeline import Base, cached
from toolkit.planning.imagegen.ratings import RatingsFacts
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import TINY_ENCODERS

ADAM = 2
"""Moments of AdamW for each parameter."""
TINY_LORA, TINY_SCORER = 3_072, 400_000
"""Parameters of a LoRA of rank 1 on the DiT that ships, and of an encoder of random parameters, about."""
MOMENTS = 2
"""Mean and standard deviation of each hidden layer's states."""


def plan_imagegen_disk(
    recipe: Recipe, section: Imagegen, base: Base, scorers: Mapping[str, Scorer], ratings: RatingsFacts | None
) -> Disk:
    """Return the parts of the run folder and the downloads.

    A checkpoint holds the LoRA, its file for diffusers, AdamW's moments and the best round's LoRA, and selector and
    policy without frozen encoders. While one is written, there is one more than ``run.keep_checkpoints``.
    """
    lora = FLOAT * _lora(section, base.layout)
    heads = {name: FLOAT * _trained(section, one) for name, one in scorers.items() if name != "extractor"}
    # In stage 1 a checkpoint also has AdamW's moments and the best epoch of selector and policy.
    own = heads["selector"] + heads["policy"]
    each = max((2 + ADAM + 1) * lora + own, (1 + ADAM + 1) * own)
    arms = len(section.update.methods) + int(section.update.control)
    parts = {
        "checkpoints": (recipe.run.keep_checkpoints + 1) * each,
        "LoRA of each method": arms * lora,
        "scorers": sum(heads.values()),
    }
    if section.synthetic is not None:
        parts["synthetic images"] = section.synthetic.images * section.size**2
    elif ratings is not None and recipe.images.disk_cache:
        parts["cache of images (in the cache folder)"] = ratings.images * 3 * section.size**2
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free, cache_free = (shutil.disk_usage(_existing(one)).free for one in (recipe.run_folder.absolute(), cache))
    return Disk(parts, free, _downloads(section, base, scorers), cache, cache_free)


def check_imagegen_disk(recipe: Recipe, disk: Disk) -> Iterator[Finding]:
    """Yield problems and warnings about free disk space, which are estimates."""
    place = f"disk of {recipe.run_folder.parent}"
    free = round(disk.free / 1e9, 1)
    remedy = "Free disk space, lower run.keep_checkpoints, or choose another run.folder."
    if disk.needed > disk.free:
        rule = f"about {disk.needed / 1e9:.1f} GB must be free"
        yield Finding(Problem("plan.disk_too_small", rule, place, free, remedy), certain=False)
    elif disk.needed + SPARE > disk.free:
        rule = f"the run needs about {disk.needed / 1e9:.1f} GB, and {SPARE / 1e9:.0f} GB more should be free"
        yield warning(Problem("plan.disk_nearly_full", rule, place, free, remedy))
    fetched = sum(disk.downloads.values())
    if fetched > disk.cache_free:
        rule = f"{fetched / 1e9:.1f} GB must be free to download {' and '.join(disk.downloads)}"
        place, free = f"disk of {disk.cache}", round(disk.cache_free / 1e9, 1)
        remedy = "Free disk space, or set HF_HOME to a folder on another disk."
        yield Finding(Problem("plan.cache_disk_too_small", rule, place, free, remedy), certain=False)


def _downloads(section: Imagegen, base: Base, scorers: Mapping[str, Scorer]) -> dict[str, int]:
    """Return the bytes of repositories that are not on this machine. Pipelines and encoders are stored in float32."""
    found: dict[str, int] = {}
    if base.state == "reachable" and base.layout is not None:
        found[section.generator.model] = FLOAT * base.layout.parameters
    for one in scorers.values():
        away = not Path(one.name).is_dir() and cached(one.name, "model.safetensors", None) is None
        if one.encoder is not None and away:
            found[one.name] = FLOAT * _stored(one.encoder)
    return found


def _stored(encoder: Encoder) -> int:
    return encoder.vision.parameters + (encoder.text.parameters if encoder.text else 0)


def _lora(section: Imagegen, layout: Layout | None) -> int:
    rank = section.generator.lora.r
    return TINY_LORA * rank if layout is None else layout.unet.lora_parameters(rank)


def _trained(section: Imagegen, scorer: Scorer) -> int:
    """Return the number of parameters of heads or fusion layers, and of an encoder that is trained."""
    tunings = {
        "selector.encoder": section.selector.tuning,
        "policy.encoder": section.policy.tuning,
        "judge.encoder": section.judge.tuning,
    }
    full = tunings[scorer.key] == "full"
    if scorer.encoder is None:
        return TINY_SCORER if scorer.name in TINY_ENCODERS else 0
    vision = scorer.encoder.vision
    features = (MOMENTS * min(section.selector.layers, vision.layers) + 1) * vision.width
    own = vision.parameters if full else 0
    if scorer.key == "policy.encoder":
        text = scorer.encoder.text.width if scorer.encoder.text else 0
        return own + section.policy.projection * (features + text)
    views = 3 if scorer.views > 1 else 1
    return own + section.selector.heads * section.selector.hidden * views * features


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
