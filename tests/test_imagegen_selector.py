"""Vision towers and the selector: what they see, what training does to a rating, and resume."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.helpers.problems import raises
from tests.helpers.rated_images import SIDE, drawn, rated
from toolkit.errors import DataError, MissingExtraError, ModelError, TrainingError
from toolkit.imagegen.checkpoints import ScorerCheckpoint, load_tensors, save_tensors
from toolkit.imagegen.scorers import vision_tower
from toolkit.imagegen.scorers.fitting import FitSettings, Fitting, RatedImages, as_floats, on_device, trained_state
from toolkit.imagegen.scorers.heads import HeadSettings, corn_exceedance, head_weights, lower_bound
from toolkit.imagegen.scorers.selector import Selector, SelectorSettings, start_fitting
from toolkit.imagegen.scorers.vision_tower import FrozenBackbones, Tower, TowerSettings, all_features, build_tower
from toolkit.recipe.imagegen_sections import scoring_batch

torch.set_num_threads(1)

FAST = FitSettings(epochs=8, batch_size=32, learning_rate=4e-3)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random parameters, both halves, as on the Hub."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2}
    text = {**vision, "num_hidden_layers": 1, "vocab_size": 100}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(vision_config={**vision, "image_size": 16, "patch_size": 4}, text_config=text))
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fitted() -> Selector:
    selector = Selector(SelectorSettings(tower=TowerSettings(width=8), fit=FAST), n_levels=3, image_size=SIDE)
    start_fitting(selector, rated(256, 1), rated(64, 2)).run()
    return selector


def pixel_gradients(selector: Selector, images: Tensor) -> Tensor:
    """Gradient of each image's score at its own pixels."""
    pixels = images.clone().requires_grad_()
    corn_exceedance(selector(pixels)).mean(dim=-1).mean(dim=0).sum().backward()
    assert pixels.grad is not None
    return pixels.grad


# What a selector sees


@pytest.mark.parametrize("encoder", ["cnn", "tiny-clip", "clip_folder"])
def test_score_and_pixel_gradient_vary_with_the_image(encoder: str, request: pytest.FixtureRequest) -> None:
    name = str(request.getfixturevalue(encoder)) if encoder == "clip_folder" else encoder
    crops = 2 if encoder == "clip_folder" else 0
    settings = SelectorSettings(tower=TowerSettings(name, crop_grid=crops, width=8))
    selector = Selector(settings, n_levels=3, image_size=SIDE)
    images = drawn(8, 0)[0]
    # Rows are independent: the batch does not change a score.
    scores = selector.score(images).scores_N
    alone = torch.cat([selector.score(image[None]).scores_N for image in images])
    torch.testing.assert_close(scores, alone)
    assert scores.std() > 1e-4
    gradients = pixel_gradients(selector, images)
    assert (gradients.flatten(1).norm(dim=1) > 1e-6).all()
    assert (gradients[0] - gradients[1]).norm() > 1e-6


def test_every_crop_reaches_the_score(clip_folder: Path) -> None:
    settings = SelectorSettings(tower=TowerSettings(str(clip_folder), crop_grid=2))
    tower = Selector(settings, n_levels=3, image_size=SIDE).tower
    images = drawn(2, 0)[0].requires_grad_()
    whole = tower.num_features // 3
    tower(images)[:, whole:].sum().backward()
    assert images.grad is not None
    for top in (0, 16):
        for left in (0, 16):
            assert images.grad[:, :, top : top + 16, left : left + 16].abs().sum(dim=(1, 2, 3)).min() > 0


def test_crops_see_noise_that_resizing_removes(clip_folder: Path) -> None:
    checkerboard = 0.3 + 0.4 * ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()
    images = torch.stack([torch.full((3, 64, 64), 0.5), checkerboard.expand(3, -1, -1)])
    tower = build_tower(TowerSettings(str(clip_folder), crop_grid=1), 64, seed=0)
    features = tower(images)
    whole = tower.num_features // 3
    resized, cropped = (features[1] - features[0])[:whole].norm(), (features[1] - features[0])[whole:].norm()
    assert cropped > 20 * resized


def test_grey_images_are_those_with_three_equal_channels() -> None:
    tower = build_tower(TowerSettings("cnn", width=4), SIDE, seed=0)
    images = drawn(3, 0)[0]
    torch.testing.assert_close(tower(images[:, :1]), tower(images))
    with pytest.raises(ValueError, match="32 x 32"):
        tower(images[:, :, :16])


# Pretrained towers


