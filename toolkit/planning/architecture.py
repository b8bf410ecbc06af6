"""What the memory of a model follows from: its layers, its vision tower, and how many weights stand where."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of equal transformer layers. Widths are in numbers a token."""

    layers: int
    width: int
    """Of the hidden state."""
    inner: int
    """Of the MLP between its two sides."""
    heads: int
    kv_heads: int
    """Heads of keys and values: fewer than ``heads`` with grouped-query attention (arXiv 2305.13245)."""
    head_width: int
    gated: bool
    """The MLP has a gate beside its first layer (arXiv 2002.05202): three inner tensors, not two."""
    norms: int = 2
    """Norms of the hidden state a layer: 4 in Gemma 3, else 2."""
    head_norms: bool = False
    """Queries and keys are normed too (Gemma 3, Qwen3)."""
    expanded: bool = False
    """Keys and values are repeated for every head before attention: where a mask of its own is needed."""

    @property
    def query(self) -> int:
        """Numbers of all queries of a token."""
        return self.heads * self.head_width

    @property
    def key(self) -> int:
        """Numbers of all keys of a token, and of its values."""
        return self.kv_heads * self.head_width


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower: its layers, and how a picture becomes patches and then tokens of the language model."""

    stack: Stack
    patch: int
    """Side of a patch in pixels."""
    channels: int = 3
    frames: int = 1
    """Copies of the picture that a patch holds: 2 in Qwen's towers, which read films too."""
    merge: int = 1
    """``merge`` x ``merge`` patches become one token."""
    side: int | None = None
    """Every picture becomes a square of so many pixels; None: pictures keep their size."""
    tokens: int | None = None
    """Every picture becomes so many tokens; None: by its size."""
    rotary: bool = False
    """Positions turn queries and keys, in float32 (Qwen's towers)."""
    layer_norm: bool = False
    """Its norms are torch's LayerNorm, whose output autocast makes float32."""
    hooked: bool = False
    """transformers finds its embeddings, and has them require gradients (``enable_input_require_grads``)."""
    deep: int = 0
    """Layers whose features go to the language model beside the last one's (Qwen3-VL)."""
    inner_tensors: int = 2
    """Tensors of the MLP's inner width that are alive at once in a forward pass: 3 of a gated one, or of quick_gelu."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Equal linear layers: ``count`` matrices of ``outputs`` x ``inputs``."""

    name: str
    """The last part of their names, as in ``lora.targets``."""
    inputs: int
    outputs: int
    count: int
    vision: bool
    quantised: bool
    """bitsandbytes takes them in 4bit and 8bit; the output head, among others, it leaves."""
    biases: int = 0
    """Bias numbers of all of them together."""

    @property
    def weights(self) -> int:
        """Of all of them together, without biases."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model as the memory formulas see it."""

    model_type: str
    parameters: int
    """Of the whole model; weights that two modules share count once."""
    vision_parameters: int
    """Of the vision tower alone."""
    linears: tuple[Linear, ...]
    language: Stack
    vocabulary: int
    sliding_window: int | None = None
    sliding_layers: int = 0
    """Layers that see the last ``sliding_window`` tokens alone."""
    vision: Tower | None = None

    @property
    def quantised(self) -> int:
        """Weights that bitsandbytes quantises."""
        return sum(one.weights for one in self.linears if one.quantised)

    @property
    def quantised_vision(self) -> int:
        """Those of them that belong to the vision tower."""
        return sum(one.weights for one in self.linears if one.quantised and one.vision)

    @property
    def largest(self) -> int:
        """Weights of the largest matrix that bitsandbytes quantises."""
        return max((one.inputs * one.outputs for one in self.linears if one.quantised), default=0)

    @property
    def tower_linears(self) -> tuple[Linear, ...]:
        """Linear layers inside the vision tower's layers: shapes that occur at least once a layer. A shape may have two
        entries, if some of its matrices are quantised and others are not.
        """
        if self.vision is None:
            return ()
        shapes = [(one.name, one.inputs, one.outputs) for one in self.linears if one.vision for _ in range(one.count)]
        often = {shape for shape, count in Counter(shapes).items() if count >= self.vision.stack.layers}
        return tuple(one for one in self.linears if one.vision and (one.name, one.inputs, one.outputs) in often)

    @property
    def tower_quantised(self) -> bool:
        """Whether bitsandbytes quantises layers of the vision tower. Unsloth keeps them in 16 bits."""
        return any(one.quantised for one in self.tower_linears)

    def adapted(self, targets: Sequence[str], vision: bool) -> list[Linear]:
        """The linear layers that a LoRA adapter goes on, as the backend chooses them: by the last part of their name in
        the language model, and, if asked, all of the vision tower.
        """
        return [one for one in self.linears if (vision if one.vision else one.name in targets)]

    def adapter_parameters(self, r: int, targets: Sequence[str], vision: bool) -> int:
        """r x (inputs + outputs) for each adapted matrix (Hu et al. 2021, arXiv 2106.09685, 4.1)."""
        return sum(r * (one.inputs + one.outputs) * one.count for one in self.adapted(targets, vision))
