"""The section [imagegen]: defaults, rules, descriptions for every key."""

import json
import math
import tomllib
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ValidationError

from tests.helpers.imagegen_models import GUARDS
from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from toolkit.errors import RecipeError
from toolkit.imagegen.evaluation.statistics import ImageKey
from toolkit.imagegen.settings import guard_settings
from toolkit.imagegen.training.ddpo import group_advantages
from toolkit.imagegen.training.guards import Evaluation, check_guards
from toolkit.recipe import Recipe, changed_keys, dump_recipe, for_language_models
from toolkit.recipe.imagegen import IMAGEGEN_PATHS, Imagegen
from toolkit.recipe.imagegen_checks import independent_judge, only_imagegen_stages
from toolkit.recipe.imagegen_sections import ImagegenSection, most_clipped
from toolkit.recipe.problems import Places, schema_problems, section_in

TABLE = {"expert_weight": "table"}


def section(**keys: object) -> Imagegen:
    """The section as a recipe's loader makes it: strictly, from JSON."""
    return Imagegen.model_validate_json(json.dumps({"ratings": ["ratings.csv"], **keys}), strict=True)


def rejected(**keys: object) -> list[tuple[str, str]]:
    """Return code and key of every problem, as the loader reports it."""
    with pytest.raises(ValidationError) as caught:
        section(**keys)
    return [
        (one.code, one.place.removeprefix(": ")) for one in schema_problems(caught.value.errors(), Places(""), Recipe)
    ]


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
    assert imagegen.rating_range == (1.0, 2.0, 3.0)
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
    assert [place for _, place in rejected(update={"method": "sft"})] == ["update.method"]


@pytest.mark.parametrize("levels", [[], [3], [1, 1, 2], [3, 2, 1]])
def test_rating_levels_must_rise(levels: list[float]) -> None:
    assert rejected(rating_range=levels) == [("recipe.rating_range_not_rising", "rating_range")]


@pytest.mark.parametrize("levels", [[0, 1], [0, 0.25, 0.5, 1], list(range(1, 11))])
def test_any_rising_rating_range_of_two_levels_or_more_is_accepted(levels: list[float]) -> None:
    assert section(rating_range=levels).rating_range == tuple(levels)


@pytest.mark.parametrize(
    ("keys", "code", "place"),
    [
        ({"ratings": []}, "ratings_source_not_one", ""),
        ({"synthetic": {}}, "ratings_source_not_one", ""),
        ({"ratings": [], "synthetic": {}, "image_root": "images"}, "image_root_with_synthetic", "image_root"),
        ({"ratings": [], "synthetic": {}, "modalities": ["CT"]}, "synthetic_modalities_missing", "modalities"),
        ({"ratings": [], "synthetic": {}, "expert_levels": [1]}, "synthetic_expert_levels_missing", "expert_levels"),
        ({"ratings": ["a.csv", "a.csv"]}, "entries_repeated", "ratings"),
        ({"modalities": []}, "entries_repeated", "modalities"),
        ({"modalities": ["CT", "CT"]}, "entries_repeated", "modalities"),
        ({"expert_levels": [0, 1]}, "expert_levels_not_rising", "expert_levels"),
        ({"expert_levels": []}, "expert_levels_not_rising", "expert_levels"),
        ({"expert_table": {"1": 1.0}}, "expert_table_unused", "expert_weight"),
        ({**TABLE, "expert_table": {"1": 0.5, "2": 1.0}}, "expert_table_levels", "expert_table"),
        ({**TABLE, "expert_table": {"1": -0.5, "2": 1.0, "3": 1.0}}, "expert_table_weights", "expert_table"),
        ({**TABLE, "expert_table": {"1": 0.0, "2": 0.0, "3": 0.0}}, "expert_table_weights", "expert_table"),
        ({"window": "fixed"}, "windows_missing", "windows"),
        ({"windows": {"CT": {"preset": "ct_lung"}}}, "windows_unused", "windows"),
        ({"window": "fixed", "windows": {"ct": {"preset": "ct_lung"}}}, "modality_unknown", "windows"),
        ({"prompts": {"PET": ["PET: a brain"]}}, "modality_unknown", "prompts"),
        ({"prompts": {"CT": []}}, "prompts_empty", "prompts"),
        ({"selector": {"good_rating": 1}}, "good_rating_unknown", "selector.good_rating"),
        ({"selector": {"good_rating": 2.5}}, "good_rating_unknown", "selector.good_rating"),
        ({"judge": {"encoder": "tiny", "tuning": "frozen"}}, "random_encoder_frozen", "judge.tuning"),
        ({"policy": {"encoder": "tiny-vit"}}, "policy_without_text_tower", "policy.encoder"),
    ],
)
def test_keys_that_do_not_fit_together_are_rejected(keys: dict[str, object], code: str, place: str) -> None:
    assert rejected(**keys) == [(f"recipe.{code}", place)]