def test_a_clip_tower_pools_the_hidden_states_of_the_saved_model(clip_folder: Path) -> None:
    model = CLIPModel.from_pretrained(clip_folder).vision_model
    tower = build_tower(TowerSettings(str(clip_folder), layers=(2, 6)), 16, seed=0)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    mean, std = (torch.tensor(each)[:, None, None] for each in (processor.image_mean, processor.image_std))
    with torch.no_grad():
        output = model((images - mean) / std, output_hidden_states=True)
        second, last = output.hidden_states[2], output.hidden_states[6]
        expected = [
            part for each in (second, last) for part in (each.mean(1), (each.var(1, unbiased=False) + 1e-6).sqrt())
        ]
        torch.testing.assert_close(tower(images), torch.cat([*expected, output.pooler_output], dim=1))


@pytest.mark.parametrize("family", ["siglip", "dinov2"])
def test_other_vision_towers_load(family: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    if family == "siglip":
        SiglipVisionModel(SiglipVisionConfig(intermediate_size=64, **sizes)).save_pretrained(tmp_path)
    else:
        Dinov2Model(Dinov2Config(mlp_ratio=2, **sizes)).save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    tower = build_tower(TowerSettings(str(tmp_path)), 20, seed=0)
    features = tower(drawn(4, 0, side=20)[0])
    assert features.shape == (4, tower.num_features)
    assert features.std(dim=0).max() > 1e-3


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_images_no_larger_than_the_encoder_takes_are_enlarged_and_have_no_crops(
    family: str, clip_folder: Path, tmp_path: Path
) -> None:
    # The sizes of DINOv2 (518) and of the recipe's images (512) to scale: patches of 4 pixels, no multiple of them.
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 148,
        "patch_size": 4,
    }
    if family == "siglip":
        SiglipVisionModel(SiglipVisionConfig(intermediate_size=64, **sizes)).save_pretrained(tmp_path)
    elif family == "dinov2":
        Dinov2Model(Dinov2Config(mlp_ratio=2, **sizes)).save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    name, own = (str(clip_folder), 16) if family == "clip" else (str(tmp_path), 148)
    for side in (own - 2, own):
        plain, cropped = (build_tower(TowerSettings(name, crop_grid=grid), side, seed=0) for grid in (0, 2))
        images = drawn(2, 0, side=side)[0]
        torch.testing.assert_close(cropped(images), plain(images))
    assert build_tower(TowerSettings(name, crop_grid=2), own + 2, seed=0).num_features == 3 * plain.num_features


def test_a_frozen_tower_is_neither_trained_nor_stored_nor_put_into_train_mode(clip_folder: Path) -> None:
    settings = SelectorSettings(tower=TowerSettings(str(clip_folder)), fit=FitSettings(epochs=2))
    selector = Selector(settings, n_levels=3, image_size=SIDE)
    before = {name: value.clone() for name, value in selector.tower.state_dict().items()}
    fitting = start_fitting(selector, rated(48, 1), None)
    fitting.run()
    assert all(torch.equal(before[name], value) for name, value in selector.tower.state_dict().items())
    assert {name.partition(".")[0] for name in trained_state(selector)} == {"heads", "standardise"}
    selector.train()
    assert not any(module.training for module in selector.tower.backbone.modules())


def test_a_pretrained_tower_can_be_trained(clip_folder: Path) -> None:
    settings = SelectorSettings(tower=TowerSettings(str(clip_folder), frozen=False), fit=FitSettings(epochs=1))
    selector = Selector(settings, n_levels=3, image_size=SIDE)
    before = {name: value.clone() for name, value in selector.tower.state_dict().items()}
    start_fitting(selector, rated(48, 1), None).run()
    changed = [name for name, value in selector.tower.state_dict().items() if not torch.equal(before[name], value)]
    assert len(changed) > 20


def test_a_model_that_cannot_be_loaded_is_an_error(clip_folder: Path, tmp_path: Path) -> None:
    with raises(ModelError, "imagegen.encoder_not_loadable"):
        build_tower(TowerSettings(str(tmp_path)), SIDE, seed=0)
    with raises(ModelError, "imagegen.encoder_layer_out_of_range"):
        build_tower(TowerSettings(str(clip_folder), layers=(7,)), SIDE, seed=0)
    with raises(ModelError, "imagegen.random_encoder_frozen"):
        build_tower(TowerSettings("cnn", frozen=True), SIDE, seed=0)
    pickled = tmp_path / "pickled"
    model = CLIPModel.from_pretrained(clip_folder)
    model.save_pretrained(pickled)
    CLIPImageProcessor().save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with raises(ModelError, "model.weights_pickled"):
        build_tower(TowerSettings(str(pickled)), SIDE, seed=0)


