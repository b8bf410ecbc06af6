"""A count of FLOPs with torch's counter, in one forward and backward pass of a trainer."""

from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from toolkit.models.backend import Policy
from toolkit.runfolder.usage import count, counts, note_unmeasured


def count_one_pass(trainer: Any, policy: Policy) -> None:
    """Count the FLOPs of the trainer's first forward and backward pass. Later passes run without the counter.

    GRPO generates before the pass, so the count covers the update only. It includes attention, the vision tower and the
    second forward pass of gradient checkpointing. It excludes kernels that torch's counter does not support (8-bit
    products, the flash-attention package), and the report says so.
    """
    _note_uncounted(policy)
    loss, backward = trainer.compute_loss, trainer.accelerator.backward
    counter = FlopCounterMode(display=False)
    before = counts()

    def counted_loss(*args: Any, **options: Any) -> Any:
        nonlocal before
        trainer.compute_loss = loss
        before = counts()
        counter.__enter__()
        try:
            found = loss(*args, **options)
        except BaseException:
            counter.__exit__(None, None, None)
            raise
        trainer.accelerator.backward = counted_backward
        return found

    def counted_backward(*args: Any, **options: Any) -> None:
        trainer.accelerator.backward = backward
        try:
            backward(*args, **options)
        finally:
            counter.__exit__(None, None, None)
        done = counts() - before
        count(
            counted_tokens=done.trained_tokens,
            counted_formula=done.training,
            counted_flops=float(counter.get_total_flops()),
        )

    trainer.compute_loss = counted_loss


def _note_uncounted(policy: Policy) -> None:
    if policy.bits == 8:
        note_unmeasured("8-bit products: torch's counter does not support them")
    if "flash" in str(getattr(policy.model.config, "_attn_implementation", "")):
        note_unmeasured("the flash-attention package's kernels: torch's counter does not support them")
