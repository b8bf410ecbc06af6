"""The hf backend: transformers and peft on any device, with bitsandbytes for 4 and 8 bits."""

import copy
import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers.utils.hub import cached_file

from toolkit.data.task import Decision
from toolkit.errors import ModelError, warn
from toolkit.models import lora as adapter
from toolkit.models.backend import Completion, MergeComparison, Original, Policy, Row, Sampling, TrainerTraits
from toolkit.models.chat_template import TurnEnd, find_turn_end, set_template
from toolkit.models.choices import choice_log_probs
from toolkit.models.flops import register_usage_hooks
from toolkit.models.generate import answer_loss, generate, log_probs, supervised_loss
from toolkit.models.image_tokens import find_image_ids
from toolkit.models.loading import bits_of, check_mergeable, dequantize, load_model, restore_weights
from toolkit.models.merge import compare_merged, plan_merge, write_merged
from toolkit.models.model_config import read_configuration
from toolkit.models.model_paths import model_source, public_name
from toolkit.models.processor import open_processor
from toolkit.models.shared_prefill import prefill_once
from toolkit.recipe import Recipe
from toolkit.recipe.load import merge as merge_tables
from toolkit.runfolder import find_weights, read_json, write_json

SENTENCEPIECE = "tokenizer.model"
NOT_RESTORED = frozenset({"quantization_config", "auto_map", "dtype", "torch_dtype"})
"""Fields of the base's config.json that describe its files, not the model."""


class HfBackend:
    """See ``Backend``."""

    name = "hf"

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        """See ``Backend.load``."""
        if torch.cuda.is_available():
            gc.collect()  # trainer and model refer to each other, so the previous stage may still hold GPU memory
        adapted = weights is not None and adapter.is_adapter(weights)
        source = str(weights) if weights is not None and not adapted else base_source(recipe, weights)
        if trainable:
            check_mergeable(source, recipe)
        model = load_model(source, recipe.model, mergeable=mergeable)
        dequantized = mergeable and bits_of(model) < 16 and bool(recipe.export and recipe.export.allow_dequantized)
        if dequantized:
            model = dequantize(model, source)
        processor = load_processor(recipe)
        if weights is not None and adapted:
            model = adapter.reload(model, weights, trainable=trainable)
            if trainable and (note := adapter.differences(model, recipe.lora)):
                adapter.warn_differs(weights, note)
        elif trainable and recipe.model.tuning == "lora":
            model = adapter.attach(model, recipe.lora, recipe.run.seed_of_training)
        model.train(trainable)
        if trainable:
            disable_input_gradients(model)
        register_usage_hooks(model)
        prefill_once(model)
        policy = replace(make_policy(model, processor, weights), dequantized=dequantized)
        if trainable and recipe.model.tuning == "full" and policy.bits == 16:
            warn(
                "training.full_tuning_in_16bit",
                "full fine-tuning in 16 bits loses updates smaller than the rounding of the parameters",
                place="[model] precision",
                value=recipe.model.precision,
                remedy='Set precision = "32bit" if memory allows.',
            )
        return policy

    def load_without_model(self, recipe: Recipe) -> Policy:
        """See ``Backend.load_without_model``."""
        return make_policy(None, load_processor(recipe), None)

    def prepare_training(self, policy: Policy, recipe: Recipe, stage: Literal["sft", "dpo", "grpo"]) -> TrainerTraits:
        """See ``Backend.prepare_training``."""
        return TrainerTraits()

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        """See ``Backend.generate``."""
        return generate(policy, rows, sampling)

    def answer_loss(self, policy: Policy, row: Row) -> float:
        """See ``Backend.answer_loss``."""
        with eval_mode(policy.model):
            return answer_loss(policy, row)

    def supervised_loss(self, policy: Policy, row: Row) -> tuple[float, int]:
        """See ``Backend.supervised_loss``."""
        with eval_mode(policy.model):
            return supervised_loss(policy, row)

    def log_probs(self, policy: Policy, rows: Sequence[Row], answers: Sequence[str]) -> list[list[float]]:
        """See ``Backend.log_probs``."""
        return log_probs(policy, rows, answers)

    def choice_log_probs(
        self, policy: Policy, rows: Sequence[Row], decisions: Sequence[Sequence[Decision]]
    ) -> list[list[dict[str, float]]]:
        """See ``Backend.choice_log_probs``."""
        return choice_log_probs(policy, rows, decisions)

    def restore(self, policy: Policy, checkpoint: Path) -> None:
        """See ``Backend.restore``."""
        if isinstance(policy.model, PeftModel):
            adapter.restore(policy.model, checkpoint)
        else:
            restore_weights(policy.model, checkpoint)

    def save(self, policy: Policy, folder: Path) -> None:
        """See ``Backend.save``."""
        if not isinstance(policy.model, PeftModel):
            _save_full_model(policy.model, policy, folder)
            return
        save_adapter(policy, folder)

    def save_merged(self, policy: Policy, folder: Path) -> MergeComparison | None:
        """See ``Backend.save_merged``."""
        if policy.bits < 16:
            raise ModelError(
                "export.base_quantized",
                "the weights that an adapter is merged into must not be quantized",
                place="merged",
                value=f"{policy.bits} bits",
                remedy="Use a model stored in 16 bits or more, or set export.allow_dequantized = true.",
            )
        if not isinstance(policy.model, PeftModel):
            _save_full_model(policy.model, policy, folder)
            return None
        merge = None if policy.dequantized else plan_merge(policy.model)
        if merge is None:
            _save_full_model(policy.model.merge_and_unload(), policy, folder)
            return None
        write_merged(merge, folder)
        _save_configs(policy, folder)
        return compare_merged(merge, folder)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Switch the model to evaluation mode, without dropout, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def save_adapter(policy: Policy, folder: Path) -> None:
    """Save the adapter, and the processor as in the base model's files."""
    # Embeddings are never adapted. With the default, peft would query the Hub for them.
    policy.model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty template, which contains paths of this machine
    original_of(policy).processor.save_pretrained(str(folder))


