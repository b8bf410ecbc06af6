"""The section [imagegen]: RLHF for a medical image generator.

A ratings file with ``image_path, rating, modality, expert_level, prompt`` trains a selector (image quality), a policy
(agreement of image and prompt) and a judge, which is never a reward. The generator is then updated by their rewards.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.errors import Problem
from toolkit.recipe.base import BrokenRules
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
    Level,
    Name,
    Policy,
    Selector,
    SyntheticRatings,
    Update,
)

MAX_SIDE = 2048

ExpertLevel = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]

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
    rating_range: tuple[Level, ...] = (1, 2, 3)
    """All rating levels, rising from the worst to the best."""
    modalities: tuple[Name, ...] = ("OCT", "Fundus", "CT", "X-Ray", "MRI")
    """All modalities. A row with another modality cannot be used."""
    expert_levels: tuple[ExpertLevel, ...] = (1, 2, 3)
    """All expert levels, from the lowest to the highest."""
    expert_weight: Literal["linear", "table", "precision"] = "linear"
    """Weight of a rating in the loss by its expert level. It never changes the rating. ``linear``: level / highest
    level. ``table``: from ``expert_table``. ``precision``: the inverse variance, estimated from images with several
    ratings."""
    expert_table: dict[str, Level] = Field(default_factory=dict)
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

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the recipe's stages in their order."""
        return ("ratings", "scorers", *self.arms)

    @property
    def arms(self) -> tuple[str, ...]:
        """The stages that are compared: the base, the control, and the methods."""
        control = ("control",) if self.update.control else ()
        return ("base", *control, *(method for method in ("sft", "ddpo") if method in self.update.methods))

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
            raise BrokenRules(broken)
        return self


_ADD = "Add the missing ones."


def _source_rules(section: Imagegen) -> Iterator[Problem]:
    if bool(section.ratings) == (section.synthetic is not None):
        rule, found = "must have either ratings, or [imagegen.synthetic]", "both" if section.ratings else "neither"
        yield Problem("recipe.ratings_source_not_one", rule, value=found, remedy="Keep one of them.")
    if section.synthetic is not None and section.image_root is not None:
        rule, remedy = "must not be set with [imagegen.synthetic]", "Remove it."
        yield Problem("recipe.image_root_with_synthetic", rule, "image_root", str(section.image_root), remedy)
    if section.synthetic is None:
        return
    if not set(SYNTHETIC_MODALITIES) <= set(section.modalities):
        rule = f"must have those of [imagegen.synthetic], {list(SYNTHETIC_MODALITIES)}"
        yield Problem("recipe.synthetic_modalities_missing", rule, "modalities", list(section.modalities), _ADD)
    if not set(SYNTHETIC_EXPERT_LEVELS) <= set(section.expert_levels):
        rule = f"must have those of [imagegen.synthetic], {list(SYNTHETIC_EXPERT_LEVELS)}"
        levels = list(section.expert_levels)
        yield Problem("recipe.synthetic_expert_levels_missing", rule, "expert_levels", levels, _ADD)


def _list_rules(section: Imagegen) -> Iterator[Problem]:
    levels, good = section.rating_range, section.selector.good_rating
    if len(levels) < 2 or not _rises(levels):
        rule = "must be at least two rising numbers"
        yield Problem("recipe.rating_range_not_rising", rule, "rating_range", list(levels), "Sort them.")
    if good is not None and good not in levels[1:]:
        rule = f"must be one of the ratings above the lowest, {[f'{level:g}' for level in levels[1:]]}"
        yield Problem("recipe.good_rating_unknown", rule, "selector.good_rating", good, "Choose one of them.")
    experts = section.expert_levels
    if not experts or experts[0] < 1 or not _rises(experts):
        rule = "must be rising whole numbers from 1"
        yield Problem("recipe.expert_levels_not_rising", rule, "expert_levels", list(experts), "Sort them.")
    for name in ("ratings", "modalities"):
        listed = getattr(section, name)
        if len(set(listed)) < len(listed) or (name == "modalities" and not listed):
            rule = "must name at least one entry, each once"
            yield Problem("recipe.entries_repeated", rule, name, list(listed), "Correct the list.")


def _encoder_rules(section: Imagegen) -> Iterator[Problem]:
    """Yield broken rules: encoders with random parameters must be trained, and a policy needs a text tower."""
    for name in ("selector", "policy", "judge"):
        model = getattr(section, name)
        if model.encoder in TINY_ENCODERS and model.tuning == "frozen":
            rule = f'must be "auto" or "full" with encoder = "{model.encoder}"'
            yield Problem("recipe.random_encoder_frozen", rule, f"{name}.tuning", model.tuning, "Change one of them.")
    if section.policy.encoder in (BIOMEDCLIP, *TINY_ENCODERS[1:]):
        rule = 'must be a dual tower of Transformers, or "tiny"'
        yield Problem(
            "recipe.policy_without_text_tower",
            rule,
            "policy.encoder",
            section.policy.encoder,
            "Choose another encoder.",
        )


def _rises(levels: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(levels))


def _weight_rules(section: Imagegen) -> Iterator[Problem]:
    table, levels = section.expert_table, [str(level) for level in section.expert_levels]
    if section.expert_weight != "table":
        if table:
            rule = 'must be "table" if expert_table is set'
            yield Problem(
                "recipe.expert_table_unused", rule, "expert_weight", section.expert_weight, "Change one of them."
            )
        return
    if sorted(table) != sorted(levels):
        rule = f"must have a weight for each of expert_levels {levels}"
        yield Problem("recipe.expert_table_levels", rule, "expert_table", sorted(table), "Correct the table.")
    if any(weight < 0 for weight in table.values()) or not any(table.values()):
        rule = "must have weights of at least 0, and one above 0"
        yield Problem("recipe.expert_table_weights", rule, "expert_table", table, "Correct the weights.")


def _modality_rules(section: Imagegen) -> Iterator[Problem]:
    for name in ("windows", "prompts"):
        for modality in getattr(section, name):
            if modality not in section.modalities:
                rule = f"must name modalities of {list(section.modalities)}"
                yield Problem(
                    "recipe.modality_unknown", rule, name, modality, "Correct the name, or add it to modalities."
                )
    if section.window == "fixed" and not section.windows:
        rule = 'must have at least one modality with window = "fixed"'
        yield Problem("recipe.windows_missing", rule, "windows", remedy='Add one, or set window = "auto".')
    if section.window == "auto" and section.windows:
        rule, value = 'must be empty with window = "auto"', sorted(section.windows)
        yield Problem("recipe.windows_unused", rule, "windows", value, 'Set window = "fixed", or remove the windows.')
    if empty := [modality for modality, prompts in section.prompts.items() if not prompts]:
        rule = "must have a prompt for each modality that it names"
        yield Problem("recipe.prompts_empty", rule, "prompts", empty, "Add prompts, or remove the modality.")
