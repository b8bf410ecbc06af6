"""Batched generation and log-probabilities.

Prompts are padded on the left, the chat template's end of turn is the EOS token, and image tokens are suppressed.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from toolkit.errors import ModelError, warn
from toolkit.models.backend import Completion, Policy, Row, Sampling
from toolkit.models.chat_template import encode_answer
from toolkit.models.collate import IGNORED, collate, encode_prompts
from toolkit.models.oom import attempt
from toolkit.models.pixel_layout import answer_type
from toolkit.runfolder.usage import count as note


def generate(policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
    """Return ``sampling.count`` completions of each row. All rows form one batch.

    After an out-of-memory error, batches have half as many completions, for all later calls with this policy.

    Raises:
        ModelError: One completion does not fit into GPU memory.
    """
    count = sampling.count
    found: list[Completion] = []
    while len(found) < len(rows) * count:
        row, made = divmod(len(found), count)
        limit = policy.batch_limit.size_for(len(rows) * count)
        # A batch has all completions of several rows, or if these do not fit, some completions of one row.
        batch = rows[row : row + max(1, limit // count)] if not made else rows[row : row + 1]
        each = min(limit, count - made)
        part = attempt(functools.partial(_generate, policy, batch, replace(sampling, count=each)))
        if part is None:
            halve(policy, len(batch) * each)
        else:
            found += part
    return [found[i : i + count] for i in range(0, len(found), count)]


def halve(policy: Policy, completions: int) -> None:
    """Halve the batches of a policy after ``completions`` did not fit.

    Raises:
        ModelError: One completion does not fit into GPU memory.
    """
    if not policy.batch_limit.halve(completions):
        raise ModelError(
            "generation.out_of_memory",
            "GPU memory must be large enough for a batch of 1 completion",
            place="generation",
            value="out of memory",
            remedy='Lower images.max_side or evaluate.max_completion_tokens, or set model.precision = "4bit".',
        )
    warn(
        "generation.batch_halved",
        f"out of memory in a batch of {completions} completions. Batches have {policy.batch_limit.limit} from now on",
        place="generation",
    )


def _generate(policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[Completion]:
    inputs = encode_prompts(policy, rows, "left").to(policy.model.device)
    was_training = policy.model.training
    policy.model.eval()
    try:
        with torch.no_grad():  # not inference_mode: tensors that a model caches could not be used in training
            output = policy.model.generate(**inputs, **_options(policy, sampling))
    finally:
        policy.model.train(was_training)
    answers = output[:, inputs["input_ids"].shape[1] :].cpu()
    completions = [_read(policy, ids) for ids in answers.tolist()]
    note(answers=len(completions))
    return completions


def log_probs(policy: Policy, rows: Sequence[Row], answers: Sequence[str]) -> list[list[float]]:
    """Return the natural log-probability of each token of an answer and its end of turn, given the tokens before.

    Rows are processed one by one without padding, so that a value does not depend on other rows.
    """
    was_training = policy.model.training
    policy.model.eval()
    with torch.no_grad():
        found = [_log_probs(policy, row, answer) for row, answer in zip(rows, answers, strict=True)]
    policy.model.train(was_training)
    return found


def answer_loss(policy: Policy, row: Row) -> float:
    """Return minus the mean log-probability of the answer's tokens. The model's mode does not change."""
    batch = {name: value.to(policy.model.device) for name, value in collate(policy, [row], earlier=False).items()}
    with torch.no_grad():
        return float(policy.model(**batch).loss)


def supervised_loss(policy: Policy, row: Row) -> tuple[float, int]:
    """Return minus the sum of the log-probabilities of a row's supervised tokens, and their number.

    The model's mode does not change.
    """
    batch = {name: value.to(policy.model.device) for name, value in collate(policy, [row]).items()}
    count = int((batch["labels"][:, 1:] != IGNORED).sum())
    with torch.no_grad():
        return float(policy.model(**batch).loss) * count, count


def _log_probs(policy: Policy, row: Row, answer: str) -> list[float]:
    ids = torch.tensor([encode_answer(policy.processor, answer, policy.turn_end)])
    inputs = dict(encode_prompts(policy, [row], "left"))
    masks = [name for name in inputs if name != "input_ids" and inputs[name].shape == inputs["input_ids"].shape]
    for name in masks:  # attention covers the whole answer, and no token of the answer is an image token
        types = inputs[name]
        value = 1 if name == "attention_mask" else answer_type(types, len(row.images))
        more = torch.full_like(ids, value)
        inputs[name] = torch.cat([inputs[name], more.to(inputs[name].dtype)], dim=1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    device = policy.model.device
    output = policy.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
    # The logits at position t predict the token at t + 1, so the slice begins at the last prompt token.
    scores = output.logits[0, -ids.shape[1] - 1 : -1].float().log_softmax(-1)
    return [float(value) for value in scores.gather(1, ids[0][:, None].to(device))[:, 0]]


def _options(policy: Policy, sampling: Sampling) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "eos_token_id": policy.turn_end.id,
        "pad_token_id": policy.processor.tokenizer.pad_token_id,
        "suppress_tokens": list(policy.forbidden) or None,
        "repetition_penalty": 1.0,  # some models define one, but GRPO samples without it
        "num_return_sequences": sampling.count,
        "do_sample": sampling.temperature > 0,
    }
    if sampling.temperature > 0:
        return {**options, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return {**options, "temperature": None, "top_p": None, "top_k": None}


def _read(policy: Policy, ids: list[int]) -> Completion:
    ended = policy.turn_end.id in ids
    kept = ids[: ids.index(policy.turn_end.id)] if ended else ids
    text = policy.processor.tokenizer.decode(kept, skip_special_tokens=True)
    return Completion(policy.turn_end.completed(text), len(kept) + ended, not ended)
