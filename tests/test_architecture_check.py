"""The check on the real architecture: what it tries, what it reports, and when it is not repeated."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

import toolkit
from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe
from tests.helpers.training import small_recipe
from toolkit import tiny
from toolkit.errors import PlanError
from toolkit.images import ImagePolicy
from toolkit.models.reduced_model import reduce_fields
from toolkit.pipeline.architecture_check import (
    check_architecture,
    check_before_run,
    derive_check,
    known_check,
    make_check,
    varied_rows,
)
from toolkit.pipeline.plan import plan_language_model, plan_run
from toolkit.planning.architecture_check import CODE, ENDED, SMALL, is_small
from toolkit.recipe import Recipe, dump_recipe
from toolkit.runfolder import RunFolder, read_json, write_json

SHAPES = Path(toolkit.__file__).parent / "planning/shapes"
ALL = ("text_config", "vision_config")
VALIDATED = {"task": "mcq", "synthetic": {"kind": "chest", "train": 8, "validation": 8, "test": 4, "size": 64}}
WIDE = 16_384
"""Width of an MLP with which the tiny model is no longer small."""


def copy_model(folder: Path, *, wide: bool = False) -> Path:
    """Return a copy of the tiny model, or a random model that differs in the width of its MLP."""
    shutil.copytree(tiny.FOLDER, folder)
    if wide:
        config = AutoConfig.from_pretrained(folder)
        config.text_config.intermediate_size = WIDE
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def blind(model: Path) -> None:
    """Make the processor set every pixel to the same value."""
    file = model / "processor_config.json"
    settings = read_json(file)
    settings["image_processor"]["rescale_factor"] = 1e-12  # lost in the rounding of float32
    write_json(file, settings)


def recipe_for(folder: Path, model: Path, **sections: Any) -> Recipe:
    """Return a small recipe for a model folder. None as a section removes it."""
    base = small_recipe(folder, {"model": {"name": str(model), "backend": "hf"}}).model_dump()
    return make_recipe({name: section for name, section in {**base, **sections}.items() if section is not None})


def head_size(text: Any) -> int:
    """Return the size of an attention head."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


