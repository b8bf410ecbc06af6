"""Text towers: from prompts to feature vectors, and the loading of one half of a CLIP or SigLIP model.

"words" averages trained word embeddings and needs no download. Any other encoder is the folder or Hub name of a
Transformers text model, or of a CLIP or SigLIP model, whose text half is then used. It is frozen by default.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ModelError, TrainingError
from toolkit.models.model_config import read_configuration
from toolkit.models.weight_files import model_weights

WORDS = "words"
_BATCH = 64


@dataclass(frozen=True, slots=True)
class TextSettings:
    """Which text model reads the prompts. ``width`` is that of word embeddings. None freezes pretrained models."""

    encoder: str = WORDS
    revision: str | None = None
    width: int = 32
    frozen: bool | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether the model's parameters stay as they are."""
        return self.encoder != WORDS if self.frozen is None else self.frozen


class TextTower(nn.Module):
    """A text model that reads each distinct prompt once per call, or once at all if it is frozen.

    Attributes:
        num_features: Length of a feature vector.
        frozen: Whether the model is never trained.
    """

    def __init__(self, reader: "WordReader | TextReader", frozen: bool) -> None:
        super().__init__()
        self.reader, self.frozen, self.num_features = reader, frozen, reader.num_features
        self._known: dict[str, Tensor] = {}
        if frozen:
            self.reader.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "TextTower":
        """Set train mode, except for a frozen model: its dropout stays off."""
        super().train(mode)
        if self.frozen:
            self.reader.eval()
        return self

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Return features_NF of the prompts."""
        distinct = list(dict.fromkeys(prompts))
        index = {text: position for position, text in enumerate(distinct)}
        features_DF = self._remembered(distinct) if self.frozen else self.reader(distinct)
        return features_DF[[index[text] for text in prompts]]

    def _remembered(self, distinct: Sequence[str]) -> Tensor:
        new = [text for text in distinct if text not in self._known]
        with torch.no_grad():
            for start in range(0, len(new), _BATCH):
                batch = new[start : start + _BATCH]
                self._known.update(zip(batch, self.reader(batch).cpu(), strict=True))
        device = next(self.reader.parameters()).device
        return torch.stack([self._known[text] for text in distinct]).to(device)


def build_text_tower(settings: TextSettings, vocabulary: Sequence[str], seed: int) -> TextTower:
    """Return the text tower. ``vocabulary`` and ``seed`` are used by word embeddings only.

    Raises:
        ModelError: The model cannot be loaded, or word embeddings are to be frozen.
    """
    if settings.encoder != WORDS:
        return TextTower(TextReader(settings), settings.is_frozen)
    if settings.is_frozen:
        raise ModelError(
            "imagegen.random_encoder_frozen",
            "word embeddings with random parameters must be trained",
            place=WORDS,
            value="frozen = true",
            remedy="Set frozen to false, or name a pretrained encoder.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TextTower(WordReader(vocabulary, settings.width), frozen=False)


def words_of(text: str) -> list[str]:
    """Return the words of a prompt in lower case. Punctuation separates them.

    >>> words_of("Chest CT: 3-mm nodule")
    ['chest', 'ct', '3', 'mm', 'nodule']
    """
    return re.findall(r"[^\W_]+", text.casefold())


def vocabulary_of(prompts: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted words of the prompts. A checkpoint of word embeddings needs the same vocabulary."""
    return tuple(sorted({word for text in set(prompts) for word in words_of(text)}))


