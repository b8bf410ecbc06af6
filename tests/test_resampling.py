"""Bounded resampling: which groups are replaced, what a replaced group consists of, and a killed run that resumes."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.problems import raises
from tests.helpers.training import Tables, adapter_of, context_of, only, same, small_recipe
from toolkit.errors import RecipeError, TrainingError
from toolkit.models import choose_backend
from toolkit.models.backend import Completion, RewardScorer, TrainingJob
from toolkit.models.prompts import Prompts
from toolkit.pipeline import read_results
from toolkit.recipe import dump_recipe
from toolkit.runfolder import RunFolder
from toolkit.tasks import TASKS
from toolkit.training.grpo import build_grpo
from toolkit.training.resampling import replace_groups, replacement_rows

PAD = 0


def rollout(tokens: int, advantages: Sequence[float], prompt: int, completion: int) -> dict[str, Any]:
    """A rollout whose tokens are ``tokens``, ``tokens`` + 1, … by completion, with padding on the outer sides."""
    rows = len(advantages)
    ids = torch.arange(tokens, tokens + rows)[:, None]
    prompt_ids, completion_ids = ids.repeat(1, prompt), ids.repeat(1, completion)
    prompt_ids[0, 0] = completion_ids[0, -1] = PAD
    types = torch.cat([torch.ones_like(prompt_ids), torch.zeros_like(completion_ids)], dim=1)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": (prompt_ids != PAD).long(),
        "completion_ids": completion_ids,
        "completion_mask": (completion_ids != PAD).long(),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": (completion_ids != PAD).sum(),
        "token_type_ids": types,
        "ref_per_token_logps": -completion_ids.float(),
    }


def test_replaced_groups_are_padded_to_the_longer_rollout() -> None:
    first = rollout(10, [0.0, 0.0, 1.0, -1.0], prompt=2, completion=3)
    extra = rollout(20, [0.0, 0.0, 2.0, -2.0], prompt=3, completion=1)
    batch, replaced = replace_groups(first, extra, 2, PAD)
    assert replaced == 1
    assert batch["advantages"].tolist() == [2, -2, 1, -1]
    assert batch["prompt_ids"].tolist() == [[22, 22, 22], [23, 23, 23], [PAD, 12, 12], [PAD, 13, 13]]
    assert batch["completion_ids"].tolist() == [[22, PAD, PAD], [23, PAD, PAD], [12, 12, 12], [13, 13, 13]]
    assert batch["prompt_mask"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1]]
    assert batch["completion_mask"].sum(1).tolist() == [1, 1, 3, 3]
    assert int(batch["num_items_in_batch"]) == 8
    assert batch["token_type_ids"].tolist() == [[1, 1, 1, 0, 0, 0]] * 2 + [[0, 1, 1, 0, 0, 0]] * 2
    assert batch["ref_per_token_logps"].tolist() == [[-22, 0, 0], [-23, 0, 0], [-12, -12, -12], [-13, -13, -13]]


def test_groups_stay_if_the_extra_rollout_has_no_advantage() -> None:
    first = rollout(10, [0.0, 0.0, 1.0, -1.0], prompt=2, completion=3)
    batch, replaced = replace_groups(first, rollout(20, [0.0, 0.0], prompt=3, completion=1), 2, PAD)
    assert replaced == 0
    assert batch["prompt_ids"] is first["prompt_ids"]


@pytest.mark.parametrize("grid", [False, True])
def test_replaced_groups_keep_their_images(grid: bool) -> None:
    def with_images(batch: dict[str, Any], counts: list[int], first: int) -> dict[str, Any]:
        pixels = torch.arange(first, first + sum(counts)).float().view(-1, 1)
        if grid:  # Qwen: one tensor of patches, and the size of each image
            return {
                **batch,
                "num_images": counts,
                "pixel_values": pixels,
                "image_grid_thw": torch.ones(sum(counts), 3).long(),
            }
        return {**batch, "num_images": counts, "pixel_values": list(torch.split(pixels, counts))}

    first = with_images(rollout(10, [1.0, -1.0, 0.0, 0.0], 2, 2), [2, 2, 1, 1], 100)
    extra = with_images(rollout(20, [1.0, -1.0], 2, 2), [3, 3], 200)
    batch, _ = replace_groups(first, extra, 2, PAD)
    assert batch["num_images"] == [2, 2, 3, 3]
    pixels = batch["pixel_values"] if grid else torch.cat(batch["pixel_values"])
    assert pixels.flatten().tolist() == [100, 101, 102, 103, 200, 201, 202, 203, 204, 205]
    assert not grid or len(batch["image_grid_thw"]) == 10
    text, _ = replace_groups(first, rollout(20, [1.0, -1.0], 2, 2), 2, PAD)
    assert text["num_images"] == [2, 2, 0, 0]


def test_a_field_of_another_shape_is_an_error() -> None:
    first, extra = rollout(10, [0.0, 0.0], 2, 2), rollout(20, [1.0, -1.0], 2, 2)
    first["ratio"], extra["ratio"] = torch.ones(2, 7), torch.ones(2, 9)
    with raises(TrainingError, "training.rollouts_differ"):
        replace_groups(first, extra, 2, PAD)


def test_the_drawn_rows_depend_on_seed_and_step_and_cover_all_other_rows() -> None:
    def drawn(seed: int, step: int) -> list[int]:
        return list(replacement_rows(50, {3, 7}, seed, step))

    assert drawn(1, 5) == drawn(1, 5)
    assert len({tuple(drawn(seed, step)) for seed in range(3) for step in range(3)}) == 9
    assert sorted(drawn(1, 5)) == [row for row in range(50) if row not in (3, 7)]


@pytest.mark.parametrize(
    ("keys", "code"),
    [({"scale_rewards": "batch"}, "recipe.resample_scale"), ({"rollouts": "vllm"}, "recipe.resample_vllm")],
)
def test_settings_that_resampling_does_not_fit_are_rejected(tmp_path: Path, keys: dict[str, str], code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        small_recipe(tmp_path, {"grpo": {"resample": 1, **keys}})
    assert code in [problem.code for problem in caught.value.problems]


def score(
    numbers: Sequence[int], completions: Sequence[Completion]
) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
    """Rewards by length for rows with an odd number. Completions of the other rows have equal rewards."""
    pairs = zip(numbers, completions, strict=True)
    return [{"length": (sum(map(ord, one.text)) % 97) / 97 if number % 2 else 0.5} for number, one in pairs], {}


class Steps:
    """Records the rollouts of each optimizer step of a trainer, their rows, and the batch of the update."""

    def __init__(self, trainer: Any) -> None:
        self.rollouts: list[list[Any]] = []
        self.rows: list[list[int]] = []
        self.batches: list[Any] = []
        self._step: list[Any] = []
        self._numbers: list[int] = []
        self._roll_out, self._replace = trainer._roll_out, trainer._replace_zero_variance
        trainer._roll_out, trainer._replace_zero_variance = self.roll_out, self.replace

    def roll_out(self, inputs: Any) -> Any:
        batch = self._roll_out(inputs)
        self._step.append(batch)
        self._numbers += [row["index"] for row in inputs]
        return batch

    def replace(self, batch: Any, inputs: Any) -> Any:
        self.batches.append(self._replace(batch, inputs))
        self.rollouts.append(self._step)
        self.rows.append(self._numbers)
        self._step, self._numbers = [], []
        return self.batches[-1]


def completion_of(batch: Any, row: int) -> tuple[list[int], list[int], float, torch.Tensor]:
    """Prompt and completion without padding, advantage and pixels of a row."""
    prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
    completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
    return prompt, completion, float(batch["advantages"][row]), batch["pixel_values"][row]


def train(folder: Path, **grpo: Any) -> tuple[Steps, Any]:
    tables: Tables = {
        "lora": {"dropout": 0.0},
        "data": {"synthetic": {"kind": "chest", "train": 16, "test": 2, "size": 64}},
        "grpo": {"max_steps": 4, **grpo},
    }
    recipe = small_recipe(folder, tables)
    with context_of(recipe) as context:
        backend = choose_backend(recipe.model)
        policy = backend.load(recipe, None, trainable=True)
        samples, prompts = context.data.train, Prompts.of(recipe, context.images)
        scorer = RewardScorer({"length": 1.0}, score)
        trainer = build_grpo(
            backend, policy, TrainingJob(recipe, prompts.rows(samples), len(samples), folder, scorer=scorer)
        )
        steps = Steps(trainer)
        trainer.train()
    return steps, trainer


def logged(trainer: Any, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_resampling_leaves_fewer_completions_without_advantage(tmp_path: Path, beta: float) -> None:
    _, plain = train(tmp_path / "plain", beta=beta)
    steps, resampled = train(tmp_path / "resampled", beta=beta, resample=3)
    before, after = (logged(trainer, "rows_without_advantage") for trainer in (plain, resampled))
    assert before[0] > 0
    assert sum(after) < sum(before)
    assert all(fraction in (0, 0.5, 1) for fraction in after)  # groups are whole
    rollouts, groups = logged(resampled, "resample/rollouts"), logged(resampled, "resample/groups")
    assert [len(one) - 1 for one in steps.rollouts] == rollouts
    assert max(rollouts) <= 3
    assert sum(groups) > 0
    # The metrics are those of the first rollout, and the first step of both runs has the same one.
    assert logged(resampled, "reward")[0] == logged(plain, "reward")[0]
    assert logged(resampled, "num_tokens")[-1] > logged(plain, "num_tokens")[-1]
    adapters = [
        {name: value for name, value in one.model.named_parameters() if value.requires_grad}
        for one in (plain, resampled)
    ]
    assert not same(*adapters)


@pytest.mark.slow
def test_every_completion_of_a_step_is_one_of_its_rollouts(tmp_path: Path) -> None:
    steps, _ = train(tmp_path, resample=2)
    replaced = 0
    for rollouts, batch, rows in zip(steps.rollouts, steps.batches, steps.rows, strict=True):
        known = [completion_of(one, row) for one in rollouts for row in range(len(one["advantages"]))]
        for row in range(8):
            prompt, completion, advantage, pixels = completion_of(batch, row)
            found = [one for one in known if one[:3] == (prompt, completion, advantage)]
            assert any(torch.equal(one[3], pixels) for one in found)
        assert int(batch["num_items_in_batch"]) == int(batch["completion_mask"].sum())
        kept = rollouts[0]["advantages"] != 0
        assert torch.equal(batch["advantages"][kept], rollouts[0]["advantages"][kept])
        replaced += int((batch["advantages"] != rollouts[0]["advantages"]).any())
        prompts = rows[::4]
        assert len(set(prompts)) == len(prompts)  # no prompt is used twice in a step
    assert replaced > 0


@pytest.mark.slow
def test_log_probabilities_of_a_replaced_completion_do_not_depend_on_the_other_rollout(tmp_path: Path) -> None:
    steps, trainer = train(tmp_path, resample=3)

    def log_probs(batch: Any) -> list[torch.Tensor]:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        fields = {name: batch[name] for name in ("pixel_values", "num_images", "num_tiles", "token_type_ids")}
        width = batch["completion_ids"].shape[1]
        with torch.no_grad():
            found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width, 8, **fields)[0]
        return [row[own.bool()] for row, own in zip(found, batch["completion_mask"], strict=True)]

    compared = 0
    for rollouts, batch in zip(steps.rollouts, steps.batches, strict=True):
        alone = {}
        for one in rollouts:
            for row, found in enumerate(log_probs(one)):
                alone[str(completion_of(one, row)[:3])] = found
        for row, found in enumerate(log_probs(batch)):
            torch.testing.assert_close(found, alone[str(completion_of(batch, row)[:3])], rtol=0, atol=1e-5)
            compared += 1
    assert compared == 32


REWARD = """
def parity(sample, answer):  # equal for every second sample
    return (sum(map(ord, answer.text)) % 97) / 97 if sum(map(ord, sample.id)) % 2 else 0.5
