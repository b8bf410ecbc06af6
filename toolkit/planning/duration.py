"""Duration of stages on a GPU: seconds of an optimizer step or an evaluation, as a range.

A pass takes the longer of two times. The GPU time is FLOPs at the rate of matrix products, plus bytes at the rate of
GPU memory. The host time is the number of kernel launches times the time for each. Passes are consecutive, so their
times add up.

Each rate has a slow and a fast end, a factor of 2 apart, around a middle. Two published runs fit the middle: Unsloth's
notebook for SFT of Gemma 3 4B on a T4 (20.4 s per step) fits the rate of float32 products, and the MedGemma notebook
for SFT on an A100 40 GB (18.8 s per step) fits the rate of tensor cores. Rates of GPU memory and host are assumptions.

FLOPs follow ``toolkit.runfolder.usage.counters``, with the products of attention added. Bytes and launches of one layer
are sums over its operations. Their coefficients were counted with torch's dispatcher on layers of Gemma 3 and Qwen3-VL
with peft's LoRA, bfloat16 parameters and a float32 adapter, on the meta device. They agree with that count to 10 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from toolkit.models.families import family_of
from toolkit.models.image_tokens import Length
from toolkit.planning.activations import language_names, tower_names
from toolkit.planning.architecture import Architecture, Linear, Stack
from toolkit.planning.gpu import GpuFigures
from toolkit.planning.stages import Setting, Stage, Work
from toolkit.planning.tokens import Tokens, row_size
from toolkit.runfolder.usage.counters import ParameterCount

FLOAT32, TENSOR, BANDWIDTH = 0.9, 0.36, 0.75
"""Fraction of the data sheet's rate that is reached: float32 products, tensor cores, GPU memory. The first two are
fits, so they also absorb savings of Unsloth's fused kernels and work that the formulas leave out."""
LAUNCH = 15e-6
"""Host seconds for each kernel launch."""
PIXEL = 25e-9
"""CPU seconds for each pixel that the processor prepares."""
RANGE_FACTOR = 2**0.5
"""Factor between the middle and each end of a rate."""
SHORTEST = 2 / 3
"""Tokens of the longest completion of a batch at the fast end, relative to their limit. The slow end uses the limit.
With ``RANGE_FACTOR`` the upper end of a range is at most 3 times the lower end. Extra rollouts of GRPO, which only the
upper end has, come on top."""
ASSUMPTIONS = (
    f"assumed: {100 * FLOAT32:.0f} % of the data sheet's float32 rate, {100 * TENSOR:.0f} % of its tensor rate, "
    f"{100 * BANDWIDTH:.0f} % of its memory bandwidth, {1e6 * LAUNCH:.0f} microseconds a kernel launch, each within a "
    f"factor of {RANGE_FACTOR:.1f}",
    "the longest completion of a batch has from two thirds of max_completion_tokens to all of it. If completions are "
    "shorter, the stage is faster",
    "rows have the mean length of those that were counted",
    "not included: download, loading, the first compilation, checkpoints, export",
)
"""Assumptions of the ranges, for readers of a plan."""
PACKED = 0.53
"""Bytes of a parameter in nf4 with the scales of its block."""
NORM = {2: 40, 4: 28}
"""Bytes of a value -> bytes that a root-mean-square norm moves for each number of its input: one pass for each
operation, in float32, and copies to and from float32."""
LAYER_NORM = 8
"""The same for the layer norm of vision towers, which is one kernel."""
ROTATION, GATE = 30, 10
"""Bytes for each number of queries and keys for rotary positions, and for each number of the MLP's inner tensor."""
LORA_IN, LORA_OUT = {2: 10, 4: 4}, {2: 28, 4: 24}
"""Bytes of a value -> bytes that a float32 adapter moves for each number of a layer's input and output."""
SCORES = 22
"""Bytes that eager attention moves for each score."""
DROPOUT, BACKWARD = 1.3, 1.6
"""Bytes of a training forward pass with dropout, and of a backward pass, relative to a forward pass."""
LAYER_LAUNCHES, TOWER_LAUNCHES = 30, 16
"""Kernels of a layer besides norms and linear layers."""
NORM_LAUNCHES, LORA_LAUNCHES, DEQUANT_LAUNCHES, DROPOUT_LAUNCHES = 9, 6, 3, 3
BACKWARD_LAUNCHES = 1.2
"""Kernels of a backward pass, relative to a forward pass."""
PASS_LAUNCHES, TOKEN_LAUNCHES = 50, 260
"""Kernels of a pass outside its layers, and of sampling one token of every completion in a batch."""
LOGITS = 32
"""Bytes that a training pass moves for each logit: float32, log-softmax, and their gradients."""
FUSED_ROWS = {4: 7, 2: 32}
"""Bytes of a value -> positions up to which bitsandbytes multiplies with packed parameters. For more positions it
unpacks them first. In half precision its own limit depends on GPU and matrix, and is mostly higher."""


