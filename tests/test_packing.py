"""Packed prompts: equal log-probabilities and gradients, passes with whole groups, OOM recovery, and the plan."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, TrainerCallback

from tests.helpers.model_families import build
from tests.helpers.oom import lines_of, small_memory
from tests.helpers.problems import raises
from tests.helpers.shapes import SHAPES
from tests.helpers.training import context_of, only
from toolkit.errors import ModelError
from toolkit.models.oom import Sizes
from toolkit.models.packed_prompts import pack_prompts
from toolkit.models.packing import not_packed_reasons, packed_completions, packed_sizes
from toolkit.planning.activations import grpo_logits_bytes, saved_bytes
from toolkit.planning.architecture import build_architecture
from toolkit.planning.memory import UNPACKED, estimate, first_fit
from toolkit.planning.passes import Passes
from toolkit.planning.stages import Setting, memory_settings
from toolkit.planning.tokens import longest_possible_row
from toolkit.recipe import Recipe
from toolkit.runfolder.usage import bypasses
from toolkit.runfolder.usage.counters import forget_bypasses
from toolkit.tiny import FOLDER
from toolkit.training import grpo
from toolkit.training.results import GrpoResult

SHORT, LONG = "What is seen?", "Which finding is seen on this image of the chest, and on which side?"
TOKENS = 9
"""Tokens of the longest completion."""
Rows = Sequence[tuple[str, Sequence[int], int]]
"""Question, seeds of the images, and tokens of the completion."""


def load(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Return the model with an adapter that changes its outputs, in training mode, and the processor."""
    config = AutoConfig.from_pretrained(folder)
    if window := options.pop("window", None):
        config.text_config.sliding_window = window
    model = AutoModelForImageTextToText.from_pretrained(folder, config=config, dtype=torch.float32, **options)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    return model.train(), processor


