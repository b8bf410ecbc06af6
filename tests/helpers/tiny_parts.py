"""Parts that small models of all families have in common: tokenizer, chat template and configurations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-untyped]
from transformers import AutoTokenizer

classes: Any = transformers  # its type hints lack many of its classes


@dataclass(frozen=True, slots=True)
class Parts:
    """What a family's builder returns: the processor, and the configuration of the model."""

    processor: Any
    config: Any


TEXT = "is the lung left or right clear bright dark image yes no a b c d answer question which tissue shows none of"
SIZE = 500
"""Size of the small vocabulary."""


class Words:
    """The words of a family's tokenizer: a small byte-level vocabulary, or that of another model.

    llama.cpp's converter rejects unknown vocabularies.

    Args:
        source: A folder with a tokenizer. None: the small vocabulary.

    Attributes:
        size: Tokens of the vocabulary, with those of the last tokenizer that was made of it.
    """

    def __init__(self, source: Path | None = None) -> None:
        self._source = source
        self.size = SIZE

    def tokenizer(self, special: Sequence[str], *, bos: str = "", eos: str = "<|im_end|>", **named: str) -> Any:
        """Return a tokenizer. ``named`` are tokens that a processor reads as attributes of its tokenizer."""
        known = list(dict.fromkeys(["<pad>", bos or eos, eos, *special, *named.values()]))
        more: dict[str, Any] = {"eos_token": eos, "pad_token": "<pad>", **({"bos_token": bos} if bos else {})}
        if named:
            more["extra_special_tokens"] = named
        if self._source is not None:
            tokenizer = AutoTokenizer.from_pretrained(self._source, **more)
            tokenizer.add_tokens(known, special_tokens=True)
            self.size = len(tokenizer)
            return tokenizer
        kept = [token for token in known if token not in ("<pad>", bos, eos, *named.values())]
        if kept and not named:
            more["additional_special_tokens"] = kept
        return classes.PreTrainedTokenizerFast(tokenizer_object=_train(known), **more)

    def language(self, kind: str = "", **more: Any) -> dict[str, Any]:
        """Return the configuration of a language model. ``kind`` is its model_type."""
        return {**LANGUAGE, "vocab_size": self.size, **({"model_type": kind} if kind else {}), **more}


def _train(known: Sequence[str]) -> Tokenizer:
    """Return a byte-level tokenizer with these special tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 100, special_tokens=[*known], initial_alphabet=alphabet)
    inner.train_from_iterator([TEXT] * 3, trainer)
    return inner


def chat_template(image: str, *, bos: str = "", start: str = "<|im_start|>ROLE\n", end: str = "<|im_end|>\n") -> str:
    """Return a chat template. ``ROLE`` in ``start`` becomes the role of a turn."""
    before = "{{ '" + start.replace("\n", "\\n").replace("ROLE", "' + ROLE + '") + "' }}"
    part = "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}".replace("IMAGE", image)
    turn = before.replace("ROLE", "turn['role']") + "{% for part in turn['content'] %}" + part + "{% endfor %}" + end
    answer = "{% if add_generation_prompt %}" + before.replace("ROLE", "'assistant'") + "{% endif %}"
    return bos + "{% for turn in messages %}" + turn + "{% endfor %}" + answer


LANGUAGE: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # smaller weights hardly let an answer depend on an image
    "pad_token_id": 0,
}
TOWER: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": 0.2,
}
SQUARE = {"height": 56, "width": 56}


def tower(kind: str, **more: Any) -> dict[str, Any]:
    """Return the configuration of a vision tower. ``kind`` is its model_type."""
    return {**TOWER, "model_type": kind, **more}