@dataclass(frozen=True, slots=True)
class Range:
    """A duration in seconds, from its lower to its upper end."""

    low: float
    high: float

    @property
    def seconds(self) -> tuple[float, float]:
        """Return both ends in seconds, to three digits."""
        return _short(self.low), _short(self.high)

    @property
    def hours(self) -> tuple[float, float]:
        """Return both ends in hours, to three digits."""
        return _short(self.low / 3600), _short(self.high / 3600)

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, times: float) -> "Range":
        return Range(self.low * times, self.high * times)


@dataclass(frozen=True, slots=True)
class StageTime:
    """Estimated duration of one stage.

    Attributes:
        step: The seconds of an optimizer step, or of one evaluation.
        steps: The number of optimizer steps of the stage, or of evaluations of the run.
        validation: The seconds of one validation within the stage.
        validations: The number of validations.
    """

    step: Range
    steps: int
    validation: Range = Range(0.0, 0.0)
    validations: int = 0

    @property
    def total(self) -> Range:
        """Return the duration of all steps and validations."""
        return self.step * self.steps + self.validation * self.validations

    def to_json(self) -> dict[str, object]:
        """Return the entry of plan.json."""
        found: dict[str, object] = {"seconds_per_step": list(self.step.seconds), "steps": self.steps}
        if self.validations:
            found |= {"seconds_per_validation": list(self.validation.seconds), "validations": self.validations}
        return {**found, "hours": list(self.total.hours)}


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs, bytes and kernel launches of some work. Costs of consecutive work add up."""

    flops: float = 0.0
    moved: float = 0.0
    """Bytes read from and written to GPU memory."""
    launches: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.moved + other.moved, self.launches + other.launches)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.moved * times, self.launches * times)


@dataclass(frozen=True, slots=True)
class Layers:
    """A stack of layers with its linear layers, as one pass uses it."""

    stack: Stack
    linears: tuple[Linear, ...]
    adapted: frozenset[str]
    """Names of the linear layers with an adapter."""
    vision: bool

    def weights(self, r: int, *, full: bool) -> ParameterCount:
        """Return the parameters of all matrices in the layers, with their adapters."""
        base = sum(one.weights for one in self.linears)
        lora = sum(r * (one.inputs + one.outputs) * one.count for one in self.linears if one.name in self.adapted)
        return ParameterCount(base + lora, base if full else lora)

    def bytes_a_position(self, value: int) -> float:
        """Return the bytes that a forward pass moves for each position, besides parameters and attention scores."""
        stack = self.stack
        norm = LAYER_NORM if self.vision else NORM[value]
        each = norm * stack.width * stack.norms + GATE * stack.inner + ROTATION * (stack.query + stack.key)
        each += norm * (stack.query + stack.key) if stack.head_norms else 0
        found = float(stack.layers * each)
        for one in self.linears:
            lora = (LORA_IN[value], LORA_OUT[value]) if one.name in self.adapted else (0, 0)
            found += one.count * ((value + lora[0]) * one.inputs + (value + lora[1]) * one.outputs)
        return found

    def launches(self, dropout: bool) -> float:
        """Return the kernels of a forward pass."""
        norms = self.stack.norms + (2 if self.stack.head_norms else 0)
        each = TOWER_LAUNCHES if self.vision else LAYER_LAUNCHES + NORM_LAUNCHES * norms
        lora = LORA_LAUNCHES + (DROPOUT_LAUNCHES if dropout else 0)
        products = sum(one.count * (1 + (lora if one.name in self.adapted else 0)) for one in self.linears)
        return self.stack.layers * each + products + PASS_LAUNCHES


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes of one model in one setting.

    Attributes:
        model: The model's architecture.
        setting: The memory setting of the stage, with a mean row in place of the longest.
        value: The bytes of an activation and of an unquantized parameter: 2 or 4.
        fused: The positions up to which 4-bit parameters are not unpacked. None: as the pinned bitsandbytes does.
    """

    model: Architecture
    setting: Setting
    value: int
    fused: int | None = None

    def rollout(self, rows: int, answer: float) -> tuple[Cost, Cost]:
        """Return the cost of prefill for ``rows`` prompts, and of generating ``answer`` tokens for each of them.

        Every token takes one pass, until the longest completion of the batch ends.
        """
        stack, prompt = self.model.language, self.setting.row.prompt
        head = Cost(self._head.forward(rows), self.value * self._head.all)
        read = self._forward(self._language, rows * prompt, prompt) + self._tower_forward(rows) + head
        seen = prompt + answer / 2
        cache = Cost(moved=2.0 * stack.layers * stack.key * self.value * seen * rows)
        token = self._forward(self._language, rows, seen) + head + cache + Cost(launches=TOKEN_LAUNCHES)
        return read, token * answer

    def training(self, rows: int, answer: float) -> Cost:
        """Return the cost of a forward and a backward pass over ``rows`` rows with ``answer`` answer tokens each.

        A packed row has ``answer`` tokens for each of its completions.
        """
        answer *= self.setting.packed
        length = self.setting.row.prompt + answer
        found = self._both(self._language, rows * length, length) + self._loss(rows * answer)
        tower = self._tower
        if tower is None or not (self.setting.lora_vision or self.setting.tuning == "full"):
            return found + self._tower_forward(rows)
        return found + self._both(tower, rows * self.setting.row.patches, self._patches_of_image)

    def reading(self, rows: int, answer: float) -> Cost:
        """Return the cost of a forward pass over prompt and answer, which a KL reference needs. See ``training``."""
        answer *= self.setting.packed
        length = self.setting.row.prompt + answer
        head = Cost(self._head.forward(rows * answer), self.value * self._head.all)
        return self._forward(self._language, rows * length, length) + self._tower_forward(rows) + head

    def pairs(self, pairs: int, answer: float) -> Cost:
        """Return the cost of DPO's passes over pairs: policy forward and backward, and the reference forward.

        Logits are computed at every position. A frozen tower computes each image once for both answers and both passes.
        """
        rows, length = 2 * pairs, self.setting.row.prompt + answer
        found = self._both(self._language, rows * length, length) + self._loss(rows * length)
        head = Cost(self._head.forward(rows * length), self.value * self._head.all)
        found = found + self._forward(self._language, rows * length, length) + head
        tower = self._tower
        if tower is None or not self.setting.lora_vision:
            return found + self._tower_forward(pairs)
        trained = self._both(tower, rows * self.setting.row.patches, self._patches_of_image)
        return found + trained + self._tower_forward(rows)

    @property
    def _head(self) -> ParameterCount:
        """Return the parameters of the language-model head."""
        size = self.model.vocabulary * self.model.language.width
        return ParameterCount(size, size if self.setting.tuning == "full" else 0)

    @property
    def _language(self) -> Layers:
        linears = tuple(o for o in self.model.linears if not o.vision and o.outputs != self.model.vocabulary)
        return Layers(self.model.language, linears, frozenset(language_names(self.model, self.setting)), vision=False)

    @property
    def _tower(self) -> Layers | None:
        """Return the layers of the vision tower.

        The merger of patches into tokens is left out: up to a tenth of the tower.
        """
        tower = self.model.vision
        if tower is None or not self.setting.row.patches:
            return None
        adapted = frozenset(tower_names(self.model, self.setting))
        return Layers(tower.stack, self.model.tower_linears, adapted, vision=True)

    @property
    def _patches_of_image(self) -> float:
        """Return the patches of one image. Attention in the tower stays within an image."""
        return self.setting.row.patches / max(1, self.setting.row.image_count)

    def _tower_forward(self, rows: int) -> Cost:
        tower = self._tower
        return (
            Cost() if tower is None else self._forward(tower, rows * self.setting.row.patches, self._patches_of_image)
        )

    def _forward(self, layers: Layers, positions: float, seen: float, *, trains: bool = False) -> Cost:
        """Return the cost of a forward pass of ``positions``, each of which attends to ``seen`` positions."""
        dropout = trains and bool(layers.adapted) and self.setting.dropout > 0
        stack, full = layers.stack, self.setting.tuning == "full"
        moved = layers.bytes_a_position(self.value) * positions * (DROPOUT if dropout else 1.0)
        read, launches = self._parameters(layers, positions)
        return Cost(
            layers.weights(self.setting.r, full=full).forward(positions) + self._attention(stack, positions, seen),
            moved + read + self._scores(stack, positions, seen),
            layers.launches(dropout) + launches,
        )

    def _both(self, layers: Layers, positions: float, seen: float) -> Cost:
        """Return the cost of a forward and a backward pass. Gradient checkpointing repeats the forward pass."""
        forward = self._forward(layers, positions, seen, trains=True)
        stack, full = layers.stack, self.setting.tuning == "full"
        read, unpacking = self._parameters(layers, positions)
        backward = Cost(
            layers.weights(self.setting.r, full=full).backward(positions) + 2 * self._attention(stack, positions, seen),
            BACKWARD * layers.bytes_a_position(self.value) * positions
            + read
            + 2 * self._scores(stack, positions, seen),
            BACKWARD_LAUNCHES * layers.launches(dropout=self.setting.dropout > 0) + unpacking,
        )
        return forward * (2 if self.setting.checkpointing else 1) + backward

    def _loss(self, positions: float) -> Cost:
        """Return the cost of logits and loss of the answer's positions, forward and backward."""
        head = self._head
        moved = 3.0 * self.value * head.all + LOGITS * self.model.vocabulary * positions
        return Cost(head.forward_backward(positions, checkpointing=False), moved, PASS_LAUNCHES)

    def _attention(self, stack: Stack, positions: float, seen: float) -> float:
        """Return the FLOPs of scores and weighted values in all layers. Causal masks and windows save none here."""
        return 4.0 * stack.layers * stack.query * positions * seen

    def _scores(self, stack: Stack, positions: float, seen: float) -> float:
        return float(SCORES * stack.layers * stack.heads) * positions * seen if self.setting.eager else 0.0

    def _parameters(self, layers: Layers, positions: float) -> tuple[float, float]:
        """Return the bytes of reading all parameters once, unpacked if they are quantized, and the kernels that unpack
        them."""
        fused = positions <= (FUSED_ROWS[self.value] if self.fused is None else self.fused)
        moved, launches = 0.0, 0.0
        for one in layers.linears:
            if not one.quantized or self.setting.precision in ("16bit", "32bit"):
                moved += self.value * one.weights
            elif self.setting.precision == "8bit":
                moved += one.weights
            else:
                moved += (PACKED if fused else PACKED + 2 * self.value) * one.weights
                launches += 0 if fused else DEQUANT_LAUNCHES * one.count
        return moved, launches


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates of a machine: FLOP/s, bytes/s, seconds for each kernel launch and for each pixel."""

    flops: float
    moved: float
    launch: float
    pixel: float

    def seconds(self, cost: Cost) -> float:
        """Return the duration of one kind of pass."""
        return max(cost.flops / self.flops + cost.moved / self.moved, cost.launches * self.launch)

    def faster(self, times: float) -> "Speed":
        """Return a machine that is ``times`` times as fast in every rate."""
        return Speed(self.flops * times, self.moved * times, self.launch / times, self.pixel / times)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Type of matrix products on one GPU."""

    name: str
    """bfloat16, float16 or float32."""

    @property
    def value(self) -> int:
        """Return the bytes of a number."""
        return 4 if self.name == "float32" else 2


