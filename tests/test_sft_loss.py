"""The sliced SFT loss: TRL's function is the reference for loss, metrics and gradients, and its peak is the limit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer import sft_trainer

from tests.helpers.live_bytes import LiveBytes
from tests.helpers.problems import raises
from tests.helpers.training import Tables, context_of, small_recipe
from toolkit.errors import TrainingError
from toolkit.models.backend import TrainingJob
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.training import sft_loss
from toolkit.training.sft import build_sft

TRL = sft_trainer._chunked_cross_entropy_loss
VOCABULARY, WIDTH, ROWS, LENGTH = 333, 24, 3, 17
KINDS: Mapping[str, Mapping[str, float]] = {
    "plain": {},
    "soft-capped": {"final_logit_softcapping": 2.0},
    "scaled": {"logit_scale": 0.25},
    "scaled and soft-capped": {"logit_scale": 3.0, "final_logit_softcapping": 4.0},
}
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
"""Norm of the difference from TRL's, as a fraction of the norm of TRL's."""


@pytest.fixture(autouse=True)
def several_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven positions per slice: 3 x 16 supervised positions need seven slices, and the last one is not full."""
    monkeypatch.setattr(sft_loss, "SLICE_BYTES", 7 * 8 * VOCABULARY)


def inputs(dtype: torch.dtype, *, bias: bool = False, trained: bool = True) -> dict[str, Any]:
    """Hidden states, a head whose logits have a standard deviation of 2, and its bias."""
    torch.manual_seed(1)
    made = {
        "hidden_states": torch.randn(ROWS, LENGTH, WIDTH),
        "lm_head_weight": torch.randn(VOCABULARY, WIDTH) * 2 / WIDTH**0.5,
        "lm_head_bias": torch.randn(VOCABULARY),
    }
    if not bias:
        del made["lm_head_bias"]
    return {name: t.to(dtype).requires_grad_(trained or name == "hidden_states") for name, t in made.items()}


def targets(supervised: str = "some") -> torch.Tensor:
    """Labels: an answer at the end, an answer in the middle followed by padding, and a row without an answer."""
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    places: dict[str, list[tuple[int | slice, slice]]] = {
        "some": [(0, slice(0, 9)), (1, slice(0, 3)), (1, slice(12, None)), (2, slice(None))],
        "all": [],
        "none": [(slice(None), slice(None))],
        "first place": [(slice(None), slice(1, None))],  # no supervision, because no hidden state precedes it
    }
    for row, place in places[supervised]:
        labels[row, place] = -100
    return labels


