"""The Backend protocol with Unsloth, which loads, adapts, trains and generates. The hf backend does the rest.

Call ``preload.start`` before importing this module, because it imports transformers, trl and peft.
"""

import gc
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from unsloth import FastVisionModel
from unsloth.models.loader_utils import get_model_name

from toolkit.data.task import Decision
from toolkit.errors import ModelError, warn
from toolkit.models import lora as adapter
from toolkit.models.adapter_config import check_adapter
from toolkit.models.backend import Completion, MergeComparison, Policy, Row, Sampling, TrainerTraits
from toolkit.models.choices import choice_log_probs
from toolkit.models.flops import register_usage_hooks
from toolkit.models.generate import answer_loss, generate, log_probs, supervised_loss
from toolkit.models.hf import HfBackend, base_source, load_processor, make_policy, save_adapter
from toolkit.models.loading import (
    UNUSABLE,
    check_attention,
    check_mergeable,
    model_too_large,
    model_unusable,
    show_downloads_only,
)
from toolkit.models.processor import model_not_found
from toolkit.models.shared_prefill import prefill_once
from toolkit.models.unsloth.options import (
    Loading,
    grpo_changes,
    half_precision,
    load_options,
    lora_options,
    sft_changes,
)
from toolkit.models.unsloth.preload import check_supported
from toolkit.models.weight_files import adapter_weights, check_model_folder
from toolkit.recipe import Recipe
from toolkit.runfolder.usage import note_unmeasured

log = logging.getLogger(__name__)

NEEDED = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.py")
"""Patterns of the repository files that loading needs."""


class UnslothBackend:
    """See ``Backend``."""

    name = "unsloth"

    def __init__(self) -> None:
        self._hf = HfBackend()

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        """See ``Backend.load``."""
        if trainable:
            check_supported(recipe)
        if mergeable:
            # Unsloth loads all 16-bit weights onto the GPU, and a 7B model does not fit into 16 GB. Its merge also
            # loses the update of Gemma 3's vision tower (unsloth_zoo/saving_utils.py finds tensors by module names).
            return self._hf.load(recipe, weights, trainable=trainable, mergeable=True)
        gc.collect()  # trainer and model refer to each other, so the previous stage may still hold GPU memory
        torch.cuda.empty_cache()
        adapted = weights if weights is not None and adapter.is_adapter(weights) else None
        if adapted is not None:
            adapter.warn_ignored(adapted, check_adapter(adapted))
        source = str(weights) if weights is not None and adapted is None else base_source(recipe, weights)
        if Path(source).is_dir():
            check_model_folder(Path(source))
        check_attention(source, recipe.model)
        if trainable:
            check_mergeable(source, recipe)
        model = _load_model(recipe, source, adapted, Loading(trainable))
        if adapted is not None and trainable and (note := adapter.differences(model, recipe.lora)):
            adapter.warn_differs(weights, note)
        elif adapted is None and trainable:
            model = _attach(model, recipe)
        if isinstance(model, PeftModel):
            adapter.sort_names(model)
        register_usage_hooks(model)
        prefill_once(model)
        note_unmeasured("the output head in Unsloth's loss, and all passes in torch's counter")
        policy = make_policy(model, load_processor(recipe), weights)
        (FastVisionModel.for_training if trainable else FastVisionModel.for_inference)(model)
        if half_precision(policy) is None:
            warn(
                "model.computes_in_float32",
                "this GPU lacks bfloat16 and the model overflows in float16, so it computes in float32, slowly",
                place="[model] backend",
            )
        return policy

    def load_without_model(self, recipe: Recipe) -> Policy:
        """See ``Backend.load_without_model``."""
        return self._hf.load_without_model(recipe)

    def prepare_training(self, policy: Policy, recipe: Recipe, stage: Literal["sft", "dpo", "grpo"]) -> TrainerTraits:
        """See ``Backend.prepare_training``.

        Rows are collated as in the hf backend, not with ``UnslothVisionDataCollator``. Labels then cover the answer's
        own tokens and need no search for markers. Images keep the size of [images], whereas Unsloth's collator resizes
        Qwen images to a width of 512 pixels.
        """
        if stage == "sft":
            return TrainerTraits(sft_changes(policy, recipe), replaces_trl=True, count_flops=False, loss_by_tokens=None)
        if recipe.grpo and recipe.grpo.beta > 0 and policy.trained_from is not None:
            adapter.add_reference(policy.model)
        return TrainerTraits(grpo_changes(policy, recipe), replaces_trl=True, count_flops=False)

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        """See ``Backend.generate``."""
        if _loaded_by_hf(policy):
            with _patched_classes(policy):
                return self._hf.generate(policy, rows, sampling)
        with _inference_mode(policy.model):
            return generate(policy, rows, sampling)

    def answer_loss(self, policy: Policy, row: Row) -> float:
        """See ``Backend.answer_loss``."""
        if _loaded_by_hf(policy):
            with _patched_classes(policy):
                return self._hf.answer_loss(policy, row)
        with _training_precision(policy):
            return answer_loss(policy, row)

    def supervised_loss(self, policy: Policy, row: Row) -> tuple[float, int]:
        """See ``Backend.supervised_loss``."""
        with _training_precision(policy):
            return supervised_loss(policy, row)

    def log_probs(self, policy: Policy, rows: Sequence[Row], answers: Sequence[str]) -> list[list[float]]:
        """See ``Backend.log_probs``."""
        if _loaded_by_hf(policy):
            with _patched_classes(policy):
                return self._hf.log_probs(policy, rows, answers)
        with _training_precision(policy):
            return log_probs(policy, rows, answers)

    def choice_log_probs(
        self, policy: Policy, rows: Sequence[Row], decisions: Sequence[Sequence[Decision]]
    ) -> list[list[dict[str, float]]]:
        """See ``Backend.choice_log_probs``."""
        if _loaded_by_hf(policy):
            with _patched_classes(policy):
                return self._hf.choice_log_probs(policy, rows, decisions)
        with _training_precision(policy):
            return choice_log_probs(policy, rows, decisions)

    def restore(self, policy: Policy, checkpoint: Path) -> None:
        """See ``Backend.restore``."""
        self._hf.restore(policy, checkpoint)

    def save(self, policy: Policy, folder: Path) -> None:
        """See ``Backend.save``."""
        if isinstance(policy.model, PeftModel):
            save_adapter(policy, folder)
        else:
            self._hf.save(policy, folder)

    def save_merged(self, policy: Policy, folder: Path) -> MergeComparison | None:
        """See ``Backend.save_merged``: as the hf backend does it, which loaded the policy."""
        return self._hf.save_merged(policy, folder)


