"""The estimated duration of a stage: published runs are in its range, and settings change it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest

from tests.helpers.footprint import shape_fields
from toolkit.planning.architecture import Architecture, build_architecture
from toolkit.planning.duration import grpo_step, sft_step, stage_time
from toolkit.planning.gpu import COMMON, GPUS, figures_of, gpus_of
from toolkit.planning.model_files import UNQUANTIZED_MODULES
from toolkit.planning.passes import Cost, Passes
from toolkit.planning.speed import Arithmetic, Speed, arithmetic_of, speeds
from toolkit.planning.stages import Setting, Work
from toolkit.planning.tokens import RowSize

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODELS = ("medgemma_4b", "qwen2_5_vl_7b", "qwen3_vl_8b")
OLD_BITSANDBYTES = 1
"""Positions up to which the bitsandbytes of 2025 multiplied with packed parameters."""


@pytest.fixture(scope="module")
def models() -> Mapping[str, Architecture]:
    return {name: build_architecture(shape_fields(name), UNQUANTIZED_MODULES) for name in MODELS}


def setting_of(stage: str, row: RowSize, **changes: object) -> Setting:
    base = Setting(stage, row, "4bit", bf16=True, targets=TARGETS)  # type: ignore[arg-type]
    return replace(base, **changes)  # type: ignore[arg-type]


def row_of(text: int, images: int, answer: int, patches: int) -> RowSize:
    return RowSize(text, images, answer, 1 if images else 0, patches)


@dataclass(frozen=True)
class Published:
    """A published run: seconds of its optimizer step, and the settings that its page shows."""

    seconds: float
    model: str
    gpu: str
    arithmetic: str
    setting: Setting
    step: Callable[[Passes, Speed], float]


def longest(mean: float, completions: int) -> float:
    """Return the expected maximum of normal lengths with a standard deviation of 35 % of the mean."""
    return mean * (1 + 0.35 * {2: 0.56, 8: 1.42}[completions])


FITTED = {
    # Unsloth's notebook Gemma3_(4B)-Vision: LaTeX_OCR, LoRA on language model and tower, float32.
    "Gemma 3 4B SFT, T4": Published(
        20.4,
        "medgemma_4b",
        "T4",
        "float32",
        setting_of("sft", row_of(30, 256, 70, 4096), lora_vision=True),
        lambda passes, speed: sft_step(passes, speed, 4),
    ),
    # Google's notebook: NCT-CRC, 16 rows a step in micro-batches of 4, eager attention, LoRA on all linear layers. It
    # evaluates 200 rows every 50 steps: 6 % more forward passes.
    "MedGemma 4B SFT, A100 40 GB": Published(
        18.8,
        "medgemma_4b",
        "A100 40 GB",
        "bfloat16",
        setting_of("sft", row_of(110, 256, 12, 4096), lora_vision=True, rows=4, eager=True, dropout=0.05),
        lambda passes, speed: 1.06 * sft_step(passes, speed, 16),
    ),
}
OTHERS = {
    # Gemma3_(4B)-Vision-GRPO: MathVista at 512 pixels, 2 prompts x 4 completions of 271 tokens on average.
    "Gemma 3 4B GRPO, T4": Published(
        130,
        "medgemma_4b",
        "T4",
        "float32",
        setting_of("grpo", row_of(110, 256, 0, 4096), rows=4, concurrent=8, answer_tokens=1024),
        lambda passes, speed: grpo_step(passes, speed, longest(271, 8)),
    ),
    # Qwen3_VL_(8B)-Vision-GRPO: 1 prompt x 2 completions of 450 tokens on average, float16.
    "Qwen3-VL 8B GRPO, T4": Published(
        106,
        "qwen3_vl_8b",
        "T4",
        "float16",
        setting_of("grpo", row_of(130, 256, 0, 1024), rows=2, concurrent=2, answer_tokens=1024),
        lambda passes, speed: grpo_step(passes, speed, longest(450, 2)),
    ),
    # Qwen3_VL_(8B)-Vision and Qwen2.5_VL_(7B)-Vision: LaTeX_OCR, 8 rows a step in micro-batches of 2.
    "Qwen3-VL 8B SFT, T4": Published(
        5.73,
        "qwen3_vl_8b",
        "T4",
        "float16",
        setting_of("sft", row_of(35, 64, 70, 256), rows=2, lora_vision=True),
        lambda passes, speed: sft_step(passes, speed, 8),
    ),
    "Qwen2.5-VL 7B SFT, T4": Published(
        5.97,
        "qwen2_5_vl_7b",
        "T4",
        "float16",
        setting_of("sft", row_of(35, 30, 70, 120), rows=2, lora_vision=True),
        lambda passes, speed: sft_step(passes, speed, 8),
    ),
}


def range_of(run: Published, models: Mapping[str, Architecture]) -> tuple[float, float]:
    gpu, arithmetic = figures_of(run.gpu), Arithmetic(run.arithmetic)
    assert gpu is not None
    passes = Passes(models[run.model], run.setting, arithmetic.value, OLD_BITSANDBYTES)
    low, high = (run.step(passes, speed) for speed in speeds(gpu, arithmetic))
    return low, high


@pytest.mark.parametrize("name", FITTED)
def test_the_middle_of_the_range_is_the_published_figure_that_fits_it(
    name: str, models: Mapping[str, Architecture]
) -> None:
    low, high = range_of(FITTED[name], models)
    assert (low * high) ** 0.5 == pytest.approx(FITTED[name].seconds, rel=0.05)


@pytest.mark.parametrize("name", OTHERS)
def test_published_runs_without_vllm_that_were_not_fitted_are_in_the_range(
    name: str, models: Mapping[str, Architecture]
) -> None:
    low, high = range_of(OTHERS[name], models)
    assert low < OTHERS[name].seconds < high


def test_a_model_card_without_settings_claims_less_than_the_lower_end(models: Mapping[str, Architecture]) -> None:
    """A model card says 45 to 60 minutes for MedGemma 4B on an L4: one epoch of 9,577 rows, LoRA on all linear layers.

    That is at most 0.38 s a row. The lower end is above it even with a frozen tower and without checkpointing. The card
    does not show whether its figure was measured.
    """
    setting = setting_of("sft", row_of(80, 256, 12, 4096), checkpointing=False)
    figures = figures_of("L4")
    assert figures is not None
    fast, _ = speeds(figures, Arithmetic("bfloat16"))
    row = sft_step(Passes(models["medgemma_4b"], setting, 2), fast, 8) / 8
    assert 3600 / 9577 < row < 1.6 * 3600 / 9577


def test_flops_and_launches_agree_with_a_traced_grpo_step(models: Mapping[str, Architecture]) -> None:
    """An allocation trace of MedGemma 4B (2 prompts x 4 completions x 128 tokens) counted 226 TFLOP and 803,000
    launches."""
    setting = setting_of("grpo", row_of(250, 256, 0, 4096), concurrent=8, answer_tokens=128, dropout=0.05)
    passes = Passes(models["medgemma_4b"], setting, 2)
    read, write = passes.rollout(8, 128)
    whole = read + write + passes.training(1, 128) * 8
    assert whole.flops == pytest.approx(226e12, rel=0.03)
    assert whole.launches == pytest.approx(803_000, rel=0.06)


@pytest.mark.parametrize("stage", ["sft", "grpo", "evaluate"])
@pytest.mark.parametrize("name", MODELS)
def test_the_upper_end_is_at_most_three_times_the_lower_on_every_gpu(
    name: str, stage: str, models: Mapping[str, Architecture]
) -> None:
    work = Work(10, 8, 8, 80, 128, 2)
    for text in (10, 2000):
        setting = setting_of(stage, row_of(text, 256, 60, 1024), concurrent=8, answer_tokens=512)
        for gpu in GPUS:
            for backend in ("unsloth", "hf"):
                found = stage_time(models[name], replace(setting, backend=backend), work, gpu).step
                assert 0 < found.low < found.high <= 3.0001 * found.low


def test_extra_rollouts_are_in_the_upper_end_only(models: Mapping[str, Architecture]) -> None:
    gpu = figures_of("L4")
    assert gpu is not None
    setting = setting_of("grpo", row_of(250, 256, 0, 4096), concurrent=8, answer_tokens=256)
    none, two, four = (
        stage_time(models["medgemma_4b"], setting, Work(10, 2, 8, 80, 256, extra_rollouts=count), gpu).step
        for count in (0, 2, 4)
    )
    assert none.low == two.low == four.low
    assert four.high - none.high == pytest.approx(2 * (two.high - none.high))
    assert none.high < two.high < 3 * none.high  # a rollout without its update


def test_a_pass_takes_the_longer_of_the_work_of_gpu_and_host() -> None:
    speed = Speed(flops=1e12, moved=1e9, launch=1e-5, pixel=0.0)
    assert speed.seconds(Cost(2e12, 3e9, 1e5)) == pytest.approx(5.0)
    assert speed.seconds(Cost(2e12, 3e9, 1e6)) == pytest.approx(10.0)


def test_a_gpu_without_bfloat16_uses_float32_if_float16_overflows() -> None:
    t4, l4 = figures_of("T4"), figures_of("L4")
    assert t4 is not None
    assert l4 is not None
    hf = setting_of("sft", row_of(1, 1, 1, 1))
    unsloth = replace(hf, backend="unsloth")
    assert arithmetic_of(t4, unsloth, "gemma3").name == "float32"
    assert arithmetic_of(t4, unsloth, "qwen3_vl").name == "float16"
    assert arithmetic_of(t4, hf, "qwen3_vl").name == "float32"
    assert arithmetic_of(l4, unsloth, "gemma3").name == "bfloat16"
    assert arithmetic_of(l4, replace(hf, precision="32bit"), "gemma3").name == "float32"


def test_settings_that_add_work_take_longer(models: Mapping[str, Architecture]) -> None:
    gpu = figures_of("L4")
    assert gpu is not None
    plain = setting_of("grpo", row_of(250, 256, 0, 4096), concurrent=8, answer_tokens=256, checkpointing=False)
    work = Work(10, 2, 8, 80, 256)

    def low(setting: Setting) -> float:
        return stage_time(models["medgemma_4b"], setting, work, gpu).step.low

    for more in (
        {"checkpointing": True},
        {"lora_vision": True},
        {"reference": "adapter"},
        {"answer_tokens": 512},
        {"eager": True},
        {"row": row_of(1250, 256, 0, 4096)},
        {"precision": "32bit"},
    ):
        assert low(replace(plain, **more)) > low(plain), more


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_validations_take_the_time_of_their_completions_and_losses(
    stage: str, models: Mapping[str, Architecture]
) -> None:
    gpu = figures_of("L4")
    assert gpu is not None
    row, model = row_of(250, 256, 60, 4096), models["medgemma_4b"]
    plain = setting_of(stage, row, concurrent=8, answer_tokens=256)
    work = Work(100, 8, 8, 800, 256)
    without = stage_time(model, plain, work, gpu)
    found = stage_time(model, replace(plain, validated=(8, 128)), replace(work, validations=4, validated=64), gpu)
    evaluated = stage_time(
        model,
        setting_of("evaluate", row, concurrent=8, answer_tokens=128),
        Work(answers=64, evaluations=1),
        gpu,
    )
    assert found.step == without.step
    assert found.total.low == pytest.approx(without.total.low + 4 * found.validation.low)
    assert found.to_json()["validations"] == 4
    if stage == "grpo":
        assert found.validation.low == pytest.approx(evaluated.step.low)
    else:
        assert evaluated.step.low < found.validation.low < 2 * evaluated.step.low


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("Tesla T4", "T4"),
        ("t4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40 GB"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("rtx 4060ti", "RTX 4060 Ti"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla V100-SXM2-32GB", "V100 32 GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
    ],
)
def test_a_gpu_is_found_by_any_spelling(spelled: str, name: str) -> None:
    found = figures_of(spelled)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "name", ["RTX 3090 Ti", "GTX 1080", "A100 MIG 1g.5gb", "a GPU with 24 GB", "RTX 4090 Laptop GPU"]
)
def test_an_unlisted_gpu_does_not_match_a_listed_one(name: str) -> None:
    assert figures_of(name) is None


def test_memory_decides_between_variants_and_a_size_lists_gpus() -> None:
    found = figures_of("NVIDIA A100", 79.2)
    assert found is not None
    assert found.name == "A100 80 GB"
    assert {"L4", "A10", "RTX 3090", "RTX 4090"} <= {one.name for one in gpus_of(24)}
    assert all(figures_of(one.name) == one for one in GPUS)
    assert all(figures_of(name) for name in COMMON)
