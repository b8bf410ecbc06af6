"""Mismatched prompts, text towers, and the policy that learns agreement from them."""

import doctest
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
)

from tests.helpers.problems import raises
from tests.helpers.rated_images import SIDE, drawn, rated
from toolkit.errors import DataError, ModelError, TrainingError
from toolkit.imagegen.checkpoints import ScorerCheckpoint, load_tensors, save_tensors
from toolkit.imagegen.scorers import policy as policy_module
from toolkit.imagegen.scorers import text_tower
from toolkit.imagegen.scorers.fitting import FitSettings, trained_state
from toolkit.imagegen.scorers.policy import MismatchPool, Policy, PolicySettings, plain_text, start_policy_fitting
from toolkit.imagegen.scorers.text_tower import TextSettings, build_text_tower, vocabulary_of
from toolkit.imagegen.scorers.vision_tower import TowerSettings

torch.set_num_threads(1)

PROMPTS = ["OCT: normal", "OCT: drusen", "OCT: fluid", "CT: nodule", "CT: normal", "MRI: tumor"]
MODALITIES = ["OCT", "OCT", "OCT", "CT", "CT", "MRI"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Mismatches


@examples(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(list(zip(PROMPTS, MODALITIES, strict=True))), min_size=1, max_size=40),
    st.integers(0, 2**20),
)
def test_a_mismatch_never_has_the_text_of_its_row(rows: list[tuple[str, str]], seed: int) -> None:
    prompts, modalities = [prompt for prompt, _ in rows], [modality for _, modality in rows]
    if len(set(prompts)) < 2:
        with raises(DataError, "imagegen.prompts_too_few"):
            MismatchPool(prompts, modalities)
        return
    drawn_rows = MismatchPool(prompts, modalities).draw(prompts, modalities, generator(seed))
    assert all(a != b for a, b in zip(prompts, drawn_rows.prompts, strict=True))
    modality_of = dict(zip(PROMPTS, MODALITIES, strict=True))
    for modality, other, same in zip(modalities, drawn_rows.prompts, drawn_rows.same_modality, strict=True):
        assert (modality_of[other] == modality) == same


def test_half_of_the_mismatches_are_of_the_same_modality() -> None:
    prompts, modalities = PROMPTS[:5] * 20, MODALITIES[:5] * 20
    found = MismatchPool(prompts, modalities).draw(prompts, modalities, generator(0))
    assert sum(found.same_modality) == 50
    assert found.without_same == 0


def test_every_other_text_is_drawn_about_equally_often() -> None:
    pool = MismatchPool(PROMPTS, MODALITIES)
    found = pool.draw(["OCT: normal"] * 6000, ["OCT"] * 6000, generator(0))
    counts = Counter(found.prompts)
    assert [counts[prompt] / 6000 for prompt in PROMPTS[1:]] == pytest.approx([1 / 4] * 2 + [1 / 6] * 3, abs=0.02)


def test_a_modality_with_one_text_gets_ordinary_mismatches_which_are_counted() -> None:
    found = MismatchPool(PROMPTS, MODALITIES).draw(["MRI: tumor"] * 10, ["MRI"] * 10, generator(0))
    assert (sum(found.same_modality), found.without_same) == (0, 5)


def test_with_one_modality_all_mismatches_are_of_it() -> None:
    found = MismatchPool(PROMPTS[:3], MODALITIES[:3]).draw(PROMPTS[:3], MODALITIES[:3], generator(0))
    assert all(found.same_modality)


def test_prompts_that_differ_in_case_and_spaces_are_one_text() -> None:
    same = ["CT: nodule", "ct:  Nodule ", "CT: NODULE"]
    with raises(DataError, "imagegen.prompts_too_few"):
        MismatchPool(same, ["CT"] * 3)
    pool = MismatchPool([*same, "CT: normal"], ["CT"] * 4)
    assert set(pool.draw(same * 5, ["CT"] * 15, generator(0)).prompts) == {"CT: normal"}
    assert pool.distinct == ("CT: nodule", "CT: normal")


@pytest.mark.parametrize("module", [policy_module, text_tower])
def test_worked_examples_hold(module: object) -> None:
    result = doctest.testmod(sys.modules[module.__name__])  # type: ignore[attr-defined]
    assert (result.attempted > 0, result.failed) == (True, 0)
    assert plain_text("") == ""