@pytest.mark.parametrize("file", sorted(SHAPES.glob("*.json")), ids=lambda file: file.stem)
@pytest.mark.parametrize("narrow", [ALL, ("text_config",), ()])
def test_a_reduced_model_keeps_what_the_processor_and_positions_depend_on(file: Path, narrow: tuple[str, ...]) -> None:
    fields = json.loads(file.read_text(encoding="utf-8"))
    whole = AutoConfig.for_model(**fields).to_dict()
    reduced = reduce_fields(whole, narrow)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**reduced))
    text, before = model.config.get_text_config(), AutoConfig.for_model(**fields).get_text_config()
    assert text.num_hidden_layers == 2
    assert {reduced["vision_config"].get(name, 3) for name in ("num_hidden_layers", "depth")} == {3}
    assert {*getattr(text, "layer_types", ())} == {*getattr(before, "layer_types", ())}
    assert text.vocab_size == before.vocab_size
    assert head_size(text) == head_size(before)
    for name in ("patch_size", "image_size", "spatial_merge_size", "temporal_patch_size"):
        assert reduced["vision_config"].get(name) == whole["vision_config"].get(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    if narrow == ALL:
        assert 4 * count < 1e9  # bytes in 32 bits


def test_layers_that_reuse_keys_and_values_are_kept() -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 4
    text = {"num_hidden_layers": 12, "layer_types": kinds, "num_kv_shared_layers": 6, "intermediate_size": [8] * 12}
    found = reduce_fields({"text_config": text}, ())["text_config"]
    assert found["layer_types"] == ["sliding_attention", "full_attention"] * 2
    assert (found["num_hidden_layers"], found["num_kv_shared_layers"]) == (4, 2)
    assert found["intermediate_size"] == [8] * 4


def test_the_recipe_of_the_check_differs_in_model_steps_and_rows_only(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, tmp_path / "model")
    derived = derive_check(recipe, tmp_path / "check")
    assert derived.model.name == str(tmp_path / "check/model")
    assert derived.run_folder.is_relative_to(tmp_path / "check")
    assert (derived.lora, derived.prompt, derived.rewards) == (recipe.lora, recipe.prompt, recipe.rewards)
    assert derived.sft_settings.batch_size * derived.sft_settings.accumulation == 4
    assert derived.grpo_settings.max_steps == 2
    assert derived.grpo_settings.micro_batch in (1, 2)


def test_the_rows_of_the_check_differ_in_number_and_shape_of_images(tmp_path: Path) -> None:
    sizes = [(64, 64), (64, 64), (128, 32), (32, 128), (64, 64), (64, 64)]
    rows: list[Mapping[str, Any]] = []
    for number, (width, height) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        images = ["0.png"] * 2 if number == 4 else [f"{number}.png"]
        rows.append({"question": "Which?", "options": ["a", "b"], "answer": "A", "image": images})
    (tmp_path / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "test.json").write_text(json.dumps(rows[:1]), encoding="utf-8")
    data = {"task": "mcq", "train": str(tmp_path / "train.json"), "test": str(tmp_path / "test.json")}
    data |= {"image_root": str(tmp_path), "on_leak": "report"}
    recipe = make_recipe({"run": {"name": "varied"}, "data": data, "sft": {}})
    samples = load_data(recipe).train
    chosen = varied_rows(samples, 4, ImagePolicy())
    assert sorted(chosen.rows) == [0, 2, 3, 4]
    assert len(varied_rows(samples[:2], 4, ImagePolicy())) == 2


def test_the_shipped_tiny_model_needs_no_check(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    assert known_check(recipe) is None
    assert check_before_run(recipe) is None
    plan = plan_language_model(recipe, None)
    assert plan.architecture_check is None
    assert "architecture" not in plan.unknown


def test_a_model_without_local_files_is_not_tried(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, Path("acme/unknown-vlm"))
    for found in (known_check(recipe), check_before_run(recipe), check_architecture(recipe)):
        assert found is not None
        assert found.not_tried == {"architecture": "not tried: not downloaded"}
        assert not found.findings(recipe)
    plan = plan_language_model(recipe, None)
    assert plan.unknown["architecture"] == "not tried: not downloaded"


@pytest.mark.slow
def test_a_plan_lists_an_untried_architecture_and_a_run_tries_only_large_models(tmp_path: Path) -> None:
    small = recipe_for(tmp_path, copy_model(tmp_path / "small"))
    assert check_before_run(small) is None
    assert "--deep" in plan_language_model(small, None).unknown["architecture"]
    wide = copy_model(tmp_path / "wide", wide=True)
    assert (wide / "model.safetensors").stat().st_size > SMALL
    assert not is_small(recipe_for(tmp_path, wide))


@pytest.mark.slow
def test_a_successful_check_is_cached_until_the_model_or_the_recipe_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    model = copy_model(tmp_path / "model")
    recipe = recipe_for(tmp_path, model, export={"to": ["adapter", "merged"]})
    before, state = sorted(tmp_path.rglob("*")), torch.get_rng_state()
    found = plan_language_model(recipe, None, deep=True)
    assert found.architecture_check is not None
    assert not found.problems
    assert list(found.architecture_check.tried) == ["model", "evaluate", "sft", "grpo", "export"]
    assert not found.architecture_check.cached
    assert 0 < found.architecture_check.parameters < 2_000_000
    assert torch.equal(torch.get_rng_state(), state)
    assert [file for file in sorted(tmp_path.rglob("*")) if not file.is_relative_to(tmp_path / "cache")] == before

    def is_cached(other: Recipe) -> bool:
        known = known_check(other)
        return known is not None and known.cached

    assert check_architecture(recipe).cached
    assert is_cached(recipe.model_copy(update={"run": recipe.run.model_copy(update={"name": "other"})}))
    changed = {"lora": {"r": 2}, "images": {"max_side": 56}, "grpo": None}
    for name, value in changed.items():
        assert not is_cached(recipe_for(tmp_path, model, export={"to": ["adapter", "merged"]}, **{name: value}))
    (model / "chat_template.jinja").write_text(
        (model / "chat_template.jinja").read_text(encoding="utf-8") + "\n", encoding="utf-8"
    )
    assert not is_cached(recipe)


@pytest.mark.slow
def test_a_model_on_which_grpo_fails_is_found_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    model = copy_model(tmp_path / "model", wide=True)
    blind(model)
    recipe = recipe_for(tmp_path, model, sft=None, evaluate=None)
    plan = plan_language_model(recipe, None, deep=True)
    assert plan.architecture_check is not None
    assert [one.part for one in plan.architecture_check.failures] == ["grpo"]
    (problem,) = plan.problems
    assert (problem.code, problem.place, problem.certain) == (CODE, "[grpo]", True)
    assert "training.images_ignored" in str(problem.details.value)
    file = tmp_path / "blind.toml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    with raises(PlanError, CODE):
        toolkit.run(file)
    assert not recipe.run_folder.exists()
    assert not list((tmp_path / "cache").rglob("architecturecheck-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason"), [("os.kill(os.getpid(), 9)", "killed by signal 9"), ("sys.exit(0)", "ended without a result")]
)
def test_a_check_whose_process_ends_is_a_warning_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str, reason: str
) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    rewards = tmp_path / "rewards.py"
    rewards.write_text(f"import os, sys\n\ndef ends(sample, answer):\n    {code}\n", encoding="utf-8")
    model = copy_model(tmp_path / "model", wide=True)
    recipe = recipe_for(tmp_path, model, sft=None, evaluate=None, rewards={"custom": [f"{rewards}:ends"]})
    record = plan_run(recipe, fresh=True)
    assert record is not None
    problems = [record.problem for record in caplog.records if hasattr(record, "problem")]
    (found,) = [problem for problem in problems if problem.code == ENDED]
    assert found.place == "[model] name"
    assert reason in str(found.value)
    architecture = record["architecture"]
    assert list(architecture["not_tried"]) == ["architecture"]
    assert reason in architecture["not_tried"]["architecture"]
    assert not list((tmp_path / "cache").rglob("architecturecheck-*"))
    planned = plan_language_model(recipe, None, deep=True)
    assert planned.unknown["architecture"] == architecture["not_tried"]["architecture"]
    assert ENDED in [finding.code for finding in planned.warnings]


@pytest.mark.slow
@pytest.mark.parametrize("evaluate", [{"limit": 2, "max_completion_tokens": 4}, None])
def test_the_check_validates_after_each_training_stage(tmp_path: Path, evaluate: Mapping[str, int] | None) -> None:
    validation = {"every_steps": 50, "patience": 2, "min_improvement": 0.1, "metric": "score"}
    recipe = recipe_for(tmp_path, tiny.FOLDER, evaluate=evaluate, validation=validation, data=VALIDATED)
    found = make_check(recipe, tmp_path / "check")
    assert not found.failures
    assert list(found.tried) == ["model", *(["evaluate"] if evaluate else []), "sft", "grpo"]
    lines = RunFolder(tmp_path / "check/runs/check").metrics()
    assert [(line["stage"], line["validation/n"]) for line in lines if "validation/n" in line] == [
        ("sft", 4),
        ("grpo", 4),
    ]


@pytest.mark.slow
def test_a_processor_with_another_number_of_image_tokens_fails_in_the_forward_pass(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    file = model / "processor_config.json"
    write_json(file, {**read_json(file), "image_seq_length": 3})
    found = make_check(recipe_for(tmp_path, model), tmp_path / "check")
    assert [one.part for one in found.failures] == ["model"]
    assert not found.tried
    assert found.failures[0].value.startswith("model.forward_fails")


def test_a_failure_does_not_quote_what_a_library_quotes() -> None:
    from toolkit.pipeline.architecture_check import _failure

    found = _failure("sft", ValueError("cannot read '/data/Zebrowski_Quentin/1.png' at /data/Zebrowski/2.png"))
    assert found.value.startswith("ValueError: cannot read")
    assert "Zebrowski" not in found.value