def _loaded_by_hf(policy: Policy) -> bool:
    """Return whether the hf backend loaded the model, for merging. Unsloth adds ``for_inference`` to its own models."""
    return not hasattr(policy.model, "for_inference")


@contextmanager
def _inference_mode(model: Any) -> Iterator[None]:
    """Switch the model to Unsloth's inference mode, and restore its mode afterwards."""
    training = model.training
    FastVisionModel.for_inference(model)
    try:
        yield
    finally:
        if training:
            FastVisionModel.for_training(model)


@contextmanager
def _training_precision(policy: Policy) -> Iterator[None]:
    """Switch to inference mode, in the half precision of training."""
    half = half_precision(policy)
    with _inference_mode(policy.model), torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None):
        yield


@contextmanager
def _patched_classes(policy: Policy) -> Iterator[None]:
    """Enable autocast for a model of transformers if Unsloth has patched its classes.

    After Unsloth has loaded a Gemma 3 on a GPU without bfloat16, the norms of every Gemma 3 in the process return
    float16, which layers of another dtype accept only under autocast. Unsloth itself generates under autocast.
    """
    forced = os.environ.get("UNSLOTH_FORCE_FLOAT32") == "1"
    with torch.autocast(policy.model.device.type, torch.float16, enabled=forced):
        yield


def _attach(model: Any, recipe: Recipe) -> Any:
    """Attach a new adapter to the recipe's layers, and check that Unsloth adapts exactly these."""
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


def _load_model(recipe: Recipe, source: str, adapted: Path | None, loading: Loading) -> Any:
    """Return the model in ``source`` with the adapter in ``adapted``, if any.

    Unsloth loads an adapter together with the base that the adapter's configuration names. The result must not go
    through ``get_peft_model`` again. A copy of the configuration names the recipe's base instead.

    Raises:
        ModelError: Base or adapter are not available, or the adapter belongs to another base.
    """
    show_downloads_only()
    loading = replace(loading, exact=loading.exact or Path(source).is_dir())
    if adapted is None:
        return _load(recipe, source, source, loading)
    _check_same_base(adapted, source)
    with _with_base(adapted, _pinned(recipe, source)) as folder:
        # The folder already pins the revision, which is that of the base. Unsloth would apply it to the adapter.
        model = recipe.model.model_copy(update={"revision": None})
        pinned = replace(loading, exact=loading.exact or recipe.model.revision is not None)
        return _load(recipe.model_copy(update={"model": model}), str(folder), source, pinned)


def _load(recipe: Recipe, name: str, source: str, loading: Loading) -> Any:
    try:
        model, _ = FastVisionModel.from_pretrained(**load_options(recipe, name, loading))
    except torch.OutOfMemoryError as error:
        raise model_too_large(source) from error
    except (OSError, ImportError) as error:
        raise model_not_found(source, error) from error
    except UNUSABLE as error:
        raise model_unusable(source, error) from error
    loaded = str(getattr(model.config, "_name_or_path", source))
    if loaded != source and not Path(loaded).is_dir():
        log.info("Unsloth loads %s instead of %s (set model.revision to keep the latter)", loaded, source)
    return model


def _pinned(recipe: Recipe, source: str) -> str:
    """Return the folder of the pinned revision. Unsloth would load an adapter's base from its newest revision."""
    if recipe.model.revision is None or Path(source).is_dir():
        return source
    try:
        return str(snapshot_download(source, revision=recipe.model.revision, allow_patterns=list(NEEDED)))
    except (OSError, ValueError) as error:
        raise model_not_found(source, error) from error


@contextmanager
def _with_base(adapted: Path, base: str) -> Iterator[Path]:
    """Yield a folder with a copy of the adapter whose configuration names ``base``."""
    with tempfile.TemporaryDirectory(prefix="toolkit-adapter-") as place:
        folder = Path(place)
        shutil.copy(adapter_weights(adapted), folder)
        settings = json.loads((adapted / "adapter_config.json").read_text(encoding="utf-8"))
        settings |= {"base_model_name_or_path": base, "revision": None}
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        yield folder


def _check_same_base(adapted: Path, source: str) -> None:
    """Compare Hub names, with Unsloth's table of names. Folders are not compared, because they may have moved."""
    base = adapter.base_of(adapted)
    if base is None or any(Path(name).is_absolute() or Path(name).is_dir() for name in (base, source)):
        return
    names = {name.lower() for name in (source, *(get_model_name(source, load_in_4bit=bits) for bits in (True, False)))}
    if base.lower() not in names:
        raise ModelError(
            "model.adapter_of_another_base",
            "the adapter must belong to the recipe's model",
            place=adapted,
            value=base,
            remedy="Set model.name to the model that the adapter was trained on.",
        )