def load_processor(recipe: Recipe) -> Any:
    """Return the model's processor as in its files, with the recipe's chat template and thinking switch.

    Raises:
        ModelError: The processor is not available or damaged, or its chat template does not suit ``prompt.thinking``.
    """
    processor = open_processor(recipe.model)
    set_template(processor, recipe.prompt)
    return processor


def make_policy(model: Any, processor: Any, start: Path | None) -> Policy:
    """Return a policy whose EOS is the chat template's end of turn, in the tokenizer and in the model (or None).

    The original processor and configurations are kept for saving, because training and padding change them.
    """
    end = find_turn_end(processor)
    original = Original(
        processor=copy.deepcopy(processor),
        config=copy.deepcopy(getattr(model, "config", None)),
        generation=copy.deepcopy(getattr(model, "generation_config", None)),
    )
    processor.tokenizer.eos_token = end.text
    processor.tokenizer.padding_side = "left"  # TRL's GRPO pads prompts on the left, and token types on this side
    if processor.tokenizer.pad_token is None or processor.tokenizer.pad_token_id == end.id:
        processor.tokenizer.pad_token = _spare_pad(processor.tokenizer, end.text)
    bits, forbidden = 32, set(find_image_ids(processor))
    if model is not None:
        _align(model, processor.tokenizer, end)
        bits = bits_of(model)
        forbidden |= _placeholders(model.config)
    return Policy(model, processor, end, tuple(sorted(forbidden)), start, original, bits)


def _placeholders(config: Any) -> set[int]:
    """Return the tokens that a model replaces by features of images and videos. Llama 4's processor names another."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    tokens = [getattr(config, name, None) for name in names]
    # Ovis2 replaces the delimiters of images by features too.
    tokens += getattr(config, "visual_indicator_token_ids", None) or ()
    return {token for token in tokens if isinstance(token, int) and token >= 0}


def base_source(recipe: Recipe, adapted: Path | None) -> str:
    """Return the base of an adapter of this recipe: the model, or the full weights that ``model.adapter`` names."""
    source, start = model_source(recipe.model), recipe.model.adapter
    if start is None or (adapted is not None and adapter.base_of(adapted) in (source, public_name(source))):
        return source  # the run that ``model.adapter`` names may no longer exist
    weights = find_weights(start)
    return source if adapter.is_adapter(weights) else str(weights)


def _align(model: Any, tokenizer: Any, end: TurnEnd) -> None:
    """Set the tokenizer's special tokens in the model, as the trainer of transformers would do with a warning."""
    for holder in (model.config, model.generation_config):
        holder.bos_token_id, holder.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    model.config.eos_token_id = end.id
    stop_at(model.generation_config, end)


def stop_at(generation: Any, end: TurnEnd) -> None:
    """Add the end of turn to the stop tokens of a generation configuration, which other programs read."""
    known = generation.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    generation.eos_token_id = ends if end.id in ends else [*ends, end.id]