def image(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (112, 112, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def batch(processor: Any, rows: Rows) -> dict[str, Any]:
    """Encode rows as TRL does: prompts padded on the left, completions on the right."""
    prompts = [
        [{"role": "user", "content": [*({"type": "image"} for _ in seeds), {"type": "text", "text": question}]}]
        for question, seeds, _ in rows
    ]
    text = [processor.apply_chat_template(prompt, add_generation_prompt=True) for prompt in prompts]
    images = [[image(seed) for seed in seeds] for _, seeds, _ in rows] if any(seeds for _, seeds, _ in rows) else None
    encoded = processor(text=text, images=images, padding=True, return_tensors="pt")
    tokens = torch.randint(10, 900, (len(rows), TOKENS), generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[1] * length + [0] * (TOKENS - length) for _, _, length in rows])
    fields = {
        **encoded,
        "input_ids": torch.cat([encoded["input_ids"], torch.where(mask == 1, tokens, 0)], dim=1),
        "attention_mask": torch.cat([encoded["attention_mask"], mask], dim=1),
        "logits_to_keep": TOKENS + 1,
        "use_cache": False,
    }
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in encoded:
            fields[name] = torch.cat([encoded[name], torch.zeros_like(mask)], dim=1)
    return fields


@dataclass(frozen=True)
class Found:
    """Log-probabilities of the completions' tokens, gradients of a policy loss, and tokens in the language model."""

    logps: torch.Tensor
    gradients: Mapping[str, torch.Tensor]
    tokens: int


def run_passes(model: Any, call: Callable[..., Any], passes: Sequence[Mapping[str, Any]]) -> Found:
    """Return the results of a forward and a backward pass over each of ``passes``."""
    weights = iter(torch.randn(20, generator=torch.Generator().manual_seed(5)))
    logps, tokens = [], 0

    def count(module: Any, args: Any, output: Any) -> None:
        nonlocal tokens
        tokens += output[0].shape[:-1].numel()

    hook = model.get_base_model().get_decoder().register_forward_hook(count)
    for fields in passes:
        ids, mask = (fields[name][:, -TOKENS:] for name in ("input_ids", "attention_mask"))
        found = call(**fields).logits[:, :-1].log_softmax(-1).gather(2, ids[..., None])[..., 0]
        assert found.isfinite().all()
        sum(next(weights) * row.sum() for row in found * mask).backward()
        logps.append(found.detach()[mask == 1])
    hook.remove()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return Found(torch.cat(logps), gradients, tokens)


def compare(model: Any, processor: Any, rows: Rows, dtype: torch.dtype = torch.float64) -> float:
    """Compare packed with unpacked rows. Return the fraction of the tokens that are computed."""
    model, passes = model.to(dtype), [batch(processor, rows)]
    unpacked, packed = run_passes(model, model, passes), run_passes(model, pack_prompts(model), passes)
    assert torch.allclose(packed.logps, unpacked.logps, rtol=0, atol=1e-5)
    assert relative_difference(packed.gradients, unpacked.gradients) <= 1e-6
    return packed.tokens / unpacked.tokens


def relative_difference(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    """Return the largest difference of two sets of gradients, relative to the largest gradient."""
    assert first.keys() == second.keys()
    largest = max(gradient.abs().max() for gradient in second.values())
    assert largest > 0
    return float(max((first[name] - second[name]).abs().max() for name in second) / largest)


GROUP: Rows = [(SHORT, (1,), length) for length in (9, 5, 9, 0)]
GROUPS: Rows = [*GROUP, *((LONG, (2,), length) for length in (3, 9, 7))]
FAMILIES = ["gemma3", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(scope="module")
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Any]]:
    """Return a function from a family to its model and processor."""
    found: dict[str, tuple[Any, Any]] = {}

    def get(family: str) -> tuple[Any, Any]:
        if family not in found:
            if family == "gemma3":
                folder = Path(FOLDER)
            else:
                folder = build(family, request.getfixturevalue("shared_data"), tmp_path_factory.mktemp(family))
            found[family] = load(folder)
        return found[family]

    return get


CASES: Mapping[str, Rows] = {
    "one group": GROUP,
    "two groups with padding": GROUPS,
    "mixed groups": [GROUPS[4], GROUPS[0], GROUPS[5], GROUPS[1]],
    "several images": [(SHORT, (1, 2), 9), (SHORT, (1, 2), 4), (LONG, (3,), 9), (LONG, (3,), 2)],
    "no images": [(SHORT, (), 9), (SHORT, (), 4), (LONG, (), 9)],
    "some images": [(SHORT, (), 9), (SHORT, (1,), 4), (SHORT, (), 9), (SHORT, (1,), 9)],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_log_probabilities_and_gradients_are_those_of_unpacked_rows(
    models: Callable[[str], tuple[Any, Any]], family: str, rows: Rows
) -> None:
    assert compare(*models(family), rows) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_equal_in_float32_too(models: Callable[[str], tuple[Any, Any]], family: str) -> None:
    assert compare(*models(family), GROUP, dtype=torch.float32) < 0.7


@pytest.mark.slow
def test_equal_questions_about_different_images_are_different_prompts(
    models: Callable[[str], tuple[Any, Any]],
) -> None:
    model, processor = models("gemma3")
    rows: Rows = [(SHORT, (1,), 9), (SHORT, (2,), 9), (SHORT, (1,), 9), (SHORT, (2,), 9)]
    assert 0.5 < compare(model, processor, rows) < 0.7
    both = [(SHORT, (1, 2), 9), (SHORT, (2, 1), 9)]
    assert compare(model, processor, both) == 1


@pytest.mark.slow
def test_a_call_with_an_unknown_argument_is_unpacked_and_the_name_is_reported(
    models: Callable[[str], tuple[Any, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = models("gemma3")
    forget_bypasses()
    fields = {**batch(processor, GROUP), "output_hidden_states": True}
    with torch.no_grad(), caplog.at_level(logging.INFO, "toolkit"):
        expected = model(**fields).logits
        for _ in range(2):
            assert torch.equal(pack_prompts(model)(**fields).logits, expected)
    assert bypasses() == {"packed prompts: unknown argument output_hidden_states": 2}
    assert sum("output_hidden_states" in message for message in caplog.messages) == 1


@pytest.mark.slow
def test_calls_without_a_common_prompt_are_no_bypass(models: Callable[[str], tuple[Any, Any]]) -> None:
    model, processor = models("gemma3")
    forget_bypasses()
    with torch.no_grad():
        pack_prompts(model)(**batch(processor, GROUPS[2:5]))
        pack_prompts(model)(**{**batch(processor, GROUPS[3:5]), "output_hidden_states": True})
    assert bypasses() == {}


@pytest.mark.slow
def test_short_sliding_windows_are_those_of_unpacked_rows() -> None:
    model, processor = load(Path(FOLDER), window=16)
    assert compare(model, processor, GROUPS) < 0.7


@pytest.mark.slow
def test_eager_attention_is_that_of_unpacked_rows() -> None:
    """In float64, the padding of unpacked rows is NaN: transformers converts the scores to float32 before softmax."""
    model, processor = load(Path(FOLDER), attn_implementation="eager")
    assert compare(model, processor, GROUPS, torch.float32) < 0.7


@pytest.mark.slow
def test_gradient_checkpointing_keeps_packed_gradients(models: Callable[[str], tuple[Any, Any]]) -> None:
    model, processor = models("gemma3")
    whole = run_passes(model, pack_prompts(model), [batch(processor, GROUPS)])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        again = run_passes(model, pack_prompts(model), [batch(processor, GROUPS)])
    finally:
        model.gradient_checkpointing_disable()
    assert relative_difference(again.gradients, whole.gradients) <= 1e-7


class Gradients(TrainerCallback):
    """Keeps the gradients of each optimizer step, and the completions of each rollout."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def recipe_of(folder: Path, name: str, *, packing: bool | str, **tables: Mapping[str, Any]) -> Recipe:
    """A step of 2 prompts with 4 completions each, whose rewards are their lengths."""
    base: dict[str, dict[str, Any]] = {
        "lora": {"dropout": 0.0},
        "grpo": {"max_steps": 1, "micro_batch": 1, "max_completion_tokens": 8, "max_grad_norm": 1000.0},
    }
    for table, keys in tables.items():
        base[table] = {**base.get(table, {}), **keys}
    base["grpo"]["packing"] = packing
    return only("grpo", folder, name, base)


def train(
    recipe: Recipe, patch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32
) -> tuple[Gradients, GrpoResult]:
    """Return the gradients of each step and the result of GRPO with a model of a dtype."""
    build_trainer, gradients = grpo.build_grpo, Gradients()

    def built(backend: Any, policy: Any, job: Any) -> Any:
        policy.model.to(dtype)
        trainer = build_trainer(backend, policy, job)
        trainer.add_callback(gradients)
        return trainer

    with patch.context() as inner, context_of(recipe) as context:
        inner.setattr(grpo, "build_grpo", built)
        return gradients, grpo.train_grpo(context, preflight=False)


SETTINGS: Mapping[str, dict[str, Any]] = {
    "dapo": {"grpo": {"loss": "dapo"}},
    "grpo, sequences, two rows a pass": {"grpo": {"loss": "grpo", "importance": "sequence", "micro_batch": 2}},
    "dr_grpo, masked": {"grpo": {"loss": "dr_grpo", "mask_truncated": True, "max_completion_tokens": 12}},
    "cispo, one pass": {"grpo": {"loss": "cispo", "epsilon_high": 5.0, "micro_batch": 8}},
    "reference, checkpointing": {"grpo": {"beta": 0.1, "gradient_checkpointing": True}},
    "vision tower": {"lora": {"vision": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("tables", SETTINGS.values(), ids=SETTINGS)
def test_updates_and_metrics_are_those_of_unpacked_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: dict[str, Any]
) -> None:
    """In float64, because advantages of a group cancel, which enlarges the rounding errors of float32."""
    plain = recipe_of(tmp_path, "plain", packing=False, **tables)
    packed = recipe_of(tmp_path, "packed", packing="auto", **tables)
    expected, _ = train(plain, monkeypatch, torch.float64)
    found, result = train(packed, monkeypatch, torch.float64)
    assert (result.training.gpu_memory.micro_batch, result.training.gpu_memory.accumulation) == (4, 2)
    assert len(found.steps) == len(expected.steps) == 1
    assert relative_difference(found.steps[0], expected.steps[0]) <= 1e-6
    (ours,), (theirs,) = lines_of(packed), lines_of(plain)
    numbers = [name for name, value in theirs.items() if isinstance(value, float) and "entropy" not in name]
    assert {name: ours[name] for name in numbers} == pytest.approx({name: theirs[name] for name in numbers}, rel=1e-4)


@pytest.mark.slow
def test_in_float32_packing_changes_an_update_less_than_float32_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured: 1.6e-5 of the largest gradient between float32 and float64, 1.3e-5 with packing, 3.6e-6 by packing."""
    (exact, _), (plain, _), (packed, _) = (
        train(recipe_of(tmp_path, name, packing=packing), monkeypatch, dtype)
        for name, packing, dtype in (
            ("exact", False, torch.float64),
            ("plain", False, torch.float32),
            ("packed", "auto", torch.float32),
        )
    )
    rounding = relative_difference(plain.steps[0], exact.steps[0])
    assert relative_difference(packed.steps[0], exact.steps[0]) <= 2 * rounding
    assert relative_difference(packed.steps[0], plain.steps[0]) <= rounding


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_updates_of_models_with_an_image_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path, family: str
) -> None:
    tables: dict[str, dict[str, Any]] = {
        "model": {"name": str(build(family, shared_data, tmp_path)), "max_tokens": 600},
        "images": {"max_side": 56},
        "grpo": {"max_completion_tokens": 4},
    }
    expected, _ = train(recipe_of(tmp_path, "plain", packing=False, **tables), monkeypatch)
    found, result = train(recipe_of(tmp_path, "packed", packing=True, **tables), monkeypatch)
    assert result.training.gpu_memory.micro_batch == 4
    assert relative_difference(found.steps[0], expected.steps[0]) <= 1e-5


@pytest.mark.slow
def test_after_an_oom_error_a_row_has_fewer_completions_and_finally_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe_of(tmp_path, "plain", packing=False)
    expected, _ = train(plain, monkeypatch)
    with small_memory(monkeypatch, fits=10**6, tokens=True, gradients=True) as memory:
        train(recipe_of(tmp_path, "whole", packing=True), monkeypatch)
    whole, completion = max(memory.seen), 8
    for name, fits, micro_batch in (("halves", whole - 1, 2), ("rows", whole - 2 * completion - 1, 1)):
        recipe = recipe_of(tmp_path, name, packing=True)
        with small_memory(monkeypatch, fits=fits, tokens=True, gradients=True) as memory:
            found, result = train(recipe, monkeypatch)
        sizes = result.training.gpu_memory
        assert (sizes.micro_batch, sizes.accumulation) == (micro_batch, 8 // micro_batch)
        assert max(memory.seen) == whole
        assert relative_difference(found.steps[-1], expected.steps[0]) <= 1e-5


def test_packing_is_chosen_by_model_backend_attention_and_loss(tmp_path: Path) -> None:
    def reasons(backend: str = "hf", model_type: str = "gemma3", **tables: Mapping[str, Any]) -> int:
        return len(not_packed_reasons(recipe_of(tmp_path, "auto", packing="auto", **tables), backend, model_type))

    assert reasons() == reasons(model_type="qwen3_vl") == 0
    assert reasons(backend="unsloth") == reasons(model_type="llava") == reasons(grpo={"loss": "bnpo"}) == 1
    assert reasons(model={"attention": "flash_attention_2"}, model_type="qwen3_vl") == 1
    assert not_packed_reasons(recipe_of(tmp_path, "off", packing=False), "hf", "gemma3")
    wanted = recipe_of(tmp_path, "on", packing=True, grpo={"micro_batch": 8})
    assert not not_packed_reasons(wanted, "hf", "gemma3")
    with raises(ModelError, "training.packing_unsupported"):
        not_packed_reasons(wanted, "hf", "llava")
    long: dict[str, Any] = {"model": {"max_tokens": 2048}, "grpo": {"generations": 8, "max_completion_tokens": 512}}
    assert packed_completions(recipe_of(tmp_path, "parts", packing="auto", **long).grpo_settings) == 2
    assert packed_completions(recipe_of(tmp_path, "all", packing=True, **long).grpo_settings) == 8
    assert reasons(model=long["model"], grpo={**long["grpo"], "generations": 3}) == 1
    sizes = packed_sizes(wanted)
    assert sizes == Sizes(micro_batch=4, accumulation=2, completions=8)
    assert sizes.smaller() == Sizes(micro_batch=2, accumulation=4, completions=8)


def test_the_plan_has_the_longer_row(tmp_path: Path) -> None:
    fields = json.loads((SHAPES / "medgemma_4b.json").read_text(encoding="utf-8"))
    model = build_architecture(fields, ())

    def settings(packing: bool | str, **keys: Any) -> Setting:
        recipe = recipe_of(tmp_path, "small", packing=packing, grpo={"max_completion_tokens": 128, **keys})
        return memory_settings(recipe, model, longest_possible_row(recipe, model), bf16=True)["grpo"]

    plain, packed = settings(packing=False), settings(packing="auto")
    assert (packed.rows, packed.packed) == (1, 4)
    assert packed.tokens == plain.tokens + 3 * 128
    assert grpo_logits_bytes(model, packed) == 4 * grpo_logits_bytes(model, plain)
    assert saved_bytes(model, packed) > saved_bytes(model, plain)
    assert settings(packing="auto", loss="bnpo") == settings(packing=False, loss="bnpo")

    def in_training(setting: Setting) -> float:
        return Passes(model, setting, 2).training(setting.rows, 128).flops * 8 / (setting.rows * setting.packed)

    assert in_training(packed) < 0.6 * in_training(plain)
    usable = estimate(model, packed).peak.total - 1
    assert first_fit(model, packed, usable, 896) == (UNPACKED,)
