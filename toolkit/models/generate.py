"""Batched generation: left-padded prompts, the chat template's turn end as EOS, image tokens suppressed."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from toolkit.errors import ModelError, warn
from toolkit.models.backend import Completion, Policy, Row, Sampling
from toolkit.models.chat_template import adds_bos, encode_answer, render_prompt
from toolkit.models.collate import collate
from toolkit.models.oom import attempt
from toolkit.runfolder.usage import count as note


def generate(policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
    """``sampling.count`` completions of each row. All rows are one batch: the caller chooses how many.

    Where memory is too small for that, they are several, each of half as many completions, and stay so for this policy.

    Raises:
        ModelError: memory is too small for one completion.
    """
    count = sampling.count
    found: list[Completion] = []
    while len(found) < len(rows) * count:
        row, made = divmod(len(found), count)
        most = policy.batch_limit.size_for(len(rows) * count)
        # Whole rows as long as they fit; else one row's completions, some at a time.
        asked = rows[row : row + max(1, most // count)] if not made else rows[row : row + 1]
        each = min(most, count - made)
        part = attempt(functools.partial(_generate, policy, asked, replace(sampling, count=each)))
        if part is None:
            _halve(policy, len(asked) * each)
        else:
            found += part
    return [found[i : i + count] for i in range(0, len(found), count)]


def _halve(policy: Policy, completions: int) -> None:
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
    inputs = encode(policy, rows).to(policy.model.device)
    was_training = policy.model.training
    policy.model.eval()
    try:
        with torch.no_grad():  # not inference_mode: what a model keeps of its tensors would be useless in training
            output = policy.model.generate(**inputs, **_options(policy, sampling))
    finally:
        policy.model.train(was_training)
    answers = output[:, inputs["input_ids"].shape[1] :].cpu()
    completions = [_read(policy, ids) for ids in answers.tolist()]
    note(answers=len(completions))
    return completions


def encode(policy: Policy, rows: Sequence[Row]) -> Any:
    """Prompts as left-padded tensors with their pixels, ready for ``generate``."""
    processor = policy.processor
    texts = [render_prompt(processor, row.messages) for row in rows]
    images = [row.images for row in rows] if any(row.images for row in rows) else None
    return processor(
        text=texts,
        images=images,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=adds_bos(processor, texts[0]),
    )


def log_probs(policy: Policy, rows: Sequence[Row], answers: Sequence[str]) -> list[list[float]]:
    """The natural logarithm of the probability of each token of an answer and of its turn end, given those before.

    One row at a time: no padding, so that a token's figure does not depend on its neighbours.
    """
    was_training = policy.model.training
    policy.model.eval()
    with torch.no_grad():
        found = [_log_probs(policy, row, answer) for row, answer in zip(rows, answers, strict=True)]
    policy.model.train(was_training)
    return found


def answer_loss(policy: Policy, row: Row) -> float:
    """Return minus the mean log-probability of the answer's tokens. The model's mode does not change."""
    batch = {name: value.to(policy.model.device) for name, value in collate(policy, [row]).items()}
    with torch.no_grad():
        return float(policy.model(**batch).loss)


def _log_probs(policy: Policy, row: Row, answer: str) -> list[float]:
    ids = torch.tensor([encode_answer(policy.processor, answer, policy.turn_end)])
    inputs = dict(encode(policy, [row]))
    beside = [name for name in inputs if name != "input_ids" and inputs[name].shape == inputs["input_ids"].shape]
    for name in beside:  # the answer is all seen, and none of it is a picture's
        more = torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids)
        inputs[name] = torch.cat([inputs[name], more.to(inputs[name].dtype)], dim=1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    device = policy.model.device
    output = policy.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
    scores = output.logits[0, -ids.shape[1] - 1 : -1].float().log_softmax(-1)
    return [float(value) for value in scores.gather(1, ids[0][:, None].to(device))[:, 0]]


def _options(policy: Policy, sampling: Sampling) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "eos_token_id": policy.turn_end.id,
        "pad_token_id": policy.processor.tokenizer.pad_token_id,
        "suppress_tokens": list(policy.forbidden) or None,
        "repetition_penalty": 1.0,  # some models bring their own; GRPO samples without
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
    return Completion(text, len(kept) + ended, not ended)