def speeds(gpu: GpuFigures, arithmetic: Arithmetic) -> tuple[Speed, Speed]:
    """Return the fast and the slow end for a GPU."""
    peak = FLOAT32 * gpu.float32 if arithmetic.name == "float32" else TENSOR * gpu.tensor
    middle = Speed(1e12 * peak, 1e9 * BANDWIDTH * gpu.bandwidth, LAUNCH, PIXEL)
    return middle.faster(RANGE_FACTOR), middle.faster(1 / RANGE_FACTOR)


def arithmetic_of(gpu: GpuFigures, setting: Setting, model_type: str) -> Arithmetic:
    """Return the type of matrix products.

    Without bfloat16, the hf backend computes in float32. Unsloth computes in float16, but in float32 for models whose
    activations overflow in float16.
    """
    if setting.precision == "32bit":
        return Arithmetic("float32")
    if gpu.bf16:
        return Arithmetic("bfloat16")
    halved = setting.backend == "unsloth" and not family_of(model_type).overflows
    return Arithmetic("float16" if halved else "float32")


def mean_setting(setting: Setting, model: Architecture, tokens: Tokens) -> Setting:
    """Return the setting with a mean row of ``tokens`` in place of the longest."""
    lengths = [asdict(one) for one in tokens.lengths]
    parts = (round(float(np.mean([one[part] for one in lengths]))) for part in ("text", "images", "answer", "earlier"))
    return replace(setting, row=row_size(Length(*parts), model.vision, tokens.longest_sizes))