class WordReader(nn.Module):
    """The mean of word embeddings. All words outside the vocabulary have one embedding, which is never trained."""

    words_hash: Tensor

    def __init__(self, vocabulary: Sequence[str], width: int) -> None:
        super().__init__()
        self.index = {word: position for position, word in enumerate(vocabulary)}
        self.num_features = width
        self.embeddings = nn.EmbeddingBag(len(vocabulary) + 1, width, mode="mean")
        digest = hashlib.sha256("\n".join(vocabulary).encode()).digest()
        self.register_buffer("words_hash", torch.tensor(int.from_bytes(digest[:7], "big")))
        self.register_load_state_dict_pre_hook(_check_words)  # type: ignore[no-untyped-call]

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Return features_NF."""
        bags = [[self.index.get(word, len(self.index)) for word in words_of(text)] for text in prompts]
        device = self.words_hash.device
        lengths = torch.tensor([0, *map(len, bags)], device=device)
        codes = torch.tensor([code for bag in bags for code in bag], dtype=torch.long, device=device)
        features: Tensor = self.embeddings(codes, lengths.cumsum(0)[:-1])
        return features


class TextReader(nn.Module):
    """A Transformers text model with its tokenizer: its own pooling, or the mean over the tokens without one."""

    def __init__(self, settings: TextSettings) -> None:
        from transformers import AutoTokenizer

        super().__init__()
        self.name = settings.encoder
        self.model, config = load_half(settings.encoder, settings.revision, "text_config", "text")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(settings.encoder, revision=settings.revision)
        except (OSError, ValueError) as error:
            raise ModelError(
                "imagegen.tokenizer_missing", "the text encoder must have a tokenizer", place=self.name
            ) from error
        self.limit = min(int(config.max_position_embeddings), self.tokenizer.model_max_length)
        # SigLIP is trained without a mask, on prompts padded to the full length.
        self.full_length = config.model_type.startswith("siglip")
        self.num_features = int(config.hidden_size)

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Return features_NF.

        Raises:
            ModelError: A prompt has more tokens than the model takes.
        """
        self.check(prompts)
        padding, length = ("max_length", self.limit) if self.full_length else (True, None)
        batch = self.tokenizer(list(prompts), padding=padding, max_length=length, return_tensors="pt")
        ids = batch["input_ids"].to(next(self.parameters()).device)
        mask = torch.ones_like(ids) if self.full_length else batch["attention_mask"].to(ids.device)
        model: Any = self.model
        output = model(input_ids=ids, attention_mask=mask)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled
        features: Tensor = (output.last_hidden_state * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return features

    def check(self, prompts: Iterable[str]) -> None:
        """Raise ModelError if a prompt has more tokens than the model takes. Nothing is truncated."""
        for text in prompts:
            count = len(self.tokenizer(text)["input_ids"])
            if count > self.limit:
                raise ModelError(
                    "imagegen.prompt_too_long",
                    f"a prompt must have at most {self.limit} tokens for {self.name}",
                    place="prompt",
                    value=f"{count} tokens: {text}",
                    remedy="Shorten the prompt.",
                )


def load_half(name: str, revision: str | None, half: str, what: str) -> tuple[nn.Module, Any]:
    """Return a model with its config. Of a model whose config has ``half``, only that half is loaded.

    Raises:
        ModelError: There is no such model, it is pickled or damaged, or it lacks parameters.
    """
    from transformers import AutoConfig, AutoModel

    from toolkit.models.loading import UNUSABLE

    folder = Path(name)
    try:
        if (folder / "config.json").exists():
            read_configuration(folder / "config.json")
            model_weights(folder)
        config = AutoConfig.from_pretrained(name, revision=revision)
        config = getattr(config, half, config)
        # The log would list each parameter of the half that is left out.
        with _quiet("transformers.modeling_utils"):
            model, found = AutoModel.from_pretrained(
                name, config=config, revision=revision, use_safetensors=True, output_loading_info=True
            )
    except (OSError, *UNUSABLE) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            "imagegen.encoder_not_loadable",
            f"the encoder must be a Transformers {what} model in safetensors files",
            place=name,
            remedy=f"Correct the name, or download it first. Transformers says: {reason}",
        ) from error
    if found["missing_keys"]:
        raise ModelError(
            "imagegen.encoder_parameters_missing",
            "the encoder's files must have all of its parameters",
            place=name,
            value=sorted(found["missing_keys"])[:3],
        )
    return model, config


def _check_words(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    saved = state.get(f"{prefix}words_hash")
    if saved is not None and int(saved) != int(module.words_hash):  # type: ignore[arg-type]
        raise TrainingError(
            "imagegen.checkpoint_vocabulary_differs",
            "a checkpoint must have the vocabulary of the model it is loaded into",
            place="word embeddings",
            remedy="Use the training prompts of the run that wrote the checkpoint.",
        )


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
