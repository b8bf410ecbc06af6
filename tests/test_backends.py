"""Prompts, labels, settings and images in every backend, and the files of the tiny model."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from tests.helpers.problems import raises
from tests.helpers.real_processors import unpack_processors
from tests.helpers.training import context_of, small_recipe
from toolkit import tiny
from toolkit.errors import DataError, ModelError, TrainingError
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend, chat_template
from toolkit.models.backend import Policy, Row, TrainingJob
from toolkit.models.collate import IGNORED, collate
from toolkit.models.hf import make_policy
from toolkit.models.loading import load_model
from toolkit.models.messages import conversation
from toolkit.models.prompts import Prompts, set_image_key
from toolkit.recipe import Model
from toolkit.training.grpo import grpo_settings
from toolkit.training.image_processor_cache import CachedImageProcessor
from toolkit.training.trl_trainer import check_settings


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    with context_of(small_recipe(tmp_path_factory.mktemp("backends"))) as made:
        yield made


@pytest.fixture(scope="module")
def policy(backend: Backend, context: Context) -> Policy:
    return backend.load(context.recipe, None, trainable=False)


@pytest.fixture(scope="module")
def rows(context: Context) -> list[Row]:
    prompts = Prompts.of(context.recipe, context.images)
    return [prompts.row(sample, answer=True) for sample in context.data.train]


def noise(side: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return set_image_key(Image.fromarray(pixels), f"noise-{side}-{seed}")


def test_the_loss_covers_only_the_answer_and_its_end_of_turn(policy: Policy, rows: list[Row]) -> None:
    batch = collate(policy, rows[:6])
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=False):
        supervised = ids[labels != IGNORED]
        assert policy.processor.tokenizer.decode(supervised) == f"{row.answer}<end_of_turn>"
        assert torch.equal(labels[labels != IGNORED], supervised)


def test_training_and_evaluation_use_the_same_prompt(policy: Policy, rows: list[Row]) -> None:
    batch = collate(policy, rows[:1])
    trained = batch["input_ids"][0][batch["labels"][0] == IGNORED]
    text = chat_template.render_prompt(policy.processor, rows[0].messages)
    evaluated = policy.processor(text=[text], images=[rows[0].images], add_special_tokens=False)["input_ids"][0]
    assert trained.tolist() == list(evaluated)


def test_labels_equal_those_of_trls_collator_up_to_the_end_of_turn(policy: Policy, rows: list[Row]) -> None:
    oracle = DataCollatorForVisionLanguageModeling(policy.processor, completion_only_loss=True)
    example = {
        "images": rows[0].images,
        "prompt": copy.deepcopy(rows[0].messages),
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": rows[0].answer}]}],
    }
    expected = oracle([example])
    batch = collate(policy, rows[:1])
    ours, theirs = batch["labels"][0], expected["labels"][0]
    # TRL's labels include the line break after the end of turn in the template. Ours stop at the end of turn.
    assert ours.tolist() == theirs[: len(ours)].tolist()
    assert policy.processor.tokenizer.decode(theirs[len(ours) :]).strip() == ""
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])


def test_a_training_row_without_an_answer_is_rejected(policy: Policy, rows: list[Row]) -> None:
    with raises(DataError, "data.answer_missing"):
        collate(policy, [Row(rows[0].messages, rows[0].images, "")])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_labels_of_real_qwen_processors_cover_the_answer_only(shared_data: Path, tmp_path: Path, name: str) -> None:
    unpack_processors(shared_data, tmp_path)
    policy = make_policy(None, AutoProcessor.from_pretrained(tmp_path / "processors" / name), None)
    rows = [
        Row(conversation("What is shown?", 2), [noise(80), noise(120, 1)], "Left lung."),
    ]
    rows.append(Row(conversation("And here, in a longer question?", 1), [noise(60)], "B - Pneumonia"))
    batch = collate(policy, rows)
    shown = [
        policy.processor.tokenizer.decode(ids[labels != IGNORED])
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    assert shown == ["Left lung.<|im_end|>", "B - Pneumonia<|im_end|>"]
    image_id = policy.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    merged = batch["image_grid_thw"].prod(dim=1).sum() // 4  # 2 x 2 patches become one token
    assert (batch["input_ids"] == image_id).sum() == merged


def test_each_image_is_processed_once(policy: Policy) -> None:
    memory = CachedImageProcessor(policy.processor.image_processor, capacity=8)
    first, second = noise(50), noise(70, 1)
    images = [[first], [first], [second], [copy.deepcopy(first)]]
    expected = policy.processor.image_processor([[first], [first], [second], [first]], return_tensors="pt")
    found = memory(images, return_tensors="pt")
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert (memory.processed, memory.cache_hits) == (2, 2)


def test_the_image_cache_evicts_the_oldest_image(policy: Policy) -> None:
    memory = CachedImageProcessor(policy.processor.image_processor, capacity=1)
    for seed in (0, 1, 0):
        memory([noise(40, seed)], return_tensors="pt")
    assert (memory.processed, memory.cache_hits) == (3, 0)


def test_an_image_without_a_key_is_not_cached(policy: Policy) -> None:
    memory = CachedImageProcessor(policy.processor.image_processor, capacity=8)
    plain = Image.new("RGB", (30, 30))
    memory([plain], return_tensors="pt")
    memory([plain], return_tensors="pt")
    assert (memory.processed, memory.cache_hits) == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "smolvlm_256m_idefics3"])
def test_cached_images_of_real_processors_equal_newly_processed_ones(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    unpack_processors(shared_data, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path / "processors" / name)
    memory = CachedImageProcessor(processor.image_processor, capacity=8)
    images = [[noise(80)], [noise(200, 1)], [noise(80)]]
    expected = processor.image_processor(copy.deepcopy(images), return_tensors="pt")
    for _ in range(2):
        found = memory(images, return_tensors="pt")
        assert set(found) == set(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected if torch.is_tensor(expected[key]))


def test_grpo_settings_divide_a_step_as_in_the_recipe(policy: Policy, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"grpo": {"prompts_per_step": 6, "generations": 4, "micro_batch": 8}})
    job = TrainingJob(recipe, lambda index: Row([], []), 10, Path("x"))
    settings = grpo_settings(policy, job)
    # 6 prompts x 4 generations = 24 completions a step, in 3 forward passes of 8.
    assert settings["generation_batch_size"] == 24
    assert settings["per_device_train_batch_size"] == 8
    assert settings["gradient_accumulation_steps"] == 3
    assert settings["num_generations"] == 4


def test_a_setting_that_a_library_rewrote_is_an_error() -> None:
    class Built:
        per_device_train_batch_size = 4
        beta = 0.0
        train_batch_size = 4

    with raises(TrainingError, "training.settings_rewritten") as caught:
        check_settings({"per_device_train_batch_size": 1, "beta": 0.0}, Built())
    assert "per_device_train_batch_size: 1 became 4" in str(caught.problem.value)


def test_full_fine_tuning_trains_every_parameter(backend: Backend, tmp_path: Path) -> None:
    if backend.name == "unsloth":
        pytest.skip("full fine-tuning is not done with Unsloth (models/unsloth/preload.py)")
    model = backend.load(small_recipe(tmp_path, {"model": {"tuning": "full"}}), None, trainable=True).model
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_tiny_model_is_small_and_has_the_hubs_tensor_names() -> None:
    from safetensors import safe_open

    weights = tiny.FOLDER / "model.safetensors"
    assert weights.stat().st_size < 6e6
    with safe_open(weights, "pt") as file:
        assert any(".vision_tower.vision_model.embeddings." in f".{name}" for name in file.keys())  # noqa: SIM118


def test_the_tiny_tokenizer_is_its_sentencepiece_model() -> None:
    import sentencepiece

    spm = sentencepiece.SentencePieceProcessor(model_file=str(tiny.FOLDER / "tokenizer.model"))
    tokenizer = AutoProcessor.from_pretrained(tiny.FOLDER).tokenizer
    texts = [
        "Patchy opacity in the left lower zone.",
        "A. 12.5 mm\nB. Größe",
        "<SOLUTION>\nB - Yes\n</SOLUTION>",
        " a  b ",
    ]
    assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] == [spm.encode(t) for t in texts]


def test_incomplete_weights_are_an_error_without_a_traceback(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FOLDER, tmp_path / "model"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with raises(ModelError, "model.weights_damaged") as caught:
        load_model(str(folder), Model(name=str(folder)))
    assert caught.problem.place == str(folder / "model.safetensors")
