"""SFT's next-token cross-entropy over the vocabulary, computed in slices without a copy of the output head.

TRL's ``chunked_nll`` (trl 1.9 to 1.12) converts the whole head to float32 for every chunk of 256 positions. Autocast
converts that copy back to bfloat16. For a head of 262,208 x 2,560 the two copies take 3.9 GiB. Here the head is
multiplied in its own dtype, with float32 accumulation in the kernel. Everything after the product is float32.

Each slice's gradients are computed together with its loss. So the logits of a slice are neither kept nor recomputed,
and the head is multiplied twice instead of TRL's three times.

**The hook.** TRL has no public one: ``compute_loss_func`` receives the logits of all positions. TRL's patched
``forward`` calls one module-level function, ``trl.trainer.sft_trainer._chunked_cross_entropy_loss``.
``in_place_of_trl`` replaces that function while a loss is computed and restores it afterwards. TRL's own code still
runs the backbone, adds the auxiliary loss of mixtures of experts, and logs entropy and accuracy. Checked by reading
trl 1.9.0, 1.9.1, 1.9.2, 1.10.0, 1.11.0, 1.12.0 and 1.13.0: all have the same signature and the same single call.
"""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from trl.trainer import sft_trainer

from toolkit.errors import TrainingError

SLICE_BYTES = 128 * 2**20
"""Upper bound for the logits and probabilities of a slice, unless one position alone takes more."""
IGNORED = -100
"""Label of a position without supervision."""

_REPLACED = "_chunked_cross_entropy_loss"
_BYTES_PER_LOGIT = 8  # logits and probabilities in float32, which is the peak of a slice
_HEAD_DTYPES = (torch.float32, torch.bfloat16)


def install(trainer: Any) -> None:
    """Have an SFTTrainer with ``loss_type="chunked_nll"`` compute its loss with ``sliced_cross_entropy``."""
    compute_loss = trainer.compute_loss

    @functools.wraps(compute_loss)
    def sliced(*args: Any, **options: Any) -> Any:
        with in_place_of_trl():
            return compute_loss(*args, **options)

    trainer.compute_loss = sliced


@contextmanager
def in_place_of_trl() -> Iterator[None]:
    """Replace TRL's chunked loss by ``sliced_cross_entropy`` inside the block.

    Raises:
        TrainingError: This version of TRL has no such function, or one with other parameters.
    """
    replaced = getattr(sft_trainer, _REPLACED, None)
    if replaced is None or list(inspect.signature(replaced).parameters) != _PARAMETERS:
        raise TrainingError(
            "training.trl_unsupported",
            "the installed TRL must have the chunked loss that this package replaces",
            place=f"trl.trainer.sft_trainer.{_REPLACED}",
            value="missing" if replaced is None else str(inspect.signature(replaced)),
            remedy="Install a TRL version that pyproject.toml allows.",
        )
    setattr(sft_trainer, _REPLACED, sliced_cross_entropy)
    try:
        yield
    finally:
        setattr(sft_trainer, _REPLACED, replaced)


