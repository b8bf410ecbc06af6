"""Generators: the Stable Diffusion path against diffusers' own pipeline, LoRA files, prompts, broken folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.imagegen_models import CPU, LORA, PROMPTS, dit_generator, random_dit_folder, randomise_lora
from tests.helpers.problems import raises
from toolkit.errors import DataError, ImageError, ModelError
from toolkit.imagegen.generators.ddim import make_schedule
from toolkit.imagegen.generators.generator import Generator, GeneratorSettings, load_generator
from toolkit.imagegen.generators.lora import (
    LORA_FILE,
    LoraSettings,
    copy_lora,
    lora_disabled,
    lora_parameters,
    reset_lora,
    restore_lora,
)
from toolkit.imagegen.generators.sampling import generate, sample
from toolkit.imagegen.generators.stable_diffusion import (
    WITHOUT_SAFETY_CHECKER,
    StableDiffusionGenerator,
    save_tiny_pipeline,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    save_tiny_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_dit_folder(tmp_path_factory.mktemp("dit"))


def stable_diffusion(folder: Path, **changes: object) -> StableDiffusionGenerator:
    settings = GeneratorSettings(str(folder), lora=LORA, **changes)  # type: ignore[arg-type]
    generator = load_generator(settings, CPU)
    assert isinstance(generator, StableDiffusionGenerator)
    return generator


@pytest.fixture(params=["dit", "stable diffusion"])
def generator(request: pytest.FixtureRequest, tiny: Path, dit: Path) -> Generator:
    return dit_generator(dit) if request.param == "dit" else stable_diffusion(tiny)


@pytest.mark.parametrize(("prediction_type", "scale"), [("epsilon", 3.0), ("v_prediction", 1.0)])
def test_images_equal_those_of_the_pipeline(tmp_path: Path, prediction_type: str, scale: float) -> None:
    save_tiny_pipeline(tmp_path, prediction_type=prediction_type)
    generator = stable_diffusion(tmp_path, guidance_scale=scale)
    schedule = make_schedule(generator.scheduler, 4)
    prompts = ["Chest CT: nodule", "OCT: fluid"]
    random = torch.Generator().manual_seed(3)
    noise = torch.stack([torch.randn((2, *generator.latent_shape), generator=random) for _ in range(5)])
    ours = generator.decode(sample(generator, schedule, prompts, noise).latents_TNCHW[-1])

    pipeline = generator.pipeline
    pipeline.scheduler = type(generator.scheduler).from_config(pipeline.scheduler.config, clip_sample=False)
    again = torch.Generator().manual_seed(3)
    theirs = pipeline(
        prompts, num_inference_steps=4, guidance_scale=scale, eta=1.0, generator=again, output_type="pt"
    ).images
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_rank_and_alpha_survive_the_file_in_a_fresh_pipeline(tiny: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    generator = stable_diffusion(tiny)
    assert LORA.rank != LORA.alpha
    latents, times = torch.randn(2, 4, 16, 16), torch.tensor([10, 700])
    condition = generator.encode_prompts(["a", "b"])
    with torch.no_grad():
        base = generator.predict(latents, times, condition)
        randomise_lora(generator.network)
        ours = generator.predict(latents, times, condition)
    generator.save_lora(tmp_path)
    fresh = StableDiffusionPipeline.from_pretrained(tiny, use_safetensors=True, **WITHOUT_SAFETY_CHECKER)
    fresh.load_lora_weights(tmp_path)
    with torch.no_grad():
        theirs = fresh.unet(latents, times, encoder_hidden_states=condition).sample
    assert float((ours - base).abs().max()) > 0.01
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)


def test_saved_lora_loads_with_the_same_parameters(generator: Generator, tmp_path: Path) -> None:
    randomise_lora(generator.network)
    before = copy_lora(generator.network)
    generator.save_lora(tmp_path)
    reset_lora(generator.network, seed=1)
    generator.load_lora(tmp_path)
    after = copy_lora(generator.network)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_equal_loras_have_equal_files(generator: Generator, tmp_path: Path) -> None:
    contents = set()
    for number in range(12):
        generator.save_lora(tmp_path / str(number))
        contents.add((tmp_path / str(number) / LORA_FILE).read_bytes())
    assert len(contents) == 1
    assert int.from_bytes(contents.pop()[:8], "little") % 8 == 0  # the format wants aligned tensors


def test_a_new_lora_leaves_the_base_unchanged_and_only_the_lora_is_trainable(generator: Generator) -> None:
    trainable = {name for name, value in generator.network.named_parameters() if value.requires_grad}
    assert trainable == set(lora_parameters(generator.network))
    assert {value.dtype for value in lora_parameters(generator.network).values()} == {torch.float32}
    latents = torch.randn(2, *generator.latent_shape)
    inputs = latents, torch.tensor([10, 700]), generator.encode_prompts(list(PROMPTS[:2]))
    with torch.no_grad():
        fresh = generator.predict(*inputs)
        randomise_lora(generator.network)
        changed = generator.predict(*inputs)
        with lora_disabled(generator.network):
            base = generator.predict(*inputs)
        again = generator.predict(*inputs)
        reset_lora(generator.network, seed=0)
        assert torch.equal(generator.predict(*inputs), base)
    assert torch.equal(fresh, base)
    assert torch.equal(changed, again)
    assert not torch.allclose(changed, base, atol=1e-4)
    trainable_after = {name for name, value in generator.network.named_parameters() if value.requires_grad}
    assert trainable_after == trainable


def test_switching_the_lora_off_in_a_graded_pass_is_an_error(generator: Generator) -> None:
    with pytest.raises(RuntimeError), lora_disabled(generator.network):
        pass


def test_images_are_rgb_in_the_unit_range_and_paired_by_seed(generator: Generator) -> None:
    schedule = make_schedule(generator.scheduler, 3)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    images = generate(generator, schedule, prompts, seed=1, batch_size=3)
    assert images.shape[:2] == (3, 3)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert not torch.allclose(images[0], images[2], atol=1e-3)
    torch.testing.assert_close(generate(generator, schedule, prompts, seed=1, batch_size=2), images, atol=1e-5, rtol=0)
    assert not torch.allclose(generate(generator, schedule, prompts, seed=2, batch_size=3), images, atol=1e-3)


def test_guidance_moves_away_from_the_empty_prompt(tiny: Path, dit: Path) -> None:
    for load, folder in ((stable_diffusion, tiny), (dit_generator, dit)):
        plain, guided = load(folder), load(folder, guidance_scale=4.0)
        latents, times = torch.randn(2, *plain.latent_shape), torch.tensor([10, 700])
        condition, empty = plain.encode_prompts(list(PROMPTS[:2])), plain.encode_prompts(["", ""])
        with torch.no_grad():
            with_prompt, without = plain.predict(latents, times, condition), plain.predict(latents, times, empty)
            output = guided.predict(latents, times, condition)
            assert torch.allclose(guided.predict(latents, times, condition, guided=False), with_prompt, atol=1e-6)
        torch.testing.assert_close(output, without + 4 * (with_prompt - without), atol=1e-5, rtol=0)


def test_dit_encodes_and_decodes_pixels_exactly(dit: Path) -> None:
    grey = torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1)
    generator = dit_generator(dit)
    mean, std = generator.encode_images(grey)
    torch.testing.assert_close(generator.decode(mean), grey)
    assert not std.any()


def test_latents_of_stable_diffusion_are_the_vaes_scaled_posterior(tiny: Path) -> None:
    generator = stable_diffusion(tiny)
    images = torch.rand(2, 3, 32, 32)
    mean, std = generator.encode_images(images)
    with torch.no_grad():
        posterior = generator.pipeline.vae.encode(2 * images - 1).latent_dist
    factor = generator.pipeline.vae.config.scaling_factor
    assert torch.allclose(mean, posterior.mean * factor, atol=1e-6)
    assert torch.allclose(std, posterior.std * factor, atol=1e-6)


def test_training_images_of_another_size_are_an_error(generator: Generator) -> None:
    side = generator.image_size
    assert generator.decode(torch.zeros(1, *generator.latent_shape)).shape == (1, 3, side, side)
    generator.encode_images(torch.rand(1, 3, side, side))
    for shape in ((1, 3, side, 2 * side), (1, 1, side, side), (3, side, side)):
        with raises(ImageError, "imagegen.training_image_shape"):
            generator.encode_images(torch.rand(shape))


def test_a_base_in_the_hubs_cache_loads_offline_with_its_commit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.utils.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    generator = stable_diffusion(Path("someone/tiny"))
    assert generator.base.name == "someone/tiny"
    assert generator.base.revision == commit


def test_a_prompt_too_long_for_the_text_encoder_is_an_error_with_its_count(tiny: Path) -> None:
    generator = stable_diffusion(tiny)
    generator.check_prompts(["x" * 75])  # 75 bytes and two special tokens are 77.
    with raises(DataError, "imagegen.prompt_too_long") as caught:
        generator.check_prompts(["ok", "y" * 76])
    assert caught.problem.value == 78
    with raises(DataError, "imagegen.prompt_too_long"):
        generator.encode_prompts(["y" * 76])


def test_a_tokenizer_without_a_limit_gets_the_text_encoders(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    assert stable_diffusion(folder).encode_prompts(["a"]).shape[1] == 77


def test_a_pickle_only_folder_is_one_clear_error(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    for path in (folder / "unet").glob("*.safetensors"):
        path.unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with raises(ModelError, "imagegen.pipeline_pickled") as caught:
        stable_diffusion(folder)
    assert caught.problem.value == {"parts": ["unet"], "pickles": ["diffusion_pytorch_model.bin"]}


def test_a_safety_checker_in_the_index_is_removed(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert stable_diffusion(folder).pipeline.safety_checker is None


def test_a_cut_off_file_a_foreign_pipeline_and_an_absent_one_are_model_errors(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:5000])
    with raises(ModelError, "imagegen.pipeline_incomplete"):
        stable_diffusion(folder)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with raises(ModelError, "imagegen.pipeline_not_stable_diffusion"):
        stable_diffusion(folder)
    with raises(ModelError, "imagegen.pipeline_incomplete"):
        stable_diffusion(tmp_path / "absent")
    with raises(ModelError, "imagegen.pipeline_incomplete"):
        stable_diffusion(Path("nobody/no-such-model"))


def test_an_image_size_that_the_unet_cannot_halve_is_an_error(tiny: Path) -> None:
    assert stable_diffusion(tiny, image_size=64).latent_shape == (4, 32, 32)
    with raises(ModelError, "imagegen.image_size_not_multiple"):
        stable_diffusion(tiny, image_size=34)


def test_prediction_and_slicing_are_settings_of_stable_diffusion(tiny: Path) -> None:
    generator = stable_diffusion(tiny, prediction="v_prediction", vae_slicing=False)
    assert make_schedule(generator.scheduler, 3).prediction == "v_prediction"
    latents = torch.randn(3, *generator.latent_shape)
    assert not generator.pipeline.vae.use_slicing
    assert torch.allclose(generator.decode(latents), stable_diffusion(tiny).decode(latents), atol=1e-5)


def test_settings_that_a_dit_cannot_have_are_errors(dit: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "image_size_not_bases": {"image_size": 16},
        "prediction_not_bases": {"prediction": "epsilon"},
        "dit_gradient_checkpointing": {"gradient_checkpointing": True},
        "lora_target_unknown": {"lora": LoraSettings(targets=("to_z",))},
    }
    for code, changes in cases.items():
        with raises(ModelError, f"imagegen.{code}"):
            dit_generator(dit, **changes)


def test_a_lora_of_another_rank_network_or_without_metadata_is_an_error(tiny: Path, dit: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    small, other = dit_generator(dit), dit_generator(dit, lora=LoraSettings(rank=4, alpha=4))
    small.save_lora(tmp_path)
    for code, reader in (
        ("imagegen.lora_rank_differs", other),
        ("imagegen.lora_rank_differs", dit_generator(dit, lora=LoraSettings(rank=2, alpha=8))),
        ("imagegen.lora_file_contents", stable_diffusion(tiny)),
    ):
        with raises(ModelError, code):
            reader.load_lora(tmp_path)
    save_file(load_file(tmp_path / LORA_FILE), tmp_path / LORA_FILE)
    with raises(ModelError, "imagegen.lora_file_contents"):
        small.load_lora(tmp_path)
    with raises(ModelError, "imagegen.lora_settings_differ"):
        restore_lora(small.network, {})


def test_half_precision_runs_under_autocast_with_a_float32_lora(tiny: Path) -> None:
    whole, half = stable_diffusion(tiny), stable_diffusion(tiny, precision="bfloat16")
    for generator in (whole, half):
        randomise_lora(generator.network)
    latents, times = torch.randn(2, 4, 16, 16), torch.tensor([10, 700])
    with torch.no_grad():
        expected = whole.predict(latents, times, whole.encode_prompts(["a", "b"]))
        output = half.predict(latents, times, half.encode_prompts(["a", "b"]))
    assert half.network.dtype == torch.bfloat16
    assert output.dtype == torch.float32
    assert {value.dtype for value in lora_parameters(half.network).values()} == {torch.float32}
    torch.testing.assert_close(output, expected, atol=0.1, rtol=0.1)
    assert torch.isfinite(half.decode(latents)).all()
