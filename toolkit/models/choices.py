"""Log-probabilities of alternative texts of an answer, with one pass over their prompt.

Every prompt, with its images, is encoded once. The texts are then scored against its KV cache.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from toolkit.data.task import Decision
from toolkit.models.backend import Policy, Row
from toolkit.models.chat_template import encode_answer
from toolkit.models.collate import encode_prompts
from toolkit.models.generate import halve
from toolkit.models.oom import attempt

Chosen = list[dict[str, float]]
"""For each decision, option -> log-probability."""

Answer = tuple[int, tuple[int, ...]]
"""The row of a text, and its token ids."""


def choice_log_probs(policy: Policy, rows: Sequence[Row], decisions: Sequence[Sequence[Decision]]) -> list[Chosen]:
    """Return the natural log-probabilities of the options of each row's decisions. See ``Backend.choice_log_probs``.

    After an out-of-memory error, batches have half as many texts, for all later calls with this policy.

    Raises:
        ModelError: One text does not fit into GPU memory.
    """
    most = max((len(one.options) for of_row in decisions for one in of_row), default=1)
    found: list[Chosen] = []
    while len(found) < len(rows):
        limit = policy.batch_limit.size_for(len(rows) * most)
        part = slice(len(found), len(found) + max(1, limit // most))
        batch = rows[part]
        scored = attempt(functools.partial(_choose, policy, batch, decisions[part], limit))
        if scored is None:
            halve(policy, min(limit, len(batch) * most))
        else:
            found += scored
    return found


def _choose(policy: Policy, rows: Sequence[Row], decisions: Sequence[Sequence[Decision]], limit: int) -> list[Chosen]:
    was_training = policy.model.training
    policy.model.eval()
    try:
        with torch.no_grad():
            return _choose_in_groups(policy, rows, decisions, limit)
    finally:
        policy.model.train(was_training)


def _choose_in_groups(
    policy: Policy, rows: Sequence[Row], decisions: Sequence[Sequence[Decision]], limit: int
) -> list[Chosen]:
    """Return the log-probabilities, with prompts of equal length in one pass.

    Without padding, a value does not depend on other rows, and every model counts positions by itself. Qwen's models
    keep an offset of the positions for each row of the last prompts, so their prompts are encoded one by one.
    """
    encoded = [dict(encode_prompts(policy, [row], "left")) for row in rows]
    alone = any(hasattr(module, "rope_deltas") for module in policy.model.modules())
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, inputs in enumerate(encoded):
        # Images of equally many tokens may differ in shape, as in Mistral 3.
        shapes = sorted((name, *value.shape[1:]) for name, value in inputs.items())
        groups.setdefault((*shapes, number if alone else 0), []).append(number)
    found: dict[int, Chosen] = {}
    for members in groups.values():
        prompts = _encode(policy, [encoded[number] for number in members])
        found |= zip(members, _decide(policy, prompts, [decisions[number] for number in members], limit), strict=True)
    return [found[number] for number in range(len(rows))]


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Encoded prompts.

    Attributes:
        cache: their KV cache.
        next_RV: log-probability of each token after each prompt, shape (rows, vocabulary).
    """

    cache: Any
    next_RV: torch.Tensor


def _encode(policy: Policy, encoded: Sequence[Mapping[str, torch.Tensor]]) -> _Prompts:
    device = policy.model.device
    # Pixels of all processors, and the grids of Qwen's, have the images of all rows along their first axis.
    inputs = {name: torch.cat([one[name] for one in encoded]).to(device) for name in encoded[0]}
    output = policy.model(**inputs, use_cache=True, logits_to_keep=1)
    return _Prompts(output.past_key_values, output.logits[:, -1].float().log_softmax(-1))


def _decide(policy: Policy, prompts: _Prompts, decisions: Sequence[Sequence[Decision]], limit: int) -> list[Chosen]:
    """Return the log-probabilities of all decisions. Each continues the most probable option of the one before."""
    found: list[Chosen] = [[] for _ in decisions]
    texts = [""] * len(decisions)
    for place in range(max(map(len, decisions), default=0)):
        deciding = [row for row, of_row in enumerate(decisions) if place < len(of_row)]
        named = [(row, name) for row in deciding for name in decisions[row][place].options]
        answers = [(row, _ids(policy, texts[row], decisions[row][place], name)) for row, name in named]
        for row in deciding:
            found[row].append({})
        for (row, name), value in zip(named, _score(policy, prompts, answers, limit), strict=True):
            found[row][place][name] = value
        for row in deciding:
            best = max(found[row][place].items(), key=lambda item: item[1])[0]
            texts[row] += decisions[row][place].options[best]
    return found


def _ids(policy: Policy, before: str, decision: Decision, name: str) -> tuple[int, ...]:
    ids = encode_answer(policy.processor, before + decision.options[name], policy.turn_end)
    return tuple(ids if decision.ends else ids[:-1])


def _score(policy: Policy, prompts: _Prompts, answers: Sequence[Answer], limit: int) -> list[float]:
    """Return the log-probability of each answer, in passes of at most ``limit`` texts.

    The last token of an answer need not be read, so answers that differ only there need one pass.
    """
    lasts: dict[Answer, list[int]] = {}
    for row, ids in answers:
        lasts.setdefault((row, ids[:-1]), []).append(ids[-1])
    values: dict[Answer, float] = {}
    heads = [head for head in lasts if head[1]]
    for start in range(0, len(heads), limit):
        part = heads[start : start + limit]
        for (row, ids), (before, next_V) in zip(part, _read(policy, prompts, part), strict=True):
            values |= {(row, (*ids, last)): before + float(next_V[last]) for last in lasts[row, ids]}
    for row, ids in lasts:
        if not ids:
            values |= {(row, (last,)): float(prompts.next_RV[row, last]) for last in lasts[row, ids]}
    return [values[answer] for answer in answers]


def _read(policy: Policy, prompts: _Prompts, heads: Sequence[Answer]) -> list[tuple[float, torch.Tensor]]:
    """Return the log-probability of each head, and that of each token after it, shape (vocabulary)."""
    device = policy.model.device
    cache = copy.deepcopy(prompts.cache)  # the pass writes to it
    cache.reorder_cache(torch.tensor([row for row, _ in heads], device=device))
    pad = policy.processor.tokenizer.pad_token_id
    tokens = pad_sequence([torch.tensor(ids) for _, ids in heads], batch_first=True, padding_value=pad).to(device)
    # No mask: a causal model does not look at the padding on the right.
    logits = policy.model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
    found = []
    for (row, ids), logits_LV in zip(heads, logits, strict=True):
        scores_LV = logits_LV[: len(ids)].float().log_softmax(-1)
        rest = scores_LV[:-1].gather(1, tokens.new_tensor(ids[1:])[:, None]).sum()
        found.append((float(prompts.next_RV[row, ids[0]] + rest), scores_LV[-1]))
    return found