def test_an_encoder_of_open_clip_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with raises(MissingExtraError, "install.extra_missing") as error:
        build_tower(TowerSettings("open_clip:hf-hub:microsoft/BiomedCLIP"), 224, seed=0)
    assert "imagegen-biomedclip" in error.problem.remedy


def test_a_timm_trunk_pools_its_blocks() -> None:
    # Runs only where the extra imagegen-biomedclip is installed.
    timm = pytest.importorskip("timm")
    trunk = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, pretrained=False).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = vision_tower.TimmLayers(trunk, (2, 4))(images)
        patches = trunk.get_intermediate_layers(images, n=[1, 3])
        expected = [part for each in patches for part in (each.mean(1), (each.var(1, unbiased=False) + 1e-6).sqrt())]
        torch.testing.assert_close(features[:, : 4 * 192], torch.cat(expected, dim=1))
        torch.testing.assert_close(features[:, 4 * 192 :], trunk.forward_features(images)[:, 0])


def test_an_open_clip_model_without_pretrained_parameters_is_an_error() -> None:
    pytest.importorskip("open_clip")
    for name in ("ViT-B-16-SigLIP", "hf-hub:no/such-model"):
        with raises(ModelError, "imagegen.open_clip_not_loadable"):
            build_tower(TowerSettings(f"open_clip:{name}"), 224, seed=0)


# Frozen towers


def test_frozen_towers_of_one_encoder_use_one_backbone_and_a_trained_one_has_its_own(clip_folder: Path) -> None:
    shared: FrozenBackbones = {}
    plain, cropped, explicit, trained, other = (
        build_tower(TowerSettings(str(clip_folder), **more), SIDE, seed=0, shared=shared)
        for more in ({}, {"crop_grid": 2}, {"frozen": True}, {"frozen": False}, {"layers": (1,)})
    )
    assert plain.backbone is cropped.backbone is explicit.backbone
    assert len({id(one.backbone) for one in (plain, trained, other)}) == 3
    images = drawn(2, 0)[0]
    alone = build_tower(TowerSettings(str(clip_folder), crop_grid=2), SIDE, seed=0)
    assert torch.equal(cropped(images), alone(images))


def test_models_return_from_a_device_with_their_own_tensors_and_shared_tensors_stay_until_the_outer_context_ends() -> (
    None
):
    backbone = nn.Linear(2, 2).requires_grad_(False)
    own = nn.Linear(2, 2).requires_grad_(False)
    first, second = nn.ModuleList([backbone]), nn.ModuleList([backbone, own])
    before = [id(parameter) for parameter in second.parameters()]
    meta = torch.device("meta")
    with on_device(meta, first):
        with on_device(meta, second):
            assert all(parameter.is_meta for parameter in second.parameters())
        assert backbone.weight.is_meta
        assert not own.weight.is_meta
    assert [id(parameter) for parameter in second.parameters()] == before
    with pytest.raises(RuntimeError, match="stop"), on_device(meta, second):
        raise RuntimeError("stop")
    assert [id(parameter) for parameter in second.parameters()] == before


def encoded_images(tower: Tower) -> list[int]:
    """A list to which each pass of the backbone adds its number of images."""
    counts: list[int] = []
    tower.backbone.register_forward_hook(lambda module, given, output: counts.append(len(given[0])))
    return counts


def in_bytes(rows: RatedImages) -> RatedImages:
    return replace(rows, images_NCHW=(rows.images_NCHW * 255).round().to(torch.uint8))


def test_a_frozen_tower_encodes_each_rated_image_once(clip_folder: Path) -> None:
    settings = SelectorSettings(TowerSettings(str(clip_folder)), fit=FitSettings(epochs=4), augment=False)
    selector = Selector(settings, n_levels=3, image_size=SIDE)
    counts = encoded_images(selector.tower)
    train, validation = in_bytes(rated(48, 1)), in_bytes(rated(24, 2))
    twice = train.take([*range(48), *range(48)])  # two ratings of each image
    fitting = start_fitting(selector, twice, validation)
    fitting.run()
    assert sum(counts) == 48 + 24
    first = selector.score(validation.images_NCHW).scores_N
    assert sum(counts) == 48 + 24
    direct = selector.score(as_floats(validation.images_NCHW)).scores_N
    assert sum(counts) == 48 + 24 + 24
    assert torch.equal(first, direct)


