"""The cache of a frozen vision tower: equal outputs, each image computed once, and when it is bypassed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText
from transformers.modeling_outputs import BaseModelOutput

from tests.helpers.model_families import build
from toolkit.models.vision_cache import VisionCache, cache_frozen_vision, find_tower
from toolkit.runfolder.usage import bypasses
from toolkit.runfolder.usage.counters import forget_bypasses
from toolkit.tiny import FOLDER


@pytest.fixture(autouse=True)
def _no_bypass() -> None:
    forget_bypasses()


@pytest.fixture
def model() -> Any:
    found = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    return found.eval().requires_grad_(requires_grad=False)


def images(*seeds: int, side: int = 112) -> torch.Tensor:
    """Pixels of images that are equal if their seeds are: shape (images, 3, side, side)."""
    return torch.stack([torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def cached(model: Any) -> VisionCache:
    found = cache_frozen_vision(model)
    assert found is not None
    return found


def features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model.model.vision_tower(pixel_values=pixels, return_dict=True).last_hidden_state
    return output


def test_each_distinct_image_passes_through_the_tower_once(model: Any) -> None:
    pixels = images(1, 1, 2, 1)
    expected = features(model, pixels)
    cache = cached(model)
    assert torch.equal(features(model, pixels), expected)
    assert (cache.computed, cache.reused) == (2, 2)
    assert torch.equal(features(model, images(2, 3)), features(model, images(2, 3)))
    assert cache.computed == 3


def test_clear_computes_the_images_again(model: Any) -> None:
    cache = cached(model)
    features(model, images(1))
    cache.clear()
    features(model, images(1))
    assert cache.computed == 2


def test_remove_restores_the_own_forward(model: Any) -> None:
    before = model.model.vision_tower.forward
    cache = cached(model)
    assert model.model.vision_tower.forward != before
    cache.remove()
    assert model.model.vision_tower.forward == before
    features(model, images(1))
    assert cache.computed == 0


def test_a_second_cache_replaces_the_first(model: Any) -> None:
    first, second = cached(model), cached(model)
    features(model, images(1))
    assert (first.computed, second.computed) == (0, 1)


def test_changed_pixels_are_another_image(model: Any) -> None:
    cache, pixels = cached(model), images(1)
    before = features(model, pixels)
    pixels[0, 0, 0, 0] += 1e-3  # the caller's tensor, which the cache must not keep
    assert not torch.equal(features(model, pixels), before)
    assert cache.computed == 2


def test_features_made_in_inference_mode_can_be_used_in_training(model: Any) -> None:
    cached(model)
    with torch.inference_mode():
        model.model.vision_tower(pixel_values=images(1), return_dict=True)
    hidden = model.model.vision_tower(pixel_values=images(1), return_dict=True).last_hidden_state
    weight = torch.ones(hidden.shape[-1], requires_grad=True)
    (hidden * weight).sum().backward()
    assert weight.grad is not None


def test_the_autocast_state_is_part_of_the_key(model: Any) -> None:
    cache = cached(model)
    exact = features(model, images(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = features(model, images(1))
    assert cache.computed == 2
    assert not torch.equal(exact, rounded)


def test_an_option_that_is_none_is_the_same_call_as_one_without_it(model: Any) -> None:
    cache = cached(model)
    for options in ({}, {"output_attentions": None}, {"output_hidden_states": None, "interpolate_pos_encoding": False}):
        with torch.no_grad():
            model.model.vision_tower(pixel_values=images(1), return_dict=True, **options)
    assert cache.computed == 2  # False is an option of its own


def _train(model: Any) -> None:
    next(iter(model.model.vision_tower.parameters())).requires_grad_(requires_grad=True)


def _add_dropout(model: Any) -> None:
    model.model.vision_tower.train()
    model.model.vision_tower.add_module("dropout", torch.nn.Dropout(0.1))


def _adapt(model: Any) -> None:
    get_peft_model(model, LoraConfig(target_modules=r".*vision_tower.*q_proj")).requires_grad_(requires_grad=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(_train, "is trained"), (_add_dropout, "active dropout"), (_adapt, "has an adapter")],
)
def test_a_tower_whose_features_can_change_is_not_cached_and_each_call_is_counted(
    model: Any, change: Callable[[Any], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cached(model)
    change(model)
    with caplog.at_level(logging.INFO, "toolkit"):
        for _ in range(2):
            model.model.vision_tower(pixel_values=images(1), return_dict=True)
    assert (cache.computed, cache.reused, cache.last) == (0, 0, None)
    ((what, calls),) = bypasses().items()
    assert what.startswith("vision cache: ")
    assert reason in what
    assert calls == 2
    assert [record.getMessage() for record in caplog.records if what in record.getMessage()] == [caplog.messages[0]]


def test_a_call_with_another_tensor_is_not_cached_and_its_name_is_reported(model: Any) -> None:
    cache = cached(model)
    for _ in range(2):
        model.model.vision_tower(images(1), image_sizes=torch.tensor([[112, 112]]))
    assert (cache.computed, cache.reused, cache.last) == (0, 0, None)
    assert bypasses() == {"vision cache: unknown argument image_sizes": 2}


class Mixed(torch.nn.Module):
    """A tower whose output mixes its images."""

    def forward(self, pixel_values: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=pixel_values.mean(0, keepdim=True))


def test_an_output_that_cannot_be_divided_by_image_is_that_of_the_tower_and_reported() -> None:
    tower, pixels = Mixed(), images(1, 2)
    expected = tower(pixels).last_hidden_state
    cache = VisionCache(tower)
    for calls in (1, 2):
        assert torch.equal(tower(pixels).last_hidden_state, expected)
        assert (cache.computed, cache.last) == (0, None)
        assert bypasses() == {"vision cache: the tower's output last_hidden_state cannot be divided by image": calls}


def test_a_cached_call_is_no_bypass(model: Any) -> None:
    cached(model)
    features(model, images(1, 1, 2))
    assert bypasses() == {}


def test_a_tower_with_an_unknown_name_is_reported(model: Any) -> None:
    model.model.seeing_part = model.model.vision_tower
    del model.model.vision_tower
    assert cache_frozen_vision(model) is None
    assert bypasses() == {"vision cache: the tower has an unknown name": 1}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_towers_that_get_a_grid_have_equal_outputs(family: str, shared_data: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(build(family, shared_data, tmp_path), dtype=torch.float32)
    tower: Any = find_tower(model.eval().requires_grad_(requires_grad=False))
    assert tower is not None
    patch_values = 3 * 2 * tower.config.patch_size**2
    shapes = [(1, 4, 4), (1, 4, 8), (1, 4, 4)]
    own = [
        torch.rand(height * width, patch_values, generator=torch.Generator().manual_seed(seed))
        for seed, (_, height, width) in zip((1, 2, 1), shapes, strict=True)
    ]
    pixels, grid = torch.cat(own), torch.tensor(shapes)
    with torch.no_grad():
        expected = tower(pixels, grid_thw=grid, return_dict=True)
        cache = cached(model)
        found = [tower(pixels, grid_thw=grid, return_dict=True) for _ in range(2)]
    assert (cache.computed, cache.reused) == (2, 4)
    for output in found:
        assert output.keys() == expected.keys()
        for name in expected:
            assert _numbers(output[name]) == _numbers(expected[name])


def _numbers(value: Any) -> list[float]:
    tensors = value if isinstance(value, list | tuple) else [value]
    return [number for tensor in tensors for number in tensor.flatten().tolist()]
