"""The DiT: parameter count, prompts, initial output, files."""

from pathlib import Path

import pytest
import torch

from tests.helpers.problems import raises
from toolkit.errors import DataError, ModelError
from toolkit.imagegen.generators.dit import Dit, DitConfig, encode_words, load_dit, save_dit

WORDS = ("oct", "chest", "ct", "normal", "lungs", "nodule")
SMALL = DitConfig(WORDS, image_size=8, patch_size=4, width=16, layers=1, heads=2, prompt_words=4)


def noisy_model(config: DitConfig = SMALL) -> Dit:
    """A model whose zero-initialised layers are random, so that every input reaches the output."""
    torch.manual_seed(0)
    model = Dit(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def test_default_shape_has_about_a_million_parameters_and_64_tokens() -> None:
    model = Dit(DitConfig(WORDS))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(1e6, rel=0.05)
    assert model.position.shape[1] == 64


def test_prompt_is_words_in_lower_case_with_padding() -> None:
    ids = encode_words(SMALL, ["Chest CT: nodule", ""])
    assert ids.tolist() == [[2, 3, 6, 0], [0, 0, 0, 0]]


def test_unknown_word_is_an_error_with_a_suggestion() -> None:
    with raises(DataError, "imagegen.prompt_word_unknown") as caught:
        encode_words(SMALL, ["Chest CT: nodules"])
    assert caught.problem.value == ["nodules"]
    assert "'nodule'" in caught.problem.remedy


def test_prompt_with_too_many_words_is_an_error_with_the_count() -> None:
    with raises(DataError, "imagegen.prompt_too_long") as caught:
        encode_words(SMALL, ["oct chest ct normal lungs"])
    assert caught.problem.value == 5


def test_output_depends_on_image_time_and_every_word() -> None:
    model = noisy_model()
    image, time = torch.randn(1, 1, 8, 8), torch.tensor([500])
    ids = encode_words(SMALL, ["chest ct normal", "ct chest normal", "chest ct nodule", ""])
    outputs = [model(image, time, ids[row : row + 1]) for row in range(4)]
    outputs += [model(image, time + 100, ids[:1]), model(image + 0.1, time, ids[:1])]
    for first in range(6):
        for second in range(first):
            assert not torch.allclose(outputs[first], outputs[second], atol=1e-5), (first, second)
    assert outputs[0].shape == image.shape


def test_patches_return_to_their_positions() -> None:
    model = noisy_model()
    image, ids = torch.zeros(2, 1, 8, 8), encode_words(SMALL, ["oct", "oct"])
    assert model.position.shape[1] == 4
    with torch.no_grad():  # Only the last patch's position differs.
        model.position[:] = 0
        model.position[0, 3, 0] = 1
        for block in model.blocks:
            block.get_submodule("to_out.0").get_parameter("weight").zero_()
    output = model(image, torch.tensor([5, 5]), ids)[0, 0]
    assert torch.allclose(output[:4, :4], output[4:, :4], atol=1e-6)
    assert torch.allclose(output[:4, :4], output[:4, 4:], atol=1e-6)
    assert not torch.allclose(output[:4, :4], output[4:, 4:], atol=1e-3)


def test_saved_model_loads_with_the_same_output(tmp_path: Path) -> None:
    model = noisy_model().half().float()
    save_dit(tmp_path, model)
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([3, 900]), encode_words(SMALL, ["oct normal", "ct"])
    loaded = load_dit(tmp_path)
    assert loaded.config == SMALL
    assert torch.equal(loaded(*inputs), model(*inputs))


def test_damaged_or_foreign_folders_are_one_clear_error(tmp_path: Path) -> None:
    with raises(ModelError, "imagegen.dit_config_unreadable"):
        load_dit(tmp_path)
    save_dit(tmp_path, noisy_model())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with raises(ModelError, "imagegen.dit_parameters_unreadable"):
        load_dit(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with raises(ModelError, "imagegen.dit_config_unreadable"):
        load_dit(tmp_path)