"""


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_replacements(tmp_path: Path) -> None:
    file = tmp_path / "parity.py"
    file.write_text(REWARD, encoding="utf-8")
    changes: dict[str, Any] = {
        "run": {"checkpoint_steps": 1},
        "rewards": {**dict.fromkeys(TASKS["mcq"].reward_weights, 0.0), "custom": (f"{file}:parity",)},
        "grpo": {"max_steps": 6, "resample": 2},
    }
    whole, killed = only("grpo", tmp_path, "whole", changes), only("grpo", tmp_path, "killed", changes)
    command = [sys.executable, "-m", "toolkit", "run"]
    for recipe in (whole, killed):
        (tmp_path / f"{recipe.run.name}.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    process = subprocess.Popen([*command, str(tmp_path / "killed.toml")], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not (killed.run_folder / "stages/grpo/checkpoints/step-00000002").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for recipe in (killed, whole):
        subprocess.run([*command, str(tmp_path / f"{recipe.run.name}.toml")], check=True, capture_output=True)
    assert same(adapter_of(whole, "grpo"), adapter_of(killed, "grpo"))
    first, second = (
        [line["resample/rollouts"] for line in RunFolder(recipe.run_folder).metrics() if "loss" in line]
        for recipe in (whole, killed)
    )
    assert first == second
    assert len(first) == 6
    assert sum(first[3:]) > 0  # some were made after the kill
    found = read_results(killed.run_folder).grpo
    assert found is not None
    assert found.resampling.rollouts == sum(first)
    assert found.training.resumed_from is not None
