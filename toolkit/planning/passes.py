"""Cost of passes of a model: FLOPs, bytes and kernel launches.

FLOPs follow ``toolkit.runfolder.usage.counters``, with the products of attention added. Bytes and launches of one layer
are sums over its operations. Their coefficients were counted with torch's dispatcher on layers of Gemma 3 and Qwen3-VL
with peft's LoRA, bfloat16 parameters and a float32 adapter, on the meta device. They agree with that count to 10 %.
"""

from dataclasses import dataclass

from toolkit.planning.activations import language_names, tower_names
from toolkit.planning.architecture import Architecture, Linear, Stack
from toolkit.planning.stages import Setting
from toolkit.runfolder.usage.counters import ParameterCount

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