@pytest.mark.parametrize("encoder", ["cnn", "clip_folder"])
def test_images_in_bytes_train_the_same_selector_as_floats(encoder: str, request: pytest.FixtureRequest) -> None:
    name = str(request.getfixturevalue(encoder)) if encoder == "clip_folder" else encoder
    train, validation = in_bytes(rated(48, 1)), in_bytes(rated(24, 2))
    found = []
    for rows, held in (
        (train, validation),
        tuple(replace(one, images_NCHW=as_floats(one.images_NCHW)) for one in (train, validation)),
    ):
        settings = SelectorSettings(TowerSettings(name, width=4), fit=FitSettings(epochs=2, batch_size=16))
        selector = Selector(settings, n_levels=3, image_size=SIDE)
        records = start_fitting(selector, rows, held).run()
        found.append((records, trained_state(selector)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())


def test_the_batch_follows_the_pixels_and_does_not_change_a_feature(clip_folder: Path) -> None:
    tower = build_tower(TowerSettings(str(clip_folder), crop_grid=2), SIDE, seed=0)
    assert tower.batch_size == scoring_batch(16) == 64
    assert [scoring_batch(side) for side in (32, 128, 224, 518, 2048)] == [64, 64, 20, 3, 1]
    images = drawn(10, 0)[0]
    whole = all_features(tower, images)
    tower.batch_size = 3
    torch.testing.assert_close(all_features(tower, images), whole)


# What training does


def test_a_fitted_selector_orders_new_images_by_quality(fitted: Selector) -> None:
    images, quality, _ = drawn(200, 3)
    scored = fitted.score(images)
    assert spearmanr(scored.scores_N, quality).statistic > 0.85
    assert scored.levels_N is not None
    assert set(scored.levels_N.tolist()) == {0, 1, 2}


def test_images_rated_lowest_are_not_driven_up(fitted: Selector) -> None:
    train = rated(256, 1)
    scores = fitted.score(train.images_NCHW).scores_N
    assert scores[train.levels_N == 0].mean() < 0.15
    assert scores[train.levels_N == 2].mean() > 0.85


@pytest.mark.parametrize("start", [-3.0, 0.0, 3.0])
def test_a_lowest_rating_lowers_the_score_from_any_start(start: float) -> None:
    # From high starts too, where the loss of the original pulled the score to 1.
    fit = FitSettings(epochs=30, batch_size=24, learning_rate=4e-3)
    selector = Selector(SelectorSettings(tower=TowerSettings(width=4), fit=fit), n_levels=3, image_size=SIDE)
    train = rated(48, 1)
    fitting = start_fitting(selector, train, None)
    for head in selector.heads.heads:
        assert isinstance(head, nn.Sequential)
        last = head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, start)
    fitting.run()
    scores = selector.score(train.images_NCHW).scores_N
    assert scores[train.levels_N == 0].mean() < 0.2
    assert scores[train.levels_N == 2].mean() > 0.7


def test_of_two_ratings_of_an_image_the_heavier_counts_more() -> None:
    images = drawn(24, 5)[0]
    levels = torch.tensor([0, 1, 2] * 8)
    scores = []
    for weight_of_high in (0.2, 5.0):
        weights = torch.cat([torch.ones(24), torch.full((24,), weight_of_high)])
        both = RatedImages(
            torch.cat([images, images]),
            torch.cat([levels, torch.full((24,), 2)]),
            weights,
            ("x",) * 48,
            ("CT",) * 48,
            tuple(str(index % 24) for index in range(48)),
        )
        settings = SelectorSettings(tower=TowerSettings(width=4), fit=FitSettings(epochs=6, learning_rate=4e-3))
        selector = Selector(settings, n_levels=3, image_size=SIDE)
        start_fitting(selector, both, None).run()
        scores.append(selector.score(images).scores_N.mean().item())
    assert scores[1] > scores[0] + 0.2


def test_a_level_without_a_row_is_an_error() -> None:
    train = rated(48, 1)
    selector = Selector(SelectorSettings(tower=TowerSettings(width=4)), n_levels=4, image_size=SIDE)
    with raises(DataError, "imagegen.fitting_levels_missing"):
        start_fitting(selector, train, None)


# The heads


