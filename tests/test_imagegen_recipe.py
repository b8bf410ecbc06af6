"""The section [imagegen]: defaults that stand, rules that hold, descriptions for every key."""

import json
import tomllib

import pytest
from pydantic import BaseModel, ValidationError

from toolkit.recipe.imagegen import IMAGEGEN_PATHS, Imagegen, ImagegenSection
from toolkit.recipe.imagegen_checks import independent_judge, only_imagegen_stages
from toolkit.recipe.problems import section_in


def section(**keys: object) -> Imagegen:
    """The section as a recipe's loader makes it: strictly, from JSON."""
    return Imagegen.model_validate_json(json.dumps({"ratings": ["ratings.csv"], **keys}), strict=True)


def rejected(**keys: object) -> str:
    with pytest.raises(ValidationError) as caught:
        section(**keys)
    (error,) = caught.value.errors()
    return ".".join(map(str, error["loc"]))


def sections(kind: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [section_in(field.annotation) for field in kind.model_fields.values()]
    return [kind, *(part for one in inner if one is not None for part in sections(one))]


def test_every_key_has_a_description() -> None:
    kinds = {*sections(Imagegen), *ImagegenSection.__subclasses__()}
    assert len(kinds) > 10
    without = [
        f"{kind.__name__}.{name}"
        for kind in kinds
        for name, field in kind.model_fields.items()
        if not (field.description or "").strip()
    ]
    assert without == []
    assert all(kind.__doc__ for kind in kinds)


def test_a_ratings_file_is_enough_and_defaults_follow_the_description() -> None:
    imagegen = section()
    assert imagegen.rating_range == (1, 2, 3)
    assert imagegen.expert_weight == "linear"
    assert imagegen.judge.fractions.by_split == {"selector": 0.4, "judge": 0.4, "test": 0.2}
    assert imagegen.selector.heads == 3
    assert imagegen.guards.action == "stop"
    assert imagegen.update.images_per_round == 256


def test_a_section_survives_its_own_dump() -> None:
    imagegen = section(
        window="fixed",
        windows={"CT": {"preset": "ct_lung"}, "MRI": {"centre": 300.0, "width": 600.0}},
        prompts={"CT": ["CT: clear lungs"]},
        expert_weight="table",
        expert_table={"1": 0.1, "2": 0.5, "3": 1},
        update={"methods": ["sft", "ddpo"], "refresh": {"enabled": True}},
    )
    again = Imagegen.model_validate_json(json.dumps(imagegen.model_dump(mode="json", exclude_none=True)), strict=True)
    assert again == imagegen


TOML = """
[imagegen]
ratings = ["medical_ratings.csv"]
rating_range = [1, 2, 3]
window = "fixed"
size = 512
[imagegen.windows]
CT = { preset = "ct_soft_tissue" }
[imagegen.selector]
target_precision = 0.9
[imagegen.generator]
model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
lora = { r = 16, alpha = 32 }
[imagegen.update]
methods = ["sft", "ddpo"]
[imagegen.judge.fractions]
selector = 0.5
judge = 0.3
test = 0.2
[imagegen.guards]
action = "log"
"""


def test_a_table_of_a_recipe_is_read() -> None:
    imagegen = Imagegen.model_validate_json(json.dumps(tomllib.loads(TOML)["imagegen"]), strict=True)
    assert imagegen.windows["CT"].preset == "ct_soft_tissue"
    assert (imagegen.generator.lora.r, imagegen.generator.lora.alpha) == (16, 32)
    assert imagegen.update.methods == ("sft", "ddpo")
    assert imagegen.judge.fractions.judge == 0.3


def test_sections_are_frozen_and_unknown_keys_are_rejected() -> None:
    with pytest.raises(ValidationError):
        section().size = 64  # type: ignore[misc]
    assert rejected(update={"method": "sft"}) == "update.method"


@pytest.mark.parametrize("levels", [[], [3], [1, 1, 2], [3, 2, 1]])
def test_rating_levels_must_rise(levels: list[float]) -> None:
    assert rejected(rating_range=levels) == ""


@pytest.mark.parametrize("levels", [[0, 1], [0, 0.25, 0.5, 1], list(range(1, 11))])
def test_any_rising_rating_range_of_two_levels_or_more_is_accepted(levels: list[float]) -> None:
    assert section(rating_range=levels).rating_range == tuple(levels)


@pytest.mark.parametrize(
    "keys",
    [
        {"ratings": []},
        {"synthetic": {}},
        {"ratings": [], "synthetic": {}, "image_root": "images"},
        {"ratings": [], "synthetic": {}, "modalities": ["CT", "MRI"]},
        {"ratings": [], "synthetic": {}, "expert_levels": [1, 2]},
        {"ratings": ["a.csv", "a.csv"]},
        {"modalities": []},
        {"modalities": ["CT", "CT"]},
        {"expert_levels": [0, 1]},
        {"expert_levels": []},
        {"expert_table": {"1": 1.0}},
        {"expert_weight": "table"},
        {"expert_weight": "table", "expert_table": {"1": 0.5, "2": 1.0}},
        {"expert_weight": "table", "expert_table": {"1": -0.5, "2": 1.0, "3": 1.0}},
        {"expert_weight": "table", "expert_table": {"1": 0.0, "2": 0.0, "3": 0.0}},
        {"window": "fixed"},
        {"windows": {"CT": {"preset": "ct_lung"}}},
        {"window": "fixed", "windows": {"ct": {"preset": "ct_lung"}}},
        {"prompts": {"PET": ["PET: a brain"]}},
        {"prompts": {"CT": []}},
        {"selector": {"good_rating": 1}},
        {"selector": {"good_rating": 2.5}},
    ],
)
def test_keys_that_do_not_fit_together_are_rejected(keys: dict[str, object]) -> None:
    assert rejected(**keys) == ""


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"windows": {"CT": {"preset": "ct_lung", "width": 400.0}}}, "windows.CT"),
        ({"windows": {"CT": {"centre": 40.0}}}, "windows.CT"),
        ({"windows": {"CT": {"centre": 40.0, "width": 0.0}}}, "windows.CT.width"),
        ({"update": {"methods": []}}, "update"),
        ({"update": {"methods": ["ddpo", "ddpo"], "control": False}}, "update"),
        ({"update": {"methods": ["ddpo"]}}, "update"),
        ({"update": {"methods": ["nft"]}}, "update.methods.0"),
        ({"update": {"selector_power": 0.0, "policy_power": 0.0}}, "update"),
        ({"update": {"prompts_per_round": 3, "images_per_prompt": 3}}, "update"),
        ({"judge": {"fractions": {"selector": 0.5}}}, "judge.fractions"),
        ({"judge": {"features": 65}}, "judge.features"),
        ({"selector": {"heads": 1}}, "selector.heads"),
        ({"generator": {"guidance_scale": 0.5}}, "generator.guidance_scale"),
        ({"prompts": {"CT": [" "]}}, "prompts.CT.0"),
    ],
)
def test_values_out_of_range_are_rejected_at_their_key(keys: dict[str, object], place: str) -> None:
    assert rejected(**keys) == place


def test_all_broken_rules_are_reported_together() -> None:
    with pytest.raises(ValidationError) as caught:
        section(ratings=[], rating_range=[2, 1], expert_levels=[3, 1])
    message = str(caught.value)
    assert all(key in message for key in ("ratings", "rating_range", "expert_levels"))


@pytest.mark.parametrize("name", ["sft", "grpo", "evaluate"])
def test_stages_of_language_models_are_rejected_beside_imagegen(name: str) -> None:
    assert [key for key, _ in only_imagegen_stages({"run", "imagegen", name})] == [name]
    assert list(only_imagegen_stages({"run", name})) == []
    assert list(only_imagegen_stages({"run", "imagegen", "images"})) == []


def test_a_judge_has_its_own_seed_and_encoder() -> None:
    assert list(independent_judge(section(), 3407)) == []
    same = section(judge={"encoder": "a/b"}, selector={"encoder": "a/b"})
    assert [key for key, _ in independent_judge(same, 1)] == ["imagegen.judge.seed", "imagegen.judge.encoder"]


def test_paths_are_keys_of_the_section() -> None:
    assert all(path[0] == "imagegen" and path[1] in Imagegen.model_fields for path in IMAGEGEN_PATHS)
