"""The protocol on Unsloth: what is loaded, adapted, merged and asked through it; all else as the hf backend does.

``start.start`` must have been called: this module's imports bring transformers, trl and peft.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from unsloth import FastVisionModel

from toolkit.errors import ModelError, warn
from toolkit.models import lora as adapter
from toolkit.models.backend import Completion, Policy, Row, Sampling, TrainerTraits
from toolkit.models.flops import meter
from toolkit.models.generate import generate, log_probs
from toolkit.models.hf import HfBackend, base_source, load_processor, make_policy, save_adapter
from toolkit.models.image_ablation import answer_loss
from toolkit.models.loading import refuse_blind_attention, refuse_unmergeable
from toolkit.models.merge import Compared
from toolkit.models.unsloth.limits import refuse
from toolkit.models.unsloth.loading import load_model
from toolkit.models.unsloth.options import Loading, grpo_changes, half_precision, lora_options, sft_changes
from toolkit.recipe import Recipe
from toolkit.runfolder.usage import note_unmeasured


class UnslothBackend:
    """See ``Backend``."""

    name = "unsloth"

    def __init__(self) -> None:
        self._hf = HfBackend()

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        """See ``Backend.load``."""
        if trainable:
            refuse(recipe)
        if mergeable:
            # Unsloth loads all 16-bit weights onto the GPU, where a 7B does not fit into 16 GB, and its own merge loses
            # the vision tower's update on Gemma 3 (unsloth_zoo/saving_utils.py finds files by the modules' names).
            return self._hf.load(recipe, weights, trainable=trainable, mergeable=True)
        gc.collect()  # a trainer and its model hold each other: those of the stage before may still fill the GPU
        torch.cuda.empty_cache()
        adapted = weights if weights is not None and adapter.is_adapter(weights) else None
        source = str(weights) if weights is not None and adapted is None else base_source(recipe, weights)
        refuse_blind_attention(source, recipe.model)
        if trainable:
            refuse_unmergeable(source, recipe)
        model = load_model(recipe, source, adapted, Loading(trainable))
        if adapted is not None and trainable and (note := adapter.differences(model, recipe.lora)):
            adapter.warn_differs(weights, note)
        elif adapted is None and trainable:
            model = _attach(model, recipe)
        meter(model)
        note_unmeasured("the vocabulary's head in Unsloth's own loss, and all passes for torch's counter")
        policy = make_policy(model, load_processor(recipe.model), weights)
        (FastVisionModel.for_training if trainable else FastVisionModel.for_inference)(model)
        if half_precision(policy) is None:
            warn(
                "model.computes_in_float32",
                "this GPU lacks bfloat16 and the model overflows in float16, so it computes in float32, slowly",
                place="[model] backend",
            )
        return policy

    def load_reader(self, recipe: Recipe) -> Policy:
        """See ``Backend.load_reader``."""
        return self._hf.load_reader(recipe)

    def prepare_training(self, policy: Policy, recipe: Recipe, stage: Literal["sft", "grpo"]) -> TrainerTraits:
        """See ``Backend.prepare_training``.

        Rows are collated as the hf backend does it, not by ``UnslothVisionDataCollator``: the labels are then laid on
        the answer's own tokens, not found again by searching for markers, and images keep the size of [images] (its
        default makes a Qwen image 512 pixels wide, and tests the width alone).
        """
        if stage == "sft":
            return TrainerTraits(sft_changes(policy, recipe), rewritten=True, watched=False, by_tokens=None)
        if recipe.grpo and recipe.grpo.beta > 0 and policy.trained_from is not None:
            adapter.add_reference(policy.model)
        return TrainerTraits(grpo_changes(policy, recipe), rewritten=True, watched=False)

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        """See ``Backend.generate``."""
        if _is_hfs(policy):
            with _rewritten(policy):
                return self._hf.generate(policy, rows, sampling)
        with _asking(policy.model):
            return generate(policy, rows, sampling)

    def answer_loss(self, policy: Policy, row: Row) -> float:
        """See ``Backend.answer_loss``."""
        if _is_hfs(policy):
            with _rewritten(policy):
                return self._hf.answer_loss(policy, row)
        with _computing(policy):
            return answer_loss(policy, row)

    def log_probs(self, policy: Policy, rows: Sequence[Row], answers: Sequence[str]) -> list[list[float]]:
        """See ``Backend.log_probs``."""
        if _is_hfs(policy):
            with _rewritten(policy):
                return self._hf.log_probs(policy, rows, answers)
        with _computing(policy):
            return log_probs(policy, rows, answers)

    def restore(self, policy: Policy, checkpoint: Path) -> None:
        """See ``Backend.restore``."""
        self._hf.restore(policy, checkpoint)

    def save(self, policy: Policy, folder: Path) -> None:
        """See ``Backend.save``."""
        if isinstance(policy.model, PeftModel):
            save_adapter(policy, folder)
        else:
            self._hf.save(policy, folder)

    def save_merged(self, policy: Policy, folder: Path) -> Compared | None:
        """See ``Backend.save_merged``: as the hf backend does it, which loaded the policy."""
        return self._hf.save_merged(policy, folder)


def _is_hfs(policy: Policy) -> bool:
    """Whether hf loaded the model, to merge it; on those that it loads Unsloth puts this method."""
    return not hasattr(policy.model, "for_inference")


@contextmanager
def _asking(model: Any) -> Iterator[None]:
    """The model as Unsloth wants it for answering; then as it was."""
    training = model.training
    FastVisionModel.for_inference(model)
    try:
        yield
    finally:
        if training:
            FastVisionModel.for_training(model)


@contextmanager
def _computing(policy: Policy) -> Iterator[None]:
    """As ``_asking``, in the half precision that training computes in."""
    half = half_precision(policy)
    with _asking(policy.model), torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None):
        yield


@contextmanager
def _rewritten(policy: Policy) -> Iterator[None]:
    """As a model that transformers loaded must compute after Unsloth has rewritten its classes.

    Once Unsloth has loaded a Gemma 3 on a GPU without bfloat16, the norms of every Gemma 3 in the process give float16,
    which a layer in another dtype only takes under autocast. Unsloth generates so itself.
    """
    forced = os.environ.get("UNSLOTH_FORCE_FLOAT32") == "1"
    with torch.autocast(policy.model.device.type, torch.float16, enabled=forced):
        yield


def _attach(model: Any, recipe: Recipe) -> Any:
    """A new adapter on the layers that the recipe names; Unsloth's own choice is compared with them."""
    wanted = adapter.layers(model, recipe.lora)
    adapted = FastVisionModel.get_peft_model(model, **lora_options(recipe, wanted))
    found = {
        name.removeprefix("base_model.model.") for name, part in adapted.named_modules() if hasattr(part, "lora_A")
    }
    if found != set(wanted):
        differing = sorted(found ^ set(wanted))
        raise ModelError(
            "model.unsloth_adapts_other_layers",
            "Unsloth must adapt the layers that [lora] names",
            place="[lora] targets",
            value=f"{len(differing)} differ: {', '.join(differing[:3])}",
            remedy='Set backend = "hf", and report this with the model\'s name.',
        )
    return adapted