def test_heads_differ_and_the_lower_bound_is_one_deviation_below_the_mean(fitted: Selector) -> None:
    images = drawn(50, 4)[0]
    with torch.no_grad():
        scores_HN = corn_exceedance(fitted(images)).mean(dim=-1)
    assert scores_HN.shape == (3, 50)
    assert min((scores_HN[a] - scores_HN[b]).abs().mean() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3
    scored = fitted.score(images)
    expected = (scored.scores_N - scores_HN.std(dim=0)).clamp_min(0)
    torch.testing.assert_close(scored.lower_N, expected)
    assert (scored.lower_N <= scored.scores_N).all()
    assert torch.equal(lower_bound(scores_HN[:1]), scores_HN[0])


def test_each_head_weighs_the_groups_its_own_way() -> None:
    groups = [str(index // 2) for index in range(400)]
    weights = head_weights(groups, 3, seed=0)
    torch.testing.assert_close(weights.mean(dim=1), torch.ones(3))
    assert torch.equal(weights[:, ::2], weights[:, 1::2])
    assert torch.corrcoef(weights[:, ::2]).triu(1).abs().max() < 0.25
    assert weights.std() == pytest.approx(1, abs=0.15)
    assert torch.equal(weights, head_weights(groups, 3, seed=0))
    assert not torch.equal(weights, head_weights(groups, 3, seed=1))
    assert torch.equal(head_weights(groups, 1, seed=0), torch.ones(1, 400))


def test_no_images_have_no_scores(fitted: Selector) -> None:
    scored = fitted.score(torch.zeros(0, 3, SIDE, SIDE))
    assert len(scored.scores_N) == len(scored.lower_N) == 0


# The state


def small_selector() -> Selector:
    settings = SelectorSettings(
        tower=TowerSettings(width=4), heads=HeadSettings(width=8), fit=FitSettings(epochs=4, batch_size=16)
    )
    return Selector(settings, n_levels=3, image_size=SIDE)


def test_a_resumed_fitting_ends_with_the_same_parameters(tmp_path: Path) -> None:
    train, validation = rated(48, 1), rated(24, 2)
    whole = small_selector()
    records = start_fitting(whole, train, validation).run()
    first = start_fitting(small_selector(), train, validation)
    first.run_epoch()
    first.run_epoch()
    save_tensors(
        tmp_path / "selector_checkpoint.pt", ScorerCheckpoint(1, 1, trained_state(first.module), first.state())
    )
    torch.rand(3)  # The global generator has no part in it.
    resumed = small_selector()
    second = start_fitting(resumed, train, validation)
    saved = load_tensors(tmp_path / "selector_checkpoint.pt", ScorerCheckpoint, "")
    assert saved.fitting is not None
    second.restore(saved.model, saved.fitting)
    assert second.run() == records
    for name, value in trained_state(whole).items():
        assert torch.equal(value, trained_state(resumed)[name]), name


def test_dropout_of_a_resumed_fitting_does_not_depend_on_the_global_generator() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, rows = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1)), torch.randn(32, 8)
        start, ends = {name: value.clone() for name, value in module.state_dict().items()}, []
        for drawn_before in (0, 3):
            module.load_state_dict(start)
            settings = FitSettings(epochs=2, batch_size=8, seed=1)
            fitting = Fitting(module, 32, lambda rows_B, _: module(rows[rows_B]).square().mean(), settings)
            fitting.run_epoch()
            torch.rand(drawn_before)
            fitting.run_epoch()
            ends.append(module.state_dict()["0.weight"].clone())
    assert torch.equal(*ends)


def test_the_epoch_with_the_lowest_validation_loss_is_kept() -> None:
    selector = small_selector()
    fitting = start_fitting(selector, rated(48, 1), rated(24, 2))
    losses = []
    while not fitting.is_finished:
        losses.append(fitting.run_epoch().validation_loss)
    last = {name: value.clone() for name, value in trained_state(selector).items()}
    fitting.best = {name: value + 1 for name, value in last.items()}
    fitting.finish()
    assert all(torch.equal(value, last[name] + 1) for name, value in trained_state(selector).items())
    assert all(loss is not None for loss in losses)


def test_the_state_of_another_architecture_is_an_error() -> None:
    fitting = start_fitting(small_selector(), rated(48, 1), None)
    other = Selector(SelectorSettings(tower=TowerSettings("tiny-clip")), n_levels=3, image_size=SIDE)
    with raises(TrainingError, "imagegen.checkpoint_parameters_differ"):
        start_fitting(other, rated(48, 1), None).restore(trained_state(fitting.module), fitting.state())


def test_the_same_seed_gives_the_same_selector_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = small_selector(), small_selector()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("part", ["levels", "weights", "range"])
def test_rated_images_check_their_values(part: str) -> None:
    good = rated(4, 0)
    values = [good.images_NCHW, good.levels_N, good.weights_N]
    wrong = {"levels": (1, good.levels_N.float()), "weights": (2, torch.zeros(4)), "range": (0, good.images_NCHW * 255)}
    index, value = wrong[part]
    values[index] = value
    with pytest.raises(ValueError):
        RatedImages(values[0], values[1], values[2], good.prompts, good.modalities, good.groups)
