"""The section [imagegen]: RLHF for a medical image generator.

A ratings file with ``image_path, rating, modality, expert_level, prompt`` trains a selector (image quality), a policy
(agreement of image and prompt) and a judge, which is never a reward. The generator is then updated by their rewards.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from toolkit.recipe.imagegen_sections import (
    BIOMEDCLIP,
    SYNTHETIC_EXPERT_LEVELS,
    SYNTHETIC_MODALITIES,
    TINY_ENCODERS,
    FixedWindow,
    Fraction,
    Generator,
    Guards,
    ImagegenSection,
    Judge,
    Name,
    Policy,
    Selector,
    SyntheticRatings,
    Update,
)

MAX_SIDE = 2048

IMAGEGEN_PATHS: frozenset[tuple[str, ...]] = frozenset({("imagegen", "ratings"), ("imagegen", "image_root")})
"""Keys whose values are paths, which loading makes absolute."""


class Imagegen(ImagegenSection):
    """RLHF for a medical image generator from expert ratings."""

    ratings: tuple[Name, ...] = ()
    """Files (.csv .jsonl .json .parquet) with image_path, rating, modality, expert_level and prompt. Optional columns:
    patient_id and rater_id. An image can have several ratings."""
    synthetic: SyntheticRatings | None = None
    """Generate synthetic images and ratings instead of reading files."""
    image_root: Path | None = None
    """Relative image paths start here and none may leave it. Default: the folder of the ratings file."""
    rating_range: tuple[float, ...] = (1, 2, 3)
    """All rating levels, rising from the worst to the best."""
    modalities: tuple[Name, ...] = ("OCT", "Fundus", "CT", "X-Ray", "MRI")
    """All modalities. A row with another modality cannot be used."""
    expert_levels: tuple[int, ...] = (1, 2, 3)
    """All expert levels, from the lowest to the highest."""
    expert_weight: Literal["linear", "table", "precision"] = "linear"
    """Weight of a rating in the loss by its expert level. It never changes the rating. ``linear``: level / highest
    level. ``table``: from ``expert_table``. ``precision``: the inverse variance, estimated from images with several
    ratings."""
    expert_table: dict[str, float] = Field(default_factory=dict)
    """Expert level -> weight for ``expert_weight = "table"``, such as { 1 = 0.2, 2 = 0.5, 3 = 1.0 }."""
    max_dropped: Fraction = 0.05
    """A larger fraction of unusable rows stops the run."""
    window: Literal["auto", "fixed"] = "auto"
    """``auto``: DICOM's own window, otherwise the data range. ``fixed``: the window of ``windows`` by modality. Images
    of 8 bits are left as they are."""
    windows: dict[str, FixedWindow] = Field(default_factory=dict)
    """Modality -> window for ``window = "fixed"``. Modalities without an entry use ``auto``."""
    square: Literal["pad", "crop"] = "pad"
    """How an image becomes square: black margins, or its central square."""
    size: int = Field(512, ge=16, le=MAX_SIDE)
    """Side of all images in pixels. Smaller images are enlarged."""
    prompts: dict[str, tuple[Name, ...]] = Field(default_factory=dict)
    """Modality -> prompts that images are generated for. Default: the distinct prompts of the ratings."""
    selector: Selector = Selector()
    """The quality model."""
    policy: Policy = Policy()
    """The agreement model."""
    generator: Generator = Generator()
    """The image generator."""
    update: Update = Update()
    """How the generator is updated."""
    judge: Judge = Judge()
    """The model that scores the result."""
    guards: Guards = Guards()
    """Limits that an update must keep."""

    @model_validator(mode="after")
    def _all_rules_hold(self) -> "Imagegen":
        broken = [
            *_source_rules(self),
            *_list_rules(self),
            *_weight_rules(self),
            *_modality_rules(self),
            *_encoder_rules(self),
        ]
        if broken:
            raise ValueError(". ".join(broken))
        return self


def _source_rules(section: Imagegen) -> Iterator[str]:
    if bool(section.ratings) == (section.synthetic is not None):
        found = "both" if section.ratings else "neither"
        yield f"must have either ratings, or [imagegen.synthetic] (got {found})"
    if section.synthetic is not None and section.image_root is not None:
        yield f"image_root belongs to ratings, not to [imagegen.synthetic] (got {section.image_root})"
    if section.synthetic is None:
        return
    if missing := [name for name in SYNTHETIC_MODALITIES if name not in section.modalities]:
        yield f"modalities must have those of [imagegen.synthetic], {list(SYNTHETIC_MODALITIES)} (without {missing})"
    if missing_levels := [level for level in SYNTHETIC_EXPERT_LEVELS if level not in section.expert_levels]:
        levels = list(SYNTHETIC_EXPERT_LEVELS)
        yield f"expert_levels must have those of [imagegen.synthetic], {levels} (without {missing_levels})"


def _list_rules(section: Imagegen) -> Iterator[str]:
    levels = section.rating_range
    if len(levels) < 2 or not _rises(levels):
        yield f"rating_range must be at least two rising numbers (got {_numbers(levels)})"
    if section.selector.good_rating is not None and section.selector.good_rating not in levels[1:]:
        rule = f"selector.good_rating must be one of the ratings above the lowest, {_numbers(levels[1:])}"
        yield f"{rule} (got {section.selector.good_rating:g})"
    experts = section.expert_levels
    if not experts or experts[0] < 1 or not _rises(experts):
        yield f"expert_levels must be rising whole numbers from 1 (got {list(experts)})"
    for name in ("ratings", "modalities"):
        listed = getattr(section, name)
        if len(set(listed)) < len(listed) or (name == "modalities" and not listed):
            yield f"{name} must name each entry once (got {list(listed)})"


def _encoder_rules(section: Imagegen) -> Iterator[str]:
    """Yield broken rules: encoders with random parameters must be trained, and a policy needs a text tower."""
    for name in ("selector", "policy", "judge"):
        model = getattr(section, name)
        if model.encoder in TINY_ENCODERS and model.tuning == "frozen":
            yield f'{name}.tuning must be "auto" or "full" with encoder = "{model.encoder}" (got "frozen")'
    if section.policy.encoder in (BIOMEDCLIP, *TINY_ENCODERS[1:]):
        yield f'policy.encoder must be a dual tower of Transformers, or "tiny" (got "{section.policy.encoder}")'


def _rises(levels: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(levels))


def _numbers(levels: Sequence[float]) -> str:
    return f"[{', '.join(f'{level:g}' for level in levels)}]"


def _weight_rules(section: Imagegen) -> Iterator[str]:
    table, levels = section.expert_table, [str(level) for level in section.expert_levels]
    if section.expert_weight != "table":
        if table:
            yield f'expert_table belongs to expert_weight = "table" (got "{section.expert_weight}")'
        return
    if sorted(table) != sorted(levels):
        yield f"expert_table must have a weight for each of expert_levels {levels} (got {sorted(table)})"
    if any(weight < 0 for weight in table.values()) or not any(table.values()):
        yield f"expert_table must have weights of at least 0, and one above 0 (got {table})"


def _modality_rules(section: Imagegen) -> Iterator[str]:
    for name in ("windows", "prompts"):
        for modality in getattr(section, name):
            if modality not in section.modalities:
                yield f"{name} must name modalities of {list(section.modalities)} (got {modality!r})"
    if section.window == "fixed" and not section.windows:
        yield 'window = "fixed" needs at least one modality in [imagegen.windows]'
    if section.window == "auto" and section.windows:
        yield f'windows belongs to window = "fixed" (got window = "auto" and {sorted(section.windows)})'
    empty = [modality for modality, prompts in section.prompts.items() if not prompts]
    if empty:
        yield f"prompts must have at least one prompt for each modality it names (got none for {empty})"
