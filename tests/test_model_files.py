"""Configuration and weights of a model, and the repositories that Unsloth loads in its place."""

import ast
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.footprint import shape_fields
from tests.helpers.problems import raises
from tests.helpers.training import small_recipe
from toolkit.errors import ModelError
from toolkit.planning import model_files
from toolkit.planning.architecture import build_architecture, is_unquantized
from toolkit.planning.disk import Downloads, plan_disk
from toolkit.planning.model_files import (
    DOWNLOADS,
    KNOWN,
    MAX_UNQUANTIZED,
    REPLACED,
    UNQUANTIZED_MODULES,
    BaseWeights,
    Repository,
    State,
    find_base,
    find_configuration,
    find_repository,
    leave_unquantized,
    unquantized_fraction,
    unsloth_repositories,
)
from toolkit.planning.stages import Setting
from toolkit.planning.tokens import RowSize
from toolkit.planning.weights import weight_bytes
from toolkit.recipe import Export, Model

ROW = RowSize(1, 0, 0, 0, 0)
BITS = Setting("evaluate", ROW, "4bit", bf16=True)
MEDGEMMA = Model(name="google/medgemma-4b-it", precision="4bit")
NAME = "unsloth/medgemma-4b-it-unsloth-bnb-4bit"
HAS_UNSLOTH = find_spec("unsloth") is not None
UNSLOTH = pytest.mark.skipif(not HAS_UNSLOTH, reason="Unsloth is not installed")


def no_answer(name: str) -> Repository | None:
    return None


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_the_name_is_replaced_unless_revision_precision_or_folder_say_otherwise(tmp_path: Path) -> None:
    found = find_repository(MEDGEMMA, no_answer)
    assert found is not None
    assert (found.name, found.unquantized) == (NAME, None)
    for changes in ({"revision": "main"}, {"precision": "8bit"}, {"precision": "16bit"}, {"name": str(tmp_path)}):
        assert find_repository(MEDGEMMA.model_copy(update=changes), no_answer) is None
    for name in ("google/medgemma-1.5-4b-it", "google/medgemma-27b-it", "tiny"):
        assert find_repository(Model(name=name, precision="4bit"), no_answer) is None


@pytest.mark.usefixtures("online")
def test_the_hub_is_queried_once_for_the_repository_that_is_loaded() -> None:
    queried = []

    def query(name: str) -> Repository:
        queried.append(name)
        return Repository(name, ("lm_head",), 5_000_000_000)

    found = find_repository(MEDGEMMA, query)
    assert queried == [NAME]
    assert found == Repository(NAME, ("lm_head",), 5_000_000_000)


def test_the_list_of_layers_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({"quantization_config": {"llm_int8_skip_modules": ["lm_head", "vision_tower"]}}), "utf-8"
    )
    names = []

    def cached(model: Model, name: str) -> Path | None:
        names.append((model.name, name))
        return file if name == "config.json" else None

    monkeypatch.setattr(model_files, "cached_file", cached)
    found = find_repository(MEDGEMMA)
    assert found is not None
    assert names[0] == (NAME, "config.json")
    assert (found.unquantized, found.cached) == (("lm_head", "vision_tower"), False)


def test_parameters_in_the_cache_are_not_downloaded_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")

    def cached(model: Model, name: str) -> Path | None:
        return tmp_path / name if model.name == NAME and (tmp_path / name).is_file() else None

    monkeypatch.setattr(model_files, "cached_file", cached)
    found = find_repository(MEDGEMMA)
    assert found is not None
    assert (found.unquantized, found.cached) == (None, True)


@pytest.mark.parametrize(
    ("own", "export", "expected"),
    [
        ("reachable", ("adapter",), {NAME: 5_000_000_000}),
        ("reachable", ("adapter", "merged"), {NAME: 5_000_000_000, "google/medgemma-4b-it": 8_600_158_944}),
        ("cache", ("merged",), {NAME: 5_000_000_000}),
    ],
)
def test_a_merged_export_downloads_the_parameters_in_16_bits_too(
    own: State, export: tuple[Literal["adapter", "merged"], ...], expected: Mapping[str, int], tmp_path: Path
) -> None:
    model = build_architecture(shape_fields("medgemma_4b"))
    changes = {"model": MEDGEMMA, "export": Export(to=export)}
    recipe = small_recipe(tmp_path).model_copy(update=changes)
    found = plan_disk(recipe, model, {"evaluate": BITS}, Downloads(own, Repository(NAME, None, 5_000_000_000)))
    assert found.downloads == expected


@UNSLOTH
def test_the_shipped_names_are_those_of_the_installed_table() -> None:
    table = unsloth_repositories()
    assert {name: table[name] for name in REPLACED} == dict(REPLACED)


@UNSLOTH
def test_the_modules_that_unsloth_keeps_are_those_of_the_installed_list() -> None:
    spec = find_spec("unsloth_zoo")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "peft_utils.py").read_text(encoding="utf-8"))
    listed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SKIP_QUANTIZATION_MODULES"
    )
    assert set(UNQUANTIZED_MODULES) <= set(listed)


@pytest.mark.parametrize(
    ("module", "listed", "unquantized"),
    [
        ("model.vision_tower.encoder.layers.3.mlp.fc1", "vision_tower", True),
        ("model.visual.merger.mlp.0", "merger", True),
        ("model.language_model.layers.1.mlp.down_proj", "language_model.model.layers.1.mlp", True),
        ("model.language_model.layers.11.mlp.down_proj", "language_model.model.layers.1.mlp", False),
        ("model.vision_tower.encoder.layers.0.mlp.fc1", "vision_tower.vision_model.encoder.layers.0.mlp", True),
        ("model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj", True),
        ("lm_head", "lm_head", True),
        ("model.language_model.layers.0.mlp.up_proj", "visual", False),
    ],
)
def test_a_listed_name_matches_the_module_and_all_below_it(module: str, listed: str, unquantized: bool) -> None:
    assert is_unquantized(module, [listed]) is unquantized


