"""One prefill per distinct prompt: equal completions and logits, and the calls that keep the model's own forward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.helpers.model_families import build
from toolkit.models.shared_prefill import SharedPrefill, prefill_once
from toolkit.runfolder.usage import bypasses
from toolkit.runfolder.usage.counters import forget_bypasses
from toolkit.tiny import FOLDER


@pytest.fixture(autouse=True)
def _no_bypass() -> None:
    forget_bypasses()


SHORT, LONG = "What is seen?", "Which finding is seen on this image of the chest, and on which side?"


def load(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    return model.eval().requires_grad_(requires_grad=False), processor


def image(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (112, 112, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def batch(processor: Any, rows: Sequence[tuple[str, Sequence[int]]]) -> Any:
    """Encode rows of a question and the seeds of its images."""
    prompts = [
        [{"role": "user", "content": [*({"type": "image"} for _ in seeds), {"type": "text", "text": question}]}]
        for question, seeds in rows
    ]
    text = [processor.apply_chat_template(prompt, add_generation_prompt=True) for prompt in prompts]
    images = [[image(seed) for seed in seeds] for _, seeds in rows] if any(seeds for _, seeds in rows) else None
    return processor(text=text, images=images, padding=True, return_tensors="pt")


def generate(model: Any, inputs: Any, *, sample: bool = True, **options: Any) -> Any:
    torch.manual_seed(7)
    sampling = {"temperature": 1.0, "top_k": 0} if sample else {}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": sample, **sampling, **options}
    with torch.no_grad():
        return model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)


def compare(model: Any, inputs: Any, **options: Any) -> SharedPrefill:
    """Check that tokens and logits are equal to the last bit with and without the wrapper."""
    expected = generate(model, inputs, **options)
    shared = prefill_once(model)
    found = generate(model, inputs, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for logits, others in zip(found.logits, expected.logits, strict=True):
        assert torch.equal(logits, others)
    return shared


GROUPS = [(SHORT, (1,))] * 3 + [(LONG, (2,))] * 3


@pytest.mark.slow
@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_groups_of_completions_are_equal_with_one_prefill_per_prompt(
    family: str, sample: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = Path(FOLDER) if family == "gemma3" else build(family, request.getfixturevalue("shared_data"), tmp_path)
    model, processor = load(folder)
    shared = compare(model, batch(processor, GROUPS), sample=sample)
    assert (shared.rows, shared.computed) == (6, 2)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return load(Path(FOLDER))


@pytest.fixture
def model(tiny: tuple[Any, Any]) -> Any:
    yield tiny[0]
    if (shared := getattr(tiny[0].forward, "shared_prefill", None)) is not None:
        shared.remove()


@pytest.mark.parametrize(
    ("rows", "computed"),
    [
        ([(SHORT, (1,)), (SHORT, (2,)), (SHORT, (1,))], 2),
        ([(SHORT, (1, 2)), (SHORT, (2, 1)), (SHORT, (1, 2))], 2),
        ([(SHORT, (1, 2)), (SHORT, (3,)), (SHORT, (3,)), (SHORT, (1, 2)), (LONG, (3,))], 3),
        ([(SHORT, ()), (LONG, ()), (SHORT, ())], 2),
        ([(SHORT, ()), (SHORT, (1,)), (SHORT, ()), (SHORT, (1,))], 2),
        ([(SHORT, (1,)), (LONG, (1,))], 2),
    ],
    ids=["same question", "order of images", "several images", "no images", "some images", "same image"],
)
def test_rows_have_one_prefill_if_tokens_and_images_are_equal(
    model: Any, tiny: tuple[Any, Any], rows: list[tuple[str, tuple[int, ...]]], computed: int
) -> None:
    shared = compare(model, batch(tiny[1], rows))
    assert (shared.rows, shared.computed, bypasses()) == (len(rows), computed, {})


def test_several_return_sequences_have_one_prefill(model: Any, tiny: tuple[Any, Any]) -> None:
    shared = compare(model, batch(tiny[1], GROUPS[2:4]), num_return_sequences=4)
    assert (shared.rows, shared.computed) == (8, 2)


@pytest.mark.parametrize(
    ("rows", "reported"),
    [(GROUPS, {"shared prefill: the cache is a StaticCache": 1}), (GROUPS[2:4], {})],
    ids=["repeated prompts", "different prompts"],
)
def test_a_static_cache_keeps_the_own_forward_and_is_reported_if_it_repeats_a_prompt(
    model: Any, tiny: tuple[Any, Any], rows: list[tuple[str, tuple[int, ...]]], reported: dict[str, int]
) -> None:
    shared = compare(model, batch(tiny[1], rows), cache_implementation="static")
    assert (shared.rows, bypasses()) == (0, reported)


def test_an_unknown_argument_keeps_the_own_forward_and_its_name_is_reported(model: Any, tiny: tuple[Any, Any]) -> None:
    shared = compare(model, batch(tiny[1], GROUPS), output_hidden_states=True)
    assert (shared.rows, bypasses()) == (0, {"shared prefill: unknown argument output_hidden_states": 1})


def test_training_keeps_the_own_forward(model: Any, tiny: tuple[Any, Any]) -> None:
    shared = prefill_once(model)
    model(**batch(tiny[1], GROUPS))
    assert (shared.rows, bypasses()) == (0, {})


def test_active_dropout_keeps_the_own_forward(model: Any, tiny: tuple[Any, Any]) -> None:
    shared, dropout = prefill_once(model), torch.nn.Dropout(0.1)
    model.model.add_module("dropout", dropout)
    try:
        generate(model.train(), batch(tiny[1], GROUPS))
    finally:
        del model.model.dropout
        model.eval()
    assert (shared.rows, bypasses()) == (0, {"shared prefill: dropout is active": 1})


def test_the_wrapper_is_made_once(model: Any) -> None:
    assert prefill_once(model) is prefill_once(model)