def test_a_weight_table_without_weights_breaks_two_rules() -> None:
    assert rejected(**TABLE) == [
        ("recipe.expert_table_levels", "expert_table"),
        ("recipe.expert_table_weights", "expert_table"),
    ]


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"windows": {"CT": {"preset": "ct_lung", "width": 400.0}}}, "windows.CT"),
        ({"windows": {"CT": {"centre": 40.0}}}, "windows.CT"),
        ({"windows": {"CT": {"centre": 40.0, "width": 0.0}}}, "windows.CT.width"),
        ({"update": {"methods": []}}, "update.methods"),
        ({"update": {"methods": ["ddpo", "ddpo"], "control": False}}, "update.methods"),
        ({"update": {"methods": ["ddpo"]}}, "update.control"),
        ({"update": {"methods": ["nft"]}}, "update.methods.0"),
        ({"update": {"selector_power": 0.0, "policy_power": 0.0}}, "update"),
        ({"update": {"updates_per_round": 0}}, "update.updates_per_round"),
        ({"judge": {"fractions": {"selector": 0.5}}}, "judge.fractions"),
        ({"judge": {"features": 65}}, "judge.features"),
        ({"selector": {"heads": 1}}, "selector.heads"),
        ({"generator": {"guidance_scale": 0.5}}, "generator.guidance_scale"),
        ({"prompts": {"CT": [" "]}}, "prompts.CT.0"),
    ],
)
def test_values_out_of_range_are_rejected_at_their_key(keys: dict[str, object], place: str) -> None:
    assert [found for _, found in rejected(**keys)] == [place]


def test_all_broken_rules_are_reported_together() -> None:
    assert rejected(ratings=[], rating_range=[2, 1], expert_levels=[3, 1]) == [
        ("recipe.ratings_source_not_one", ""),
        ("recipe.rating_range_not_rising", "rating_range"),
        ("recipe.expert_levels_not_rising", "expert_levels"),
    ]


@pytest.mark.parametrize("name", ["sft", "grpo", "evaluate", "export", "data", "model", "rewards"])
def test_stages_of_language_models_are_rejected_beside_imagegen(name: str) -> None:
    assert [problem.place for problem in only_imagegen_stages({"run", "imagegen", name})] == [name]
    assert list(only_imagegen_stages({"run", name})) == []
    assert list(only_imagegen_stages({"run", "imagegen", "images"})) == []


def test_a_judge_has_its_own_seed_and_encoder() -> None:
    assert list(independent_judge(section(), 3407)) == []
    same = section(judge={"encoder": "a/b"}, selector={"encoder": "a/b"})
    assert [problem.place for problem in independent_judge(same, 1)] == [
        "imagegen.judge.seed",
        "imagegen.judge.encoder",
    ]


def test_paths_are_keys_of_the_section() -> None:
    assert all(path[0] == "imagegen" and path[1] in Imagegen.model_fields for path in IMAGEGEN_PATHS)


WHOLE = """
[run]
name = "one"
[imagegen]
ratings = ["data/ratings.csv"]
image_root = "data"
[imagegen.generator]
model = "./base"
[imagegen.selector]
encoder = "./tower"
"""


def written(folder: Path, text: str = WHOLE) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def keys_of(path: Path, *settings: str, files: bool = False) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, settings, files=files)
    return [problem.place.removeprefix(f"{path}: ").removeprefix("--set ") for problem in caught.value.problems]