def sliced_cross_entropy(  # noqa: PLR0913 (TRL's signature)
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    chunk_size: int,
    labels: torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
    lm_head_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss and the figures that TRL logs, like ``trl.trainer.sft_trainer._chunked_cross_entropy_loss``.

    Args:
        hidden_states: Output of the backbone, shape (B, S, H).
        lm_head_weight: Head of shape (V, H), in float32 or bfloat16.
        chunk_size: Not used. Slices are as large as ``SLICE_BYTES`` allows.
        labels: Shape (B, S). The label at s + 1 supervises the hidden state at s. ``IGNORED`` is no supervision.
        shift_labels: Labels of shape (B, S) that are aligned with the hidden states. They win over ``labels``.
        num_items_in_batch: Supervised positions of the optimizer step. None: those of this batch.
        logit_scale: Factor of the logits, before soft-capping.
        final_logit_softcapping: Logits become ``cap * tanh(logits / cap)``.
        lm_head_bias: Shape (V,).

    Returns:
        The loss (sum over supervised positions divided by ``num_items_in_batch``), the number of correctly predicted
        positions, the sum of the entropies in nats, and the number of supervised positions. Each is a scalar.

    Raises:
        TrainingError: The head has another dtype. In float16 the smallest gradients would become 0.
    """
    if lm_head_weight.dtype not in _HEAD_DTYPES:
        raise TrainingError(
            "training.head_dtype_unsupported",
            "the output head must be float32 or bfloat16 for SFT",
            place="lm_head",
            value=str(lm_head_weight.dtype),
            remedy='Set model.precision to "4bit", "8bit", "16bit" or "32bit".',
        )
    if shift_labels is None:
        assert labels is not None
        shift_labels = labels[..., 1:]
    supervised = shift_labels != IGNORED
    # Selecting supervised positions first keeps prompt and image tokens, most of a row, out of the head's product.
    positions = supervised.nonzero().unbind(-1)  # the only synchronisation with the GPU
    hidden, targets = hidden_states[positions], shift_labels[positions]
    head = _Head(lm_head_weight, lm_head_bias, logit_scale, final_logit_softcapping)
    needed = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, *head[:2]))
    sums = _SlicedCrossEntropy.apply(hidden, *head, targets, needed)  # type: ignore[no-untyped-call]
    loss, correct, entropy = sums
    count = supervised.sum()
    if len(targets):  # without supervised positions the loss is 0, and 0 / 0 would be NaN
        loss = loss / (count if num_items_in_batch is None else num_items_in_batch)
    return loss, correct, entropy, count


_PARAMETERS = list(inspect.signature(sliced_cross_entropy).parameters)


class _Head(NamedTuple):
    """An output head: ``weight`` (V, H), ``bias`` (V,), and the transformation of the logits in a model family."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    cap: float | None

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (N, V) of states (N, H) in the head's dtype."""
        logits = (states @ self.weight.t()).float()
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits *= self.scale
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def through_scaling(self, gradient: torch.Tensor, logits: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the product from that of ``logits + top``. The first two arguments are overwritten."""
        if self.cap is not None:
            gradient *= logits.add_(top).div_(self.cap).square_().neg_().add_(1)
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


class _Gradients(NamedTuple):
    """Gradients of the hidden states (N, H), the weight (V, H) and the bias (V,). None: not needed."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


class _SlicedCrossEntropy(torch.autograd.Function):
    """Sums over positions of loss, correct predictions and entropy. The forward pass computes the gradients too."""

    @staticmethod
    def forward(  # noqa: PLR0913 (autograd needs separate tensors)
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float,
        cap: float | None,
        targets: torch.Tensor,
        needed: tuple[bool, bool, bool],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = zip((hidden, weight, bias), needed, strict=True)
        gradients = _Gradients(*(torch.zeros_like(t) if t is not None and need else None for t, need in inputs))
        sums = torch.zeros(3, dtype=torch.float32, device=hidden.device)
        size = max(1, SLICE_BYTES // (_BYTES_PER_LOGIT * len(weight)))
        # Autocast would convert a float32 head to bfloat16, which is a copy of the head.
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), size):
                part = slice(start, start + size)
                slice_gradients = (
                    gradients if gradients.hidden is None else gradients._replace(hidden=gradients.hidden[part])
                )
                sums += _slice(_Head(weight, bias, scale, cap), hidden[part], targets[part, None], slice_gradients)
        ctx.save_for_backward(*gradients)
        loss, correct, entropy = (
            one.clone() for one in sums
        )  # the trainer may change the loss in place, which a view forbids
        ctx.mark_non_differentiable(correct, entropy)
        return loss, correct, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients in place, since another gradient of the head is as large as the head.

        Torch raises an error if the same graph is walked backward again, because the saved tensors have changed.
        """
        scaled = [None if stored is None else stored.mul_(gradient) for stored in ctx.saved_tensors]
        return *scaled, None, None, None, None


def _slice(head: _Head, states: torch.Tensor, targets: torch.Tensor, gradients: _Gradients) -> torch.Tensor:
    """Add a slice to ``gradients``. Return its sums of loss, correct predictions and entropy, shape (3,).

    Args:
        head: The output head.
        states: Hidden states (N, H).
        targets: Token ids (N, 1).
        gradients: The gradients so far. That of the hidden states is the part of this slice.
    """
    states = states.to(head.weight.dtype)
    logits = head.logits(states)
    top, best = logits.max(dim=-1, keepdim=True)
    logits -= top  # prevents overflow of the exponential and loss of digits in the logarithm
    probabilities = logits.exp()
    total = probabilities.sum(dim=-1, keepdim=True)
    probabilities /= total
    losses = total.log() - logits.gather(-1, targets)
    entropies = total.log().squeeze(-1) - torch.einsum("nv,nv->n", probabilities, logits)
    sums = torch.stack([losses.sum(), (best == targets).sum().float(), entropies.sum()])
    if any(gradient is not None for gradient in gradients):
        # d loss / d logits = probabilities - one-hot target, in the storage of the probabilities.
        probabilities.scatter_add_(-1, targets, torch.full_like(losses, -1.0))
        gradient = head.through_scaling(probabilities, logits, top)
        del logits
        _add(gradient, states, head, gradients)
    return sums


def _add(gradient: torch.Tensor, states: torch.Tensor, head: _Head, gradients: _Gradients) -> None:
    """Add the gradients of hidden states, weight and bias, given the gradient (N, V) of the product."""
    if gradients.bias is not None:
        gradients.bias.add_(gradient.sum(dim=0))
    gradient = gradient.to(head.weight.dtype)
    if gradients.hidden is not None:
        gradients.hidden.copy_(gradient @ head.weight)
    if gradients.weight is not None:
        gradients.weight.addmm_(gradient.t(), states)