def outcome(
    function: Callable[..., Any], given: dict[str, torch.Tensor], **options: Any
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Return the results of the function, and the gradients of 3 times its loss."""
    given = {name: tensor.detach().clone().requires_grad_(tensor.requires_grad) for name, tensor in given.items()}
    found = function(**given, chunk_size=8, **options)
    (3 * found[0]).backward()
    return found, {name: tensor.grad for name, tensor in given.items() if tensor.grad is not None}


def assert_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    assert float((found - expected).norm()) <= CLOSE[dtype] * float(expected.norm())


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_all_gradients_equal_trls(kind: str, bias: bool, dtype: torch.dtype) -> None:
    given, options = inputs(dtype, bias=bias), {"labels": targets(), "num_items_in_batch": 29, **KINDS[kind]}
    expected, wanted = outcome(TRL, given, **options)
    found, made = outcome(sft_loss.sliced_cross_entropy, given, **options)
    assert_close(found[0], expected[0], dtype)
    assert made.keys() == wanted.keys() == given.keys()
    for name, gradient in made.items():
        assert_close(gradient, wanted[name], dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_the_logged_metrics_equal_trls(kind: str) -> None:
    given, options = inputs(torch.float32), {"labels": targets("all"), **KINDS[kind]}
    _, correct, entropy, count = outcome(sft_loss.sliced_cross_entropy, given, **options)[0]
    _, expected_correct, expected_entropy, expected_count = outcome(TRL, given, **options)[0]
    assert correct == expected_correct
    assert count == expected_count == ROWS * (LENGTH - 1)
    assert float(entropy) == pytest.approx(float(expected_entropy), rel=1e-5)


@pytest.mark.parametrize("supervised", ["some", "all", "none", "first place"])
@pytest.mark.parametrize("aligned", [False, True], ids=["labels", "shift_labels"])
@pytest.mark.parametrize("items", [None, 5, torch.tensor(5)], ids=["mean", "number", "tensor"])
def test_every_layout_of_labels_equals_trls(supervised: str, aligned: bool, items: Any) -> None:
    labels = targets(supervised)
    options = {"shift_labels" if aligned else "labels": labels, "num_items_in_batch": items}
    given = inputs(torch.float32, bias=True)
    expected, wanted = outcome(TRL, given, **options)
    found, made = outcome(sft_loss.sliced_cross_entropy, given, **options)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, torch.float32)
    for name, gradient in made.items():
        assert_close(gradient, wanted[name], torch.float32)


def test_a_batch_without_supervision_in_a_step_without_any_has_a_loss_of_zero() -> None:
    found, made = outcome(
        sft_loss.sliced_cross_entropy, inputs(torch.float32), labels=targets("none"), num_items_in_batch=0
    )
    assert float(found[0]) == 0
    assert all(not gradient.any() for gradient in made.values())


def test_the_trainer_of_several_processes_may_scale_the_loss_in_place() -> None:
    given = inputs(torch.float32)
    loss, *_ = sft_loss.sliced_cross_entropy(**given, chunk_size=256, labels=targets("none"))
    loss *= 2
    loss.backward()
    assert given["hidden_states"].grad is not None


def test_losses_of_parts_divided_by_the_steps_positions_sum_to_the_loss_of_the_step() -> None:
    given, labels = inputs(torch.float32), targets("all")
    count = ROWS * (LENGTH - 1)
    whole, wanted = outcome(sft_loss.sliced_cross_entropy, given, labels=labels)
    head = {"lm_head_weight": given["lm_head_weight"]}
    parts = [
        outcome(
            sft_loss.sliced_cross_entropy,
            {"hidden_states": given["hidden_states"][rows].detach().requires_grad_(), **head},
            labels=labels[rows],
            num_items_in_batch=count,
        )
        for rows in (slice(0, 1), slice(1, 3))
    ]
    (first, first_gradients), (second, second_gradients) = parts
    assert_close(first[0] + second[0], whole[0], torch.float32)
    total = first_gradients["lm_head_weight"] + second_gradients["lm_head_weight"]
    assert_close(total, wanted["lm_head_weight"], torch.float32)


def test_a_tied_head_gets_the_gradients_of_both_its_uses() -> None:
    def gradient(function: Callable[..., Any]) -> torch.Tensor:
        torch.manual_seed(0)
        table = torch.randn(VOCABULARY, WIDTH).requires_grad_()
        labels = targets("all")
        hidden = torch.nn.functional.embedding(labels, table).cumsum(1).tanh()
        function(hidden, table, 8, labels=labels)[0].backward()
        assert table.grad is not None
        return table.grad

    assert_close(gradient(sft_loss.sliced_cross_entropy), gradient(TRL), torch.float32)


def test_a_frozen_head_gets_no_gradient() -> None:
    _, made = outcome(sft_loss.sliced_cross_entropy, inputs(torch.float32, trained=False), labels=targets())
    assert made.keys() == {"hidden_states"}


def test_without_gradients_the_loss_is_the_same() -> None:
    given, labels = inputs(torch.float32), targets()
    with torch.no_grad():
        loss = sft_loss.sliced_cross_entropy(**given, chunk_size=8, labels=labels)[0]
    assert not loss.requires_grad
    assert loss == outcome(sft_loss.sliced_cross_entropy, given, labels=labels)[0][0]


def test_a_second_backward_pass_is_an_error_instead_of_a_wrong_gradient() -> None:
    loss = sft_loss.sliced_cross_entropy(**inputs(torch.float32), chunk_size=8, labels=targets())[0]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward()


def test_losses_of_confident_predictions_keep_their_digits() -> None:
    """With logits near 30, ``logsumexp - logit`` is exact to 4e-6 only, which is more than such a loss."""
    hidden, weight = torch.full((1, 2, 1), 30.0), torch.tensor([[1.0], [0.5], [0.5]])
    loss = sft_loss.sliced_cross_entropy(hidden, weight, 8, labels=torch.tensor([[-100, 0]]))[0]
    exact = torch.log1p(2 * torch.exp(torch.tensor(-15.0, dtype=torch.float64)))
    assert float(loss) == pytest.approx(float(exact), rel=0.2)  # 1 + 6e-7 is stored in float32 as 1 + 6 * 2**-23


def test_a_head_in_float16_is_rejected() -> None:
    with raises(TrainingError, "training.head_dtype_unsupported") as caught:
        sft_loss.sliced_cross_entropy(**inputs(torch.float16), chunk_size=8, labels=targets())
    assert caught.problem.value == "torch.float16"


# ----------------------------------------------------------------------------------------------------- autocast


def test_autocast_neither_copies_a_float32_head_nor_changes_the_result() -> None:
    given, labels = inputs(torch.float32, trained=False), targets()
    expected = outcome(sft_loss.sliced_cross_entropy, given, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(sft_loss.sliced_cross_entropy, given, labels=labels)
    assert torch.equal(found[0][0], expected[0][0])
    assert torch.equal(found[1]["hidden_states"], expected[1]["hidden_states"])


# ------------------------------------------------------------------------------------------------------- memory

BIG_VOCABULARY, BIG_WIDTH, BIG_LENGTH = 65_552, 640, 566
"""A sixteenth of Gemma 3's head of 262,208 x 2,560, and MedGemma's SFT row."""


def peak(function: Callable[..., Any], dtype: torch.dtype, *, autocast: bool, trained: bool = False) -> int:
    """Bytes alive at the peak of a forward and backward pass over 4 supervised positions."""
    torch.manual_seed(0)
    weight = (torch.randn(BIG_VOCABULARY, BIG_WIDTH) / BIG_WIDTH**0.5).to(dtype).requires_grad_(trained)
    hidden = torch.randn(1, BIG_LENGTH, BIG_WIDTH).to(dtype).requires_grad_()
    labels = torch.full((1, BIG_LENGTH), -100)
    labels[0, -4:] = torch.randint(BIG_VOCABULARY, (4,))
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = function(hidden, weight, 4, labels=labels, final_logit_softcapping=30.0)[0]
        loss.backward()
    return live.peak


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_the_peak_is_at_most_one_slice(dtype: torch.dtype, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    slice_bytes = 2**20  # one position
    monkeypatch.setattr(sft_loss, "SLICE_BYTES", slice_bytes)
    beside = 2**20 + 2 * BIG_LENGTH * BIG_WIDTH * dtype.itemsize  # gradients of the hidden states, and small tensors
    assert peak(sft_loss.sliced_cross_entropy, dtype, autocast=autocast) <= slice_bytes + beside


@pytest.mark.slow
def test_trls_peak_exceeds_ours_by_a_copy_of_the_head() -> None:
    head = 4 * BIG_VOCABULARY * BIG_WIDTH
    ours, trls = (peak(loss, torch.bfloat16, autocast=False) for loss in (sft_loss.sliced_cross_entropy, TRL))
    assert trls > head > 4 * ours


def test_a_trained_head_adds_only_its_gradient_to_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    slice_bytes = 2**20  # one position
    monkeypatch.setattr(sft_loss, "SLICE_BYTES", slice_bytes)
    head = BIG_VOCABULARY * BIG_WIDTH * 4
    beside = 2**20 + 2 * BIG_LENGTH * BIG_WIDTH * 4
    found = peak(sft_loss.sliced_cross_entropy, torch.float32, autocast=False, trained=True)
    assert head < found <= head + slice_bytes + beside


def test_one_position_that_is_larger_than_a_slice_is_computed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given, labels = inputs(torch.float32), targets()
    expected = outcome(sft_loss.sliced_cross_entropy, given, labels=labels)[0][0]
    monkeypatch.setattr(sft_loss, "SLICE_BYTES", 1)
    assert_close(outcome(sft_loss.sliced_cross_entropy, given, labels=labels)[0][0], expected, torch.float32)


# --------------------------------------------------------------------------------------------------- the hook


def test_trls_function_is_restored_after_the_block_even_after_an_exception() -> None:
    with sft_loss.in_place_of_trl():
        assert sft_trainer._chunked_cross_entropy_loss is sft_loss.sliced_cross_entropy
    assert sft_trainer._chunked_cross_entropy_loss is TRL
    with pytest.raises(ZeroDivisionError), sft_loss.in_place_of_trl():
        1 / 0  # noqa: B018
    assert sft_trainer._chunked_cross_entropy_loss is TRL


def test_another_signature_of_trls_function_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_trainer, "_chunked_cross_entropy_loss", lambda hidden_states, weight: None)
    with raises(TrainingError, "training.trl_unsupported") as caught, sft_loss.in_place_of_trl():
        pass
    assert caught.problem.value == "(hidden_states, weight)"
    monkeypatch.delattr(sft_trainer, "_chunked_cross_entropy_loss")
    with raises(TrainingError, "training.trl_unsupported") as caught, sft_loss.in_place_of_trl():
        pass
    assert caught.problem.value == "missing"


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_trainer_logs_and_learns_the_same_as_with_trls_loss(
    tuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model's head is tied to its embeddings: with ``full`` it is trained through both."""
    tables: Tables = {"model": {"tuning": tuning}, "sft": {"max_steps": 2}}

    def train(name: str) -> tuple[list[Mapping[str, float]], dict[str, torch.Tensor]]:
        recipe = small_recipe(tmp_path / name, tables)
        backend = HfBackend()
        with context_of(recipe) as context:
            policy = backend.load(recipe, None, trainable=True)
            rows = Prompts.of(recipe, context.images).rows(context.data.train, answer=True)
            trainer = build_sft(backend, policy, TrainingJob(recipe, rows, len(context.data.train), tmp_path / name))
            trainer.train()
        trained = {key: value.detach() for key, value in policy.model.named_parameters() if value.requires_grad}
        return [line for line in trainer.state.log_history if "loss" in line], trained

    monkeypatch.setattr(sft_loss, "SLICE_BYTES", 2**20)
    logged, weights = train("sliced")
    monkeypatch.setattr(sft_loss, "install", lambda trainer: None)
    expected, wanted = train("trl")
    assert len(logged) == 2
    for line, other in zip(logged, expected, strict=True):
        for key in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
            assert line[key] == pytest.approx(other[key], rel=1e-4), key
    # Adam scales a gradient of rounding errors to a full update, so single elements may differ.
    difference = sum(float((value - wanted[key]).square().sum()) for key, value in weights.items())
    assert difference <= 1e-6 * sum(float(value.square().sum()) for value in wanted.values())