def test_relative_paths_start_at_the_recipe(tmp_path: Path) -> None:
    imagegen = load_recipe(written(tmp_path)).imagegen
    assert imagegen is not None
    assert imagegen.ratings == (str(tmp_path / "data" / "ratings.csv"),)
    assert imagegen.image_root == tmp_path / "data"
    assert imagegen.generator.model == str(tmp_path / "base")
    assert imagegen.selector.encoder == str(tmp_path / "tower")
    assert imagegen.judge.encoder == "facebook/dinov2-base"


def test_a_dumped_recipe_loads_to_an_equal_one(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path))
    again = load_recipe(written(tmp_path, dump_recipe(recipe)))
    assert again == recipe
    assert changed_keys(recipe, again) == {}


def test_files_that_do_not_exist_are_reported_together(tmp_path: Path) -> None:
    keys = ["imagegen.ratings", "imagegen.image_root", "imagegen.selector.encoder", "imagegen.generator.model"]
    assert keys_of(written(tmp_path), files=True) == keys


def test_other_sections_and_a_judge_that_is_not_independent_are_reported_together(tmp_path: Path) -> None:
    found = keys_of(written(tmp_path), "sft.epochs=1.0", "imagegen.judge.seed=3407", "imagegen.judge.encoder=a/b")
    assert found == ["sft", "imagegen.judge.seed"]


def test_without_imagegen_the_section_data_is_required(tmp_path: Path) -> None:
    assert keys_of(written(tmp_path, '[run]\nname = "one"\n[sft]\n')) == ["data"]


def test_an_unknown_key_names_the_nearest_one_of_its_own_kind_of_recipe(tmp_path: Path) -> None:
    assert keys_of(written(tmp_path), "imagegen.update.roundz=3") == ["imagegen.update.roundz"]


def test_commands_for_language_models_reject_a_recipe_of_image_generation(tmp_path: Path) -> None:
    with raises(RecipeError, "recipe.not_vision_language") as caught:
        for_language_models(load_recipe(written(tmp_path)), "toolkit export")
    assert "toolkit export" in caught.problem.rule


def test_the_limits_of_copies_and_clipped_advantages_reach_the_guards(tmp_path: Path) -> None:
    default = guard_settings(load_recipe(written(tmp_path)))
    assert (default.max_copies, default.max_clipped) == (0.05, 0.1)
    changes = ["imagegen.guards.max_copies=0.2", "imagegen.guards.max_clipped=0.3"]
    found = guard_settings(load_recipe(written(tmp_path), changes))
    assert (found.max_copies, found.max_clipped) == (0.2, 0.3)


@pytest.mark.parametrize("group", [2, 3, 8, 26, 27, 64])
@pytest.mark.parametrize("clip", [0.9, 1.5, 2.0, 5.0])
def test_no_group_has_more_advantages_beyond_the_clip_than_the_bound(group: int, clip: float) -> None:
    bound, largest = most_clipped(clip, group), 0.0
    for extreme in range(group // 2 + 1):  # the most extreme groups: some at 1, as many or none at -1, the rest at 0
        for low in (0, extreme):
            rewards = torch.tensor([1.0] * extreme + [-1.0] * low + [0.0] * (group - extreme - low))
            largest = max(largest, group_advantages(rewards, ["prompt"] * group, clip).clipped)
    assert largest <= bound + 1e-6
    assert (bound == 0) == (clip >= math.sqrt(group - 1))


def test_the_verdict_of_a_guard_that_cannot_fire_has_an_addition() -> None:
    def text(most: float | None) -> str:
        last = Evaluation(0, {ImageKey("a", 0): 0.5}, clipped_advantages=0.0, most_clipped=most)
        return next(one.text for one in check_guards([last], GUARDS) if one.guard == "advantage_clip")

    plain = text(None)
    assert text(most_clipped(5.0, 8)).startswith(f"{plain}. ")
    assert text(most_clipped(5.0, 256)).startswith(f"{plain}. ")
    assert text(most_clipped(2.0, 8)) == plain


def test_the_shipped_recipes_load() -> None:
    folder = Path(__file__).resolve().parents[1] / "recipes"
    tiny, real = (load_recipe(folder / f"{name}.toml").imagegen for name in ("imagegen_tiny", "minim_rlhf"))
    assert tiny is not None
    assert real is not None
    assert (tiny.size, tiny.generator.model) == (32, "tiny")
    assert (real.size, real.generator.lora.r, real.generator.gradient_checkpointing) == (512, 16, False)