def stage_time(model: Architecture, setting: Setting, work: Work, gpu: GpuFigures) -> StageTime:
    """Return the duration of a stage on a GPU.

    Args:
        model: The model's architecture.
        setting: The memory setting of the stage, with a mean row.
        work: The steps, rows and answers of the stage.
        gpu: The figures of the GPU.
    """
    arithmetic = arithmetic_of(gpu, setting, model.model_type)
    passes = Passes(model, setting, arithmetic.value)
    fast, slow = speeds(gpu, arithmetic)
    fewest = replace(work, extra_rollouts=0)
    step = Range(_step(passes, fast, fewest, SHORTEST), _step(passes, slow, work, 1.0))
    if setting.stage == "evaluate":
        return StageTime(step, work.evaluations)
    if not (work.validations and setting.validated):
        return StageTime(step, work.steps)
    validation = Range(validate(passes, fast, work.validated, SHORTEST), validate(passes, slow, work.validated, 1.0))
    return StageTime(step, work.steps, validation, work.validations)


def stage_times(
    model: Architecture,
    settings: Mapping[Stage, Setting],
    work: Mapping[Stage, Work],
    gpus: Sequence[GpuFigures],
) -> dict[str, dict[Stage, StageTime]]:
    """Return GPU -> stage -> duration, for settings that have mean rows."""
    return {
        gpu.name: {
            name: stage_time(model, setting, work[name], gpu) for name, setting in settings.items() if name in work
        }
        for gpu in gpus
    }


