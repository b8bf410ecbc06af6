"""Bounded resampling: zero-variance groups are replaced by groups of other prompts before the update.

This is the dynamic sampling of DAPO (Yu et al. 2025, arXiv 2503.14476) with two differences. The number of extra
rollouts of an optimizer step has a limit, after which the remaining zero-variance groups stay. The other prompts are
not the next ones of the epoch: they are drawn from all rows by a random order of their own, which depends only on the
seed and on the number of the step. So an epoch keeps its steps, and a resumed run draws the same prompts.

Axes: N completions of a rollout, P prompts, G completions per prompt.
"""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from trl.trainer.utils import unsplit_pixel_values_by_grid

from toolkit.errors import TrainingError
from toolkit.training.zero_variance import Batch, divide_pixels, select_rows


def replacement_rows(count: int, used: Collection[int], seed: int, step: int) -> Iterator[int]:
    """Yield the row numbers of other prompts in random order.

    Args:
        count: The number of training rows.
        used: The rows of the optimizer step, which are not drawn.
        seed: The seed of the run.
        step: The number of finished optimizer steps, which checkpoints contain.

    >>> list(replacement_rows(5, {0, 1}, seed=0, step=3)) == list(replacement_rows(5, {0, 1}, seed=0, step=3))
    True
    >>> sorted(replacement_rows(5, {0, 1}, seed=0, step=3))
    [2, 3, 4]
    """
    order = np.random.default_rng([seed, step]).permutation(count)
    return (int(row) for row in order if row not in used)


def zero_variance_groups(advantages_N: torch.Tensor, generations: int) -> list[int]:
    """Return the numbers of the groups without an advantage. See ``zero_variance.clear_advantages``.

    >>> zero_variance_groups(torch.tensor([0.0, 0.0, -1.0, 1.0]), 2)
    [0]
    """
    numbers: list[int] = (~advantages_N.view(-1, generations).any(dim=1)).nonzero().flatten().tolist()
    return numbers


def replace_groups(batch: Batch, extra: Batch, generations: int, pad_id: int) -> tuple[dict[str, Any], int]:
    """Replace the zero-variance groups of a rollout by groups with advantages of an extra rollout.

    Args:
        batch: The rollout, of N completions.
        extra: The extra rollout. Each of its groups is used once at most.
        generations: G.
        pad_id: The token of padding.

    Returns:
        The rollout with N completions, and the number of replaced groups.

    Raises:
        TrainingError: A field has an unknown layout. See ``select_rows``.
    """
    missing = zero_variance_groups(batch["advantages"], generations)
    groups, more = (len(one["advantages"]) // generations for one in (batch, extra))
    useless = zero_variance_groups(extra["advantages"], generations)
    found = [groups + group for group in range(more) if group not in useless]
    source = list(range(groups))
    for old, new in zip(missing, found, strict=False):
        source[old] = new
    replaced = min(len(missing), len(found))
    if not replaced:
        return dict(batch), 0
    rows = [group * generations + number for group in source for number in range(generations)]
    joined = select_rows(_join(batch, extra, pad_id), rows)
    if any(isinstance(one.get("pixel_values"), torch.Tensor) for one in (batch, extra)):
        joined = dict(unsplit_pixel_values_by_grid(joined))
    joined["num_items_in_batch"] = joined["completion_mask"].sum()  # TRL's number, which the loss divides by
    return joined, replaced


def _join(first: Batch, second: Batch, pad_id: int) -> dict[str, Any]:
    """Return the completions of two rollouts as one, with one entry of pixels per completion."""
    prompt, completion = (
        max(one[name].shape[1] for one in (first, second)) for name in ("prompt_ids", "completion_ids")
    )
    wide = [_widen(divide_pixels(one), prompt, completion, pad_id) for one in (first, second)]
    joined: dict[str, Any] = {}
    for name in dict.fromkeys([*wide[0], *wide[1]]):
        values = [_or_empty(one, name, other) for one, other in ((wide[0], wide[1]), (wide[1], wide[0]))]
        joined[name] = _concatenate(name, *values)
    return joined


def _widen(batch: Batch, prompt: int, completion: int, pad_id: int) -> dict[str, Any]:
    """Return the fields with prompts padded on the left, and completions on the right, to these numbers of tokens."""
    own_prompt, own_completion = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
    left, right = prompt - own_prompt, completion - own_completion

    def widen(name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim != 2:
            return value
        padding = pad_id if name in ("prompt_ids", "completion_ids") else 0
        if name.startswith("prompt_"):
            return pad(value, (left, 0), value=padding)
        if value.shape[1] == own_completion:
            return pad(value, (0, right), value=padding)
        return pad(value, (left, right)) if value.shape[1] == own_prompt + own_completion else value

    return {name: widen(name, value) for name, value in batch.items()}


def _or_empty(batch: Batch, name: str, other: Batch) -> Any:
    """Return a field. A rollout without any image lacks fields of the other one: they become empty."""
    if name in batch:
        return batch[name]
    value, rows = other[name], len(batch["advantages"])
    if isinstance(value, torch.Tensor) and value.ndim:
        return value.new_zeros((rows, *value.shape[1:]))
    if isinstance(value, list):
        return [value[0][:0] if isinstance(value[0], torch.Tensor) else 0] * rows
    return value


def _concatenate(name: str, first: Any, second: Any) -> Any:
    if isinstance(first, list):
        return [*first, *second]
    if not isinstance(first, torch.Tensor) or not first.ndim:
        return first
    if first.shape[1:] != second.shape[1:]:
        raise TrainingError(
            "training.rollouts_differ",
            "resampling needs the same shape of a completion in each rollout",
            place=f"grpo, {name}",
            value=f"{tuple(first.shape[1:])} and {tuple(second.shape[1:])}",
            remedy="Set grpo.resample = 0.",
        )
    return torch.cat([first, second])