def test_the_counted_bytes_are_those_of_a_model_with_unquantized_listed_layers() -> None:
    """The reference is the conversion by transformers of the same model, with the listed names."""
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    bitsandbytes = pytest.importorskip("bitsandbytes")
    fields = small_fields()
    listed = ["language_model.model.layers.1.mlp", "vision_tower", "lm_head"]
    full = ["model.language_model.layers.1.mlp", "model.vision_tower", "lm_head"]
    model = meta_model(fields)
    replace_with_bnb_linear(
        model, modules_to_not_convert=full, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    packed = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    quantized = sum(module.in_features * module.out_features for module in packed)
    assert packed
    found = build_architecture(fields, listed)
    assert found.quantized == quantized
    assert not any(one.quantized for one in found.linears if one.vision)
    assert build_architecture(fields).quantized > quantized
    assert found.parameters == build_architecture(fields).parameters


def test_an_unquantized_layer_counts_in_16_bits() -> None:
    fields = small_fields()
    plain, partly = build_architecture(fields), build_architecture(fields, ["vision_tower"])
    (language, tower), (same, larger) = weight_bytes(plain, BITS), weight_bytes(partly, BITS)
    assert same == language
    assert larger == 2 * plain.vision_parameters > tower


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("unsloth/gemma-3-4b-it-unsloth-bnb-4bit", "medgemma_4b"),
        ("unsloth/gemma-3-4b-pt-unsloth-bnb-4bit", "medgemma_4b"),
        ("unsloth/Qwen2.5-VL-7B-Instruct-unsloth-bnb-4bit", "qwen2_5_vl_7b"),
        ("unsloth/Qwen3-VL-8B-Instruct-unsloth-bnb-4bit", "qwen3_vl_8b"),
    ],
)
def test_without_a_list_the_count_is_the_published_size_and_at_most_the_assumed_fraction(name: str, shape: str) -> None:
    model = build_architecture(shape_fields(shape), UNQUANTIZED_MODULES)
    fraction = unquantized_fraction(model, DOWNLOADS[name])
    assert 0 <= fraction <= MAX_UNQUANTIZED
    counted = sum(weight_bytes(leave_unquantized(model, fraction), BITS))
    assert counted == pytest.approx(DOWNLOADS[name], rel=0.03)
    assert counted >= 0.999 * DOWNLOADS[name]
    assert unquantized_fraction(model, None) == MAX_UNQUANTIZED


def test_keeping_a_fraction_of_layers_changes_only_the_quantized_count() -> None:
    model = build_architecture(shape_fields("medgemma_4b"), UNQUANTIZED_MODULES)
    some = leave_unquantized(model, MAX_UNQUANTIZED)
    assert sum(one.weights for one in some.linears) == sum(one.weights for one in model.linears)
    assert some.quantized == pytest.approx((1 - 6 / 34) * model.quantized)


def small_fields() -> dict[str, Any]:
    fields = json.loads(json.dumps(shape_fields("medgemma_4b")))
    fields["text_config"] |= {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    fields["vision_config"] |= {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "image_size": 56}
    return dict(fields) | {"mm_tokens_per_image": 4}


def meta_model(fields: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(CONFIG_MAPPING[fields["model_type"]].from_dict(fields))


def test_every_known_name_has_its_shape() -> None:
    for name in KNOWN:
        found = find_configuration(Model(name=name))
        assert found is not None
        assert found.origin in ("shipped", "cache")


def test_the_config_in_a_model_folder_takes_precedence_over_the_shipped_one(tmp_path: Path) -> None:
    folder = tmp_path / "google" / "medgemma-4b-it"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**shape_fields("medgemma_4b"), "mm_tokens_per_image": 64}))
    found = find_configuration(Model(name=str(folder)))
    assert found is not None
    assert (found.origin, found.fields["mm_tokens_per_image"]) == ("folder", 64)


def test_the_config_in_the_hub_cache_takes_precedence_over_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "config.json"
    cached.write_text(json.dumps({"model_type": "gemma3"}))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(cached))
    found = find_configuration(Model(name="google/medgemma-4b-it"))
    assert found is not None
    assert (found.origin, found.fields) == ("cache", {"model_type": "gemma3"})


def test_the_hub_is_queried_once_and_never_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    queried = []

    def query(model: Model) -> BaseWeights:
        queried.append(model.name)
        return BaseWeights("reachable")

    model = Model(name="google/medgemma-4b-it")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert (find_base(model, query).state, queried) == ("offline", [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert (find_base(model, query).state, queried) == ("reachable", ["google/medgemma-4b-it"])


def test_a_folder_with_missing_shards_has_no_weights(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    assert find_base(Model(name=str(tmp_path))).state == "missing"
    save_file({"b": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    assert find_base(Model(name=str(tmp_path))).state == "folder"


@pytest.mark.parametrize(("text", "code"), [("{half", "model.config_not_json"), ("[]", "model.config_not_object")])
def test_a_corrupt_configuration_is_an_error_that_names_its_file(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with raises(ModelError, code) as caught:
        find_configuration(Model(name=str(tmp_path)))
    assert caught.problem.place == str(tmp_path / "config.json")