# Text towers


def test_word_embeddings_are_averaged() -> None:
    tower = build_text_tower(TextSettings(width=8), vocabulary_of(PROMPTS), seed=0)
    reader = tower.reader
    assert isinstance(reader, text_tower.WordReader)
    first, second, both = tower(["oct", "normal", "OCT: normal"])
    torch.testing.assert_close(both, (first + second) / 2)
    assert torch.equal(*tower(["effusion", "pneumothorax"]))
    assert torch.equal(tower(["--"]), torch.zeros(1, 8))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "oct", "ct", ":", "normal", "drusen", "nodule"]
    vocabulary = {word: code for code, word in enumerate(words)}
    BertTokenizer(vocab=vocabulary, model_max_length=10).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def test_a_pretrained_text_tower_reads_each_prompt_as_if_it_were_alone(bert_folder: Path) -> None:
    tower = build_text_tower(TextSettings(str(bert_folder)), (), seed=0)
    prompts = ["ct : nodule nodule normal", "oct", "ct : nodule nodule normal", "oct : normal"]
    together = tower(prompts)
    alone = [build_text_tower(TextSettings(str(bert_folder)), (), seed=0)([prompt])[0] for prompt in prompts]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-6)
    assert torch.equal(together[0], together[2])
    assert not tower.training
    assert trained_state(tower) == {}