def _save_full_model(model: Any, policy: Policy, folder: Path) -> None:
    trained = model.config, model.generation_config
    model.config, model.generation_config = original_of(policy).config, _generation_config(policy)
    try:
        model.save_pretrained(str(folder))
    finally:
        model.config, model.generation_config = trained
    _restore_fields(original_of(policy).config, folder)
    _save_processor(policy, folder)


def _save_configs(policy: Policy, folder: Path) -> None:
    """Save the files of a full model beside its weights."""
    original_of(policy).config.save_pretrained(str(folder))
    _restore_fields(original_of(policy).config, folder)
    if generation := _generation_config(policy):
        generation.save_pretrained(str(folder))
    _save_processor(policy, folder)


def _restore_fields(config: Any, folder: Path) -> None:
    """Add the fields of the base's config.json that transformers dropped, such as Gemma 4's ``global_head_dim``.

    transformers replaces some fields by others, but llama.cpp's converter reads those of the Hub. A field is added only
    if transformers then reads the same configuration.
    """
    base = _cached(str(config.name_or_path), "config.json", getattr(config, "_commit_hash", None))
    if base is None:
        return
    written = read_json(folder / "config.json")
    read = config.from_dict(copy.deepcopy(written)).to_dict()
    restored = []
    for field in _dropped(read_configuration(base), written):
        again = config.from_dict(merge_tables(written, [field])).to_dict()
        if all(_same_in(again.get(name), value) for name, value in read.items()):
            restored.append(field)
    if restored:
        write_json(folder / "config.json", merge_tables(written, restored))


def _same_in(found: Any, value: Any) -> bool:
    """Return whether every field of ``value`` is the same in ``found``, which may have more."""
    if isinstance(value, dict) and isinstance(found, dict):
        return all(_same_in(found.get(name), one) for name, one in value.items())
    return bool(found == value)


def _dropped(base: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield path and value of the fields of ``base`` that ``written`` lacks, also in the sections of both."""
    for name, value in base.items():
        if isinstance(value, Mapping) and isinstance(inner := written.get(name), Mapping):
            yield from (((name, *path), one) for path, one in _dropped(value, inner))
        elif name not in written and name not in NOT_RESTORED:
            yield (name,), value


def _save_processor(policy: Policy, folder: Path) -> None:
    processor = original_of(policy).processor
    processor.save_pretrained(str(folder))
    add_sentencepiece(processor.tokenizer, folder)


def _generation_config(policy: Policy) -> Any:
    """Return the original generation configuration with the end of turn as a stop token, or None."""
    generation = copy.deepcopy(original_of(policy).generation)
    if generation is not None:
        stop_at(generation, policy.turn_end)
    return generation


def add_sentencepiece(tokenizer: Any, folder: Path) -> None:
    """Copy the base's tokenizer.model, if any. transformers 5 omits it, but llama.cpp's converter needs it."""
    found = _cached(tokenizer.name_or_path, SENTENCEPIECE, tokenizer.init_kwargs.get("_commit_hash"))
    if found is not None:
        shutil.copyfile(found, folder / SENTENCEPIECE)


def _cached(source: str, name: str, revision: str | None) -> Path | None:
    """Return a file of a model's folder or of the Hub's cache, or None."""
    found = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def original_of(policy: Policy) -> Original:
    """Return the original files of the model, with which weights are saved."""
    if policy.original is None:
        raise ModelError("model.not_loaded_by_backend", "a policy must be loaded by a backend before it is saved")
    return policy.original


def _spare_pad(tokenizer: Any, end: str) -> str:
    """Return a padding token other than the end of turn, so that labels and truncation counts can distinguish them."""
    for token in (tokenizer.unk_token, *(token.content for token in tokenizer.added_tokens_decoder.values())):
        if token and token != end and "image" not in token:
            return str(token)
    raise ModelError(
        "model.pad_token_missing", "the tokenizer must have a padding token other than the end of turn", value=end
    )


def disable_input_gradients(model: Any) -> None:
    """Permanently leave the outputs of embeddings without gradients.

    TRL and transformers enable these gradients whenever they switch checkpointing on, because reentrant checkpointing
    passes no gradient into a layer whose inputs require none. Ours is not reentrant. With the gradients, a frozen
    vision tower, whose patches have an embedding too, would keep its activations and run a useless backward pass. Each
    GRPO rollout, which switches checkpointing off and on, would register the hooks on the embeddings again.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, "disable_input_require_grads"):
        base.disable_input_require_grads()
    base.enable_input_require_grads = _do_nothing


def _do_nothing() -> None:
    """Replace ``enable_input_require_grads``."""
