"""GRPO of small models of many families: each completion's log-probability comes from the pixels of its own prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.problems import raises
from tests.helpers.tiny_families import TINY, build_tiny
from tests.helpers.training import small_recipe
from toolkit.errors import TrainingError
from toolkit.models.backend import Policy, RewardScorer, Row, TrainingJob
from toolkit.models.chat_template import encode_answer
from toolkit.models.collate import encode_prompts
from toolkit.models.generate import answer_loss
from toolkit.models.hf import HfBackend
from toolkit.models.messages import conversation
from toolkit.models.pixel_layout import check_grpo_supports
from toolkit.models.prompts import set_image_key
from toolkit.training.grpo import build_grpo

LENGTH = 6
PROMPTS = (((64, 64), (120, 56)), ((56, 150),), ((100, 90), (56, 112)))
"""(width, height) of the images of each prompt."""


def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    found = []
    for number, sizes in enumerate(PROMPTS):
        images = [Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)) for width, height in sizes]
        keyed = [set_image_key(image, f"{number}.{place}") for place, image in enumerate(images)]
        found.append(Row(conversation("is the lung clear " * (number + 1), len(keyed)), keyed))
    return found


def trainer_of(family: str, folder: Path) -> tuple[Any, Policy]:
    """Return a trainer whose completions are greedy, and its policy."""
    if not TINY[family].installed:
        pytest.skip(f"the processor needs {TINY[family].package}")
    tables: dict[str, dict[str, Any]] = {
        "model": {"name": str(build_tiny(family, folder)), "max_tokens": 1000},
        "lora": {"dropout": 0.0, "targets": ["q_proj", "v_proj"]},
        "grpo": {
            "max_steps": 2,
            "prompts_per_step": 3,
            "generations": 2,
            "micro_batch": 2,
            "max_completion_tokens": LENGTH,
            "top_k": 1,
        },
    }
    recipe, prompts = small_recipe(folder, tables), rows()
    backend = HfBackend()
    policy = backend.load(recipe, None, trainable=True)
    # Greedy completions are equal, so their rewards have to differ by place.
    scorer = RewardScorer({"odd": 1.0}, lambda _, found: ([{"odd": place % 2} for place in range(len(found))], {}))
    job = TrainingJob(recipe, lambda number: prompts[number], len(prompts), folder / "out", scorer=scorer)
    return build_grpo(backend, policy, job), policy


def decoded_log_probs(policy: Policy, row: Row, completion: list[int]) -> torch.Tensor:
    """Return the log-probabilities of a completion that is decoded token by token, after its own prompt alone."""
    inputs = encode_prompts(policy, [row], "left")
    start = inputs["input_ids"].shape[1]
    output = policy.model.eval().generate(
        **inputs,
        max_new_tokens=len(completion),
        do_sample=False,
        prefix_allowed_tokens_fn=lambda _, ids: [completion[len(ids) - start]],
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    scores_TV = torch.cat(output.logits).float().log_softmax(-1)
    return scores_TV.gather(1, torch.tensor(completion)[:, None])[:, 0]


def check_answer(policy: Policy, row: Row) -> None:
    """Check that the loss of SFT and the log-probabilities of evaluation are those of a decoded answer."""
    answer = "A. lung or skin"
    decoded = decoded_log_probs(policy, row, encode_answer(policy.processor, answer, policy.turn_end))
    assert abs(answer_loss(policy, replace(row, answer=answer)) + float(decoded.mean())) < 1e-4
    (found,) = HfBackend().log_probs(policy, [row], [answer])
    assert found == pytest.approx(decoded.tolist(), abs=1e-4)


TRAINED = [family for family in TINY if family not in ("mllama", "llama4")]


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAINED)
def test_log_probabilities_of_a_batch_are_those_of_each_prompt_alone(family: str, tmp_path: Path) -> None:
    """Prompts have different lengths, and one or two images of different shapes, of which tiling families cut some."""
    trainer, policy = trainer_of(family, tmp_path)
    policy.model.train()
    data = trainer.train_dataset
    rollout = trainer._generate_and_score_completions([data[number] for number in (0, 0, 1, 1, 2, 2)])
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    generated = rollout["completion_mask"].bool()
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    skipped = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")
    fields = {name: value for name, value in rollout.items() if name not in skipped}

    def log_probs(batch_size: int) -> torch.Tensor:
        policy.model.eval()
        with torch.no_grad():
            found: torch.Tensor = trainer._get_per_token_logps_and_entropies(
                policy.model, ids, mask, generated.shape[1], batch_size, **fields
            )[0]
        return found

    whole, alone = log_probs(6), log_probs(1)
    assert (whole - alone)[generated].abs().max() < 1e-5
    for number, row in enumerate(rows()):
        completion = rollout["completion_ids"][2 * number][generated[2 * number]].tolist()
        decoded = decoded_log_probs(policy, row, completion)
        assert (decoded - whole[2 * number][: len(completion)]).abs().max() < 1e-4
        check_answer(policy, row)
    forbidden = set(policy.forbidden)
    assert forbidden
    assert not forbidden & set(rollout["completion_ids"].flatten().tolist())
    # Greedy completions do not depend on how many are generated at once, unless one saw the pixels of another.
    trainer.rollout_limit.limit = 1
    policy.model.train()
    parts = trainer._generate_and_score_completions([data[number] for number in (0, 0, 1, 1, 2, 2)])
    assert torch.equal(parts["completion_ids"], rollout["completion_ids"])
    before = {name: value.clone() for name, value in policy.model.named_parameters() if value.requires_grad}
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(
        not torch.equal(value, before[name]) for name, value in policy.model.named_parameters() if name in before
    )


@pytest.mark.parametrize(
    ("family", "code", "value"),
    [
        (
            "mllama",
            "training.image_fields_unsupported",
            "aspect_ratio_ids, aspect_ratio_mask, cross_attention_mask",
        ),
        ("llama4", "training.family_unsupported", "llama4"),
    ],
)
@pytest.mark.slow
def test_a_family_that_trl_cannot_train_is_rejected(family: str, code: str, value: str) -> None:
    with raises(TrainingError, code) as caught:
        check_grpo_supports(TINY[family].parts().processor, family)
    assert caught.problem.value == value


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAINED)
def test_other_families_are_not_rejected(family: str) -> None:
    if not TINY[family].installed:
        pytest.skip(f"the processor needs {TINY[family].package}")
    check_grpo_supports(TINY[family].parts().processor, family)
