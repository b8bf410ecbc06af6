"""TRL's trainers over our rows: pictures opened once a prompt, labels on the answer, rewards from the task."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
from transformers import PrinterCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer

from toolkit.errors import ModelError, TrainingError, warn
from toolkit.models.backend import Backend, Completion, Policy, RewardScorer, Row, RowSource, TrainingJob
from toolkit.models.collate import SftCollator
from toolkit.models.flops import register_usage_hooks
from toolkit.recipe import Grpo
from toolkit.training import sft_loss
from toolkit.training.grpo_trainer import PolicyTrainer, RolloutTrainer, rollout_processor
from toolkit.training.measured_flops import count_one_pass
from toolkit.training.trl_settings import check_settings, grpo_settings, sft_settings, use_one_gpu


def build_sft(backend: Backend, policy: Policy, job: TrainingJob) -> Any:
    """Return TRL's SFTTrainer with the recipe's settings.

    Raises:
        TrainingError: the library rewrote a setting.
        ModelError: the backend cannot train.
    """
    traits = backend.prepare_training(policy, job.recipe, "sft")
    wanted = {**sft_settings(job), **traits.changed_settings}
    with _same_precision(policy.model):
        trainer = SFTTrainer(
            model=policy.model,
            args=use_one_gpu(SFTConfig(**wanted)),
            train_dataset=datasets.Dataset.from_dict({"index": list(range(job.count))}),
            data_collator=SftCollator(policy, job.rows),
            processing_class=policy.processor,
            callbacks=list(job.callbacks),
        )
    # TRL's loss divides by the answer tokens of the whole step if it is told their number, which the trainer tells only
    # models that say they want it. Gemma 3 says it does not; then each pass would weigh alike, whatever its length.
    if traits.loss_by_tokens is not None:
        trainer.model_accepts_loss_kwargs = traits.loss_by_tokens
    elif not trainer.model_accepts_loss_kwargs and trainer.args.gradient_accumulation_steps > 1:
        warn(
            "training.loss_by_forward_pass",
            "each forward pass of an optimizer step has equal weight, regardless of its number of answer tokens",
            place="sft",
        )
    if trainer.args.loss_type == "chunked_nll":
        sft_loss.install(trainer)
    if traits.count_flops and not job.preflight:
        count_one_pass(trainer, policy)
    return _checked(trainer, wanted, policy)


def build_grpo(backend: Backend, policy: Policy, job: TrainingJob) -> Any:
    """Return TRL's GRPOTrainer with the recipe's settings and the rewards as its reward functions.

    Raises:
        TrainingError: the library rewrote a setting, or the job has no scorer.
        ModelError: the backend cannot train, or trl was imported before the library that rewrites its trainers.
    """
    traits = backend.prepare_training(policy, job.recipe, "grpo")
    if traits.replaces_trl:
        _check_rewritten()
    if job.scorer is None:
        raise TrainingError("training.reward_scorer_missing", "GRPO must have a scorer")
    wanted = {**grpo_settings(policy, job), **traits.changed_settings}
    if job.preflight and wanted.get("use_vllm"):
        tokens = (job.recipe.grpo or Grpo()).max_completion_tokens
        wanted["generation_kwargs"] = {**wanted["generation_kwargs"], "min_tokens": tokens}
    memory = 2 * (job.recipe.grpo or Grpo()).prompts_per_step  # this step's pictures and, fetched ahead, the next one's
    columns = _RewardColumns(job.scorer, policy)
    with _same_precision(policy.model):
        trainer = (RolloutTrainer if traits.replaces_trl else PolicyTrainer)(
            model=policy.model,
            reward_funcs=columns.functions(),
            args=use_one_gpu(GRPOConfig(**wanted)),
            train_dataset=_prompts(job.rows, job.count, memory),
            processing_class=rollout_processor(policy.processor, memory * job.recipe.images.max_per_question),
            callbacks=list(job.callbacks),
        )
    if trainer.ref_model is not None:  # full fine-tuning with a KL term; an adapter is switched off instead
        register_usage_hooks(trainer.ref_model)
    trainer.rollout = job.rollout
    if traits.count_flops and not job.preflight:
        count_one_pass(trainer, policy)
    return _checked(trainer, wanted, policy)


def _check_rewritten() -> None:
    if not RolloutTrainer.__mro__[1].__name__.startswith("Unsloth"):
        raise ModelError(
            "model.trl_imported_before_unsloth",
            "unsloth must be imported before trl, because it replaces trl's trainers",
            place="[model] backend",
            value=RolloutTrainer.__mro__[1].__qualname__,
            remedy='Use the command line, import unsloth first, or set backend = "hf".',
        )


@contextmanager
def _same_precision(model: Any) -> Iterator[None]:
    """What is trained keeps its precision while a trainer is built.

    TRL turns the adapter of a quantised model into bfloat16, whose steps near 0.01 are 6e-5 wide: most of what a
    learning rate of 5e-6 changes would be rounded away.
    """
    before = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    yield
    for parameter, data in before:
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)


def _checked(trainer: Any, wanted: Mapping[str, Any], policy: Policy) -> Any:
    check_settings(wanted, trainer.args)
    for processor in (policy.processor, trainer.processing_class):
        # Unsloth's trainers turn it to the right (models/rl.py), and Gemma's mask of picture tokens with it.
        processor.tokenizer.padding_side = "left"
    trainer.remove_callback(PrinterCallback)  # it prints a table a step; progress goes through our own callback
    return trainer


def _prompts(rows: RowSource, count: int, keep: int) -> Any:
    data = datasets.Dataset.from_dict({"index": list(range(count))})
    return data.with_transform(_OpenPrompts(rows, keep))


class _OpenPrompts:
    """The columns TRL wants, from row numbers; the last ``keep`` rows stay open.

    TRL asks for a row once a generation and again for every forward pass of the step that it was generated for.
    """

    def __init__(self, rows: RowSource, keep: int) -> None:
        self.rows, self.keep = rows, keep
        self._opened: OrderedDict[int, Row] = OrderedDict()

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        opened = {index: self._open(index) for index in dict.fromkeys(batch["index"])}
        return {
            "index": list(batch["index"]),
            "prompt": [opened[index].messages for index in batch["index"]],
            "images": [opened[index].images for index in batch["index"]],
        }

    def _open(self, index: int) -> Row:
        if index not in self._opened:
            self._opened[index] = self.rows(index)
            while len(self._opened) > self.keep:
                self._opened.popitem(last=False)
        return self._opened[index]


class _RewardColumns:
    """TRL calls one function a reward; the completions are read and judged once, at the first of them."""

    def __init__(self, scorer: RewardScorer, policy: Policy) -> None:
        self.scorer, self.policy = scorer, policy
        self._for: Any = None
        self._scores: list[Mapping[str, float | None]] = []

    def functions(self) -> list[Callable[..., list[float | None]]]:
        """One function a reward, named after it: TRL logs it under that name."""
        return [self._function(name) for name in self.scorer.weights]

    def _function(self, name: str) -> Callable[..., list[float | None]]:
        def reward(
            completions: list[Any],
            completion_ids: list[list[int]],
            index: list[int],
            log_metric: Callable[[str, float], None],
            **_: Any,
        ) -> list[float | None]:
            if self._for is not completion_ids:
                read = [self._read(text, ids) for text, ids in zip(completions, completion_ids, strict=True)]
                self._scores, figures = self.scorer.score(index, read)
                self._for = completion_ids
                for figure, value in figures.items():
                    log_metric(figure, value)
            return [score[name] for score in self._scores]

        reward.__name__ = name
        return reward

    def _read(self, completion: str | list[Mapping[str, str]], ids: list[int]) -> Completion:
        # Unsloth hands prompts with pictures over as text (models/rl_replacements.py), TRL as a conversation.
        text = completion if isinstance(completion, str) else completion[0]["content"]
        return Completion(text, len(ids), ids[-1] != self.policy.turn_end.id)