def _step(passes: Passes, speed: Speed, work: Work, part: float) -> float:
    stage, answer = passes.setting.stage, part * passes.setting.answer_tokens
    if stage == "sft":
        return sft_step(passes, speed, work.samples)
    if stage == "dpo":
        return dpo_step(passes, speed, work.samples)
    if stage == "grpo":
        return grpo_step(passes, speed, answer, work.extra_rollouts)
    return evaluation(passes, speed, work.answers // max(1, work.evaluations), answer)


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def sft_step(passes: Passes, speed: Speed, rows: int) -> float:
    """Return the seconds of an optimizer step of ``rows`` rows in micro-batches of ``setting.rows``."""
    at_once = min(passes.setting.rows, rows)
    seconds = speed.seconds(passes.training(at_once, passes.setting.row.supervised))
    return math.ceil(rows / at_once) * seconds + rows * image_seconds(passes, speed)


def dpo_step(passes: Passes, speed: Speed, pairs: int) -> float:
    """Return the seconds of an optimizer step of ``pairs`` pairs in micro-batches of ``setting.rows`` rows."""
    at_once = min(passes.setting.rows // 2, pairs)
    seconds = speed.seconds(passes.pairs(at_once, passes.setting.row.answer))
    return math.ceil(pairs / at_once) * seconds + pairs * image_seconds(passes, speed)


def grpo_step(passes: Passes, speed: Speed, answer: float, extra_rollouts: int = 0) -> float:
    """Return the seconds of an optimizer step: a rollout of all completions at once, and an update in micro-batches.

    Args:
        passes: The passes of the stage.
        speed: The speed of the machine.
        answer: The tokens of the longest completion, to which the others are padded.
        extra_rollouts: The number of further rollouts, each of all completions.
    """
    setting = passes.setting
    completions = setting.concurrent
    read, write = passes.rollout(completions, answer)
    rollout = speed.seconds(read) + speed.seconds(write) + completions * image_seconds(passes, speed)
    passes_of_step = completions / (setting.rows * setting.packed)
    if setting.reference != "none":
        rollout += passes_of_step * speed.seconds(passes.reading(setting.rows, answer))
    update = passes_of_step * speed.seconds(passes.training(setting.rows, answer))
    return (1 + extra_rollouts) * rollout + update


def evaluation(passes: Passes, speed: Speed, answers: int, answer: float) -> float:
    """Return the seconds of generating ``answers`` completions in batches of ``setting.concurrent``."""
    read, write = passes.rollout(min(passes.setting.concurrent, answers), answer)
    batches = math.ceil(answers / passes.setting.concurrent)
    return batches * (speed.seconds(read) + speed.seconds(write)) + answers * image_seconds(passes, speed)


def validate(passes: Passes, speed: Speed, rows: int, part: float) -> float:
    """Return the seconds of one validation: greedy completions, and in SFT the loss of each row on its own.

    Args:
        passes: The passes of the stage. Its rows count as mean rows of the validation split.
        speed: The speed of the machine.
        rows: The validation rows.
        part: The tokens of the longest completion, relative to their limit.
    """
    concurrent, tokens = passes.setting.validated or (1, 0)
    generating = replace(passes, setting=replace(passes.setting, concurrent=concurrent))
    found = evaluation(generating, speed, rows, part * tokens)
    if passes.setting.stage == "grpo":
        return found
    return found + rows * (
        speed.seconds(passes.reading(1, passes.setting.row.supervised)) + image_seconds(passes, speed)
    )


def image_seconds(passes: Passes, speed: Speed) -> float:
    """Return the CPU seconds for the images of one row."""
    tower = passes.model.vision
    return 0.0 if tower is None else passes.setting.row.patches * tower.patch**2 * speed.pixel