def test_the_text_half_of_a_clip_model_is_read_with_its_tokenizer(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz:"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: code for code, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = vocabulary["<|endoftext|>"]
    text = {**sizes, "vocab_size": len(words), "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
    model = CLIPModel(CLIPConfig(vision_config={**sizes, "image_size": 16, "patch_size": 4}, text_config=text)).eval()
    model.save_pretrained(tmp_path)
    tower = build_text_tower(TextSettings(str(tmp_path)), (), seed=0)
    prompts = ["oct: normal", "ct: a nodule"]
    for prompt, features in zip(prompts, tower(prompts), strict=True):
        with torch.no_grad():
            expected = model.text_model(**tokenizer(prompt, return_tensors="pt")).pooler_output[0]
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    with raises(ModelError, "imagegen.prompt_too_long"):
        tower(["x" * 76])


def test_a_prompt_that_is_too_long_is_an_error(bert_folder: Path) -> None:
    tower = build_text_tower(TextSettings(str(bert_folder)), (), seed=0)
    assert tower(["normal " * 8]).shape == (1, 16)
    with raises(ModelError, "imagegen.prompt_too_long"):
        tower(["normal " * 9])


def test_frozen_word_embeddings_are_an_error() -> None:
    with raises(ModelError, "imagegen.random_encoder_frozen"):
        build_text_tower(TextSettings(frozen=True), ("ct",), seed=0)


# The policy


def small_settings(**changes: object) -> PolicySettings:
    fit = FitSettings(epochs=3, batch_size=16)
    return PolicySettings(**{"tower": TowerSettings(width=4), "text": TextSettings(width=8), "fit": fit, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> Policy:
    train = rated(256, 1)
    settings = small_settings(
        tower=TowerSettings(width=8), fit=FitSettings(epochs=16, batch_size=32, learning_rate=4e-3)
    )
    policy = Policy(settings, vocabulary_of(train.prompts), SIDE)
    start_policy_fitting(policy, train, rated(64, 2), n_levels=3).run()
    return policy


@pytest.mark.slow
def test_a_policy_distinguishes_matched_from_mismatched_prompts_of_the_same_modality(fitted: Policy) -> None:
    test = rated(120, 3)
    swap = {"normal": "nodule", "nodule": "normal"}
    wrong = [f"{prompt.split(': ')[0]}: {swap[prompt.split(': ')[1]]}" for prompt in test.prompts]
    matched = fitted.score(test.images_NCHW, test.prompts).scores_N
    mismatched = fitted.score(test.images_NCHW, wrong).scores_N
    assert roc_auc_score([1] * 120 + [0] * 120, torch.cat([matched, mismatched])) > 0.8
    assert ((matched >= 0) & (matched <= 1)).all()


def test_agreement_depends_on_the_image_and_on_the_prompt(fitted: Policy) -> None:
    images = drawn(8, 4)[0].requires_grad_()
    prompts = ["OCT: normal", "OCT: nodule", "CT: normal", "CT: nodule"] * 2
    grid = fitted.score_grid(images.detach(), prompts[:4])
    assert grid.std(dim=0).min() > 0.01
    assert grid.std(dim=1).min() > 0.01
    fitted(images, prompts).sum().backward()
    assert images.grad is not None
    assert images.grad.flatten(1).norm(dim=1).min() > 1e-6


def test_the_grid_has_the_scores_of_the_pairs(fitted: Policy) -> None:
    images = drawn(5, 4)[0]
    grid = fitted.score_grid(images, ["OCT: normal", "CT: nodule"])
    for column, prompt in enumerate(["OCT: normal", "CT: nodule"]):
        torch.testing.assert_close(grid[:, column], fitted.score(images, [prompt] * 5).scores_N)
    scored = fitted.score(images, ["CT: nodule"] * 5)
    assert (scored.lower_N < scored.scores_N).all()
    assert len(fitted.score(images[:0], []).scores_N) == 0


def test_a_resumed_policy_ends_with_the_same_parameters(tmp_path: Path) -> None:
    train, validation = rated(32, 1), rated(16, 2)
    policies = [Policy(small_settings(), vocabulary_of(train.prompts), SIDE) for _ in range(3)]
    records = start_policy_fitting(policies[0], train, validation, 3).run()
    first = start_policy_fitting(policies[1], train, validation, 3)
    first.run_epoch()
    save_tensors(tmp_path / "policy_checkpoint.pt", ScorerCheckpoint(1, 1, trained_state(first.module), first.state()))
    second = start_policy_fitting(policies[2], train, validation, 3)
    saved = load_tensors(tmp_path / "policy_checkpoint.pt", ScorerCheckpoint, "")
    assert saved.fitting is not None
    second.restore(saved.model, saved.fitting)
    assert second.run() == records
    for name, value in trained_state(policies[0]).items():
        assert torch.equal(value, trained_state(policies[2])[name]), name


def test_a_checkpoint_with_another_vocabulary_is_an_error() -> None:
    train = rated(16, 1)
    policy = Policy(small_settings(), vocabulary_of(train.prompts), SIDE)
    other = Policy(small_settings(), [*vocabulary_of(train.prompts)[:-1], "zebra"], SIDE)
    with raises(TrainingError, "imagegen.checkpoint_vocabulary_differs"):
        other.load_state_dict(policy.state_dict())


def test_targets_can_be_the_ratings() -> None:
    train = rated(96, 1)
    fit = FitSettings(epochs=10, batch_size=16, learning_rate=4e-3)
    scores = []
    for target in ("one", "rating"):
        policy = Policy(small_settings(matched_target=target, fit=fit), vocabulary_of(train.prompts), SIDE)
        start_policy_fitting(policy, train, None, n_levels=3).run()
        low = train.levels_N == 0
        prompts = [prompt for prompt, is_low in zip(train.prompts, low.tolist(), strict=True) if is_low]
        scores.append(policy.score(train.images_NCHW[low], prompts).scores_N.mean().item())
    assert scores[1] < scores[0] - 0.1


def test_one_distinct_prompt_is_an_error() -> None:
    train = rated(32, 1).take([0, 4, 8])
    assert len(set(train.prompts)) == 1
    policy = Policy(small_settings(), vocabulary_of(train.prompts), SIDE)
    with raises(DataError, "imagegen.prompts_too_few"):
        start_policy_fitting(policy, train, None, n_levels=3)


def test_a_policy_of_two_frozen_halves_of_one_model_learns(tmp_path: Path, bert_folder: Path) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**vision, "vocab_size": 100}
    CLIPModel(
        CLIPConfig(vision_config={**vision, "image_size": 16, "patch_size": 4}, text_config=text)
    ).save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    train = rated(64, 1)
    settings = small_settings(tower=TowerSettings(str(tmp_path)), text=TextSettings(str(bert_folder)))
    policy = Policy(settings, (), SIDE)
    records = start_policy_fitting(policy, train, None, 3).run()
    assert records[-1].loss < records[0].loss
    assert not any(name.startswith(("tower.", "text.")) for name in trained_state(policy))
