"""The installed Unsloth and TRL accept our calls and rewrite none of our settings. These tests run on a CPU.

One process imports Unsloth, generates its trainers and checks them (helpers/unsloth_contract.py). The tests read its
results.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("contract"),  # one process of pytest has the fixture, which takes a minute
    pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed here"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(here / "helpers" / "unsloth_contract.py"), str(tmp_path_factory.mktemp("contract"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_models_are_loaded_with_keywords_that_exist_and_one_precision(found: dict[str, Any]) -> None:
    assert len(found["loading"]) == 9
    assert {name: problem for name, (problem, _) in found["loading"].items() if problem} == {}
    assert {flags for _, flags in found["loading"].values()} == {1}  # Unsloth rejects two of 4, 8 and 16 bits


def test_adapters_are_attached_with_keywords_that_exist(found: dict[str, Any]) -> None:
    assert found["adapters"] == {"vision False": None, "vision True": None}


def test_unsloth_finds_the_same_layers_by_their_last_names(found: dict[str, Any]) -> None:
    assert found["layers"]["theirs"] > 0
    assert found["layers"]["differing"] == []


def test_every_setting_is_a_field_and_none_is_rewritten(found: dict[str, Any]) -> None:
    assert len(found["settings"]) == 8
    for name, stages in found["settings"].items():
        for stage, result in stages.items():
            assert result == {"unknown": [], "changed": {}}, f"{stage}, {name}"


def test_rejected_settings_would_be_rewritten(found: dict[str, Any]) -> None:
    assert ["scale_rewards" in reason for reason in found["rejected"]["reasons"]] == [True]
    assert list(found["rejected"]["changed"]) == ["scale_rewards"]


def test_the_generated_trainers_have_and_call_the_overridden_methods(found: dict[str, Any]) -> None:
    assert found["trainers"] == {
        "generated": "UnslothGRPOTrainer",
        "lacking": [],
        "log-probabilities": None,
        "called": [],
        "inference": [True, True],
        "modes": [None, None],
    }


def test_unsloth_supports_vllm_for_our_architectures(found: dict[str, Any]) -> None:
    assert found["vllm"] == []


def test_the_table_of_names_substitutes_another_repository(found: dict[str, Any]) -> None:
    """So a pinned revision is loaded by its exact name, and adapters' bases are compared through the table."""
    assert [name.lower() for name in found["names"]] == [
        "unsloth/medgemma-4b-it-unsloth-bnb-4bit",
        "unsloth/medgemma-4b-it",
    ]


def test_the_generated_trainers_train_the_tiny_model(found: dict[str, Any]) -> None:
    assert len(found["trained"]["sft"]) == 2
    assert len(found["trained"]["grpo"]) == 2
    assert found["trained"]["moved"]
    assert found["trained"]["side"] == "left"
    assert found["trained"]["image tokens"]  # with right padding, the mask would be misaligned


def test_the_generated_trainers_losses_are_those_of_trl(found: dict[str, Any], tmp_path: Path) -> None:
    """The same rows, order and adapter, four passes per step.

    If the model's forward accepts no number of tokens, each pass has equal weight in Unsloth, with a warning. Losses
    are then close to those that divide by the tokens of the step. Four times higher losses would be wrong (trl#5846).
    """
    from tests.helpers.training import FEW_STEPS, context_of, small_recipe
    from toolkit.models.backend import TrainingJob
    from toolkit.models.hf import HfBackend
    from toolkit.models.prompts import Prompts
    from toolkit.training.sft import build_sft

    with context_of(small_recipe(tmp_path, FEW_STEPS)) as context:
        backend, samples = HfBackend(), context.data.train
        rows = Prompts.of(context.recipe, context.images).rows(samples, answer=True)
        policy = backend.load(context.recipe, None, trainable=True)
        trainer = build_sft(backend, policy, TrainingJob(context.recipe, rows, len(samples), tmp_path))
        trainer.train()
    expected = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert found["trained"]["sft"] == pytest.approx(expected, rel=1e-3 if found["trained"]["by tokens"] else 0.05)


def test_lost_images_stop_the_generated_trainer(found: dict[str, Any]) -> None:
    assert found["blind"] == "training.images_ignored"


def test_the_generated_trainers_make_the_same_step_with_smaller_sizes(found: dict[str, Any]) -> None:
    assert len(found["sizes"]) == 3
    for name, step in found["sizes"].items():
        plain, small = step["plain"], step["small"]
        assert small["passes"] == 2 * plain["passes"], name
        assert plain["gradient"] > 0, name
        if plain["by pass"]:  # with a warning; the mean then depends on the sizes
            assert small["by pass"]
            assert small["gradient"] == pytest.approx(plain["gradient"], rel=0.1), name
            continue
        assert small["gradient"] == pytest.approx(plain["gradient"], rel=2e-3), name
        assert small["loss"] == pytest.approx(plain["loss"], rel=1e-3, abs=1e-5), name
