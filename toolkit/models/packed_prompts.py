"""One row for a prompt and all its completions, where each completion attends to the prompt and to itself.

A forward and backward pass over the completions of a prompt computes the same prompt once per completion. A packed row
has the prompt once, followed by the tokens of each completion. The mask hides the completions from each other, and the
positions of each continue those of the prompt. So every token has the same inputs as in a row of its own, and
log-probabilities and gradients are equal up to rounding. With dropout, the completions of a prompt use the same random
numbers of the prompt, so gradients are equal in expectation.

The models take such a row by their public arguments: masks of four axes, position ids, and the places of the logits.
Rows have one prompt if its tokens, masks and images are equal, so that groups may have any size. Padding is left out.

Axes: R rows of the call, N completions of one prompt, T tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from toolkit.models.families import IMAGE_BLOCKS
from toolkit.models.shared_prefill import NOT_ASSIGNED, first_equal_rows, has_equal_rows, images_by_row, select_rows
from toolkit.runfolder.usage import note_bypass

_BY_ROW = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_KNOWN = frozenset({*_BY_ROW, "pixel_values", "image_grid_thw", "logits_to_keep", "use_cache"})
_MASK_FOR_ALL_LAYERS = ("qwen3_vl",)
"""Model types that take one mask. Others take a mask for each type of layer."""
_Fields = Mapping[str, Any]


def pack_prompts(model: Any) -> Callable[..., Any]:
    """Return a function with the arguments and the logits of ``model``, which computes each distinct prompt once.

    Calls whose prompts all differ go to the model as they are. So do calls with unknown arguments or with images that
    cannot be assigned to rows. These are counted and logged (``usage.note_bypass``).

    Args:
        model: A model whose type is in ``packing.PACKABLE``, with or without the wrappers of peft and accelerate. Its
            calls have tokens of shape (rows, prompt and completion), their mask, and as ``logits_to_keep`` the number
            of tokens of a completion, plus one. Prompts are padded on the left, completions on the right.
    """
    return partial(_forward, model)


def _forward(model: Any, **fields: Any) -> Any:
    tokens_RT = fields["input_ids"]
    end = tokens_RT.shape[1] - (fields["logits_to_keep"] - 1)
    prompts = {
        name: value[:, :end] if name in _BY_ROW and value is not None else value for name, value in fields.items()
    }
    whole = _unwrap(model)
    unknown = sorted(name for name, value in fields.items() if name not in _KNOWN and value is not None)
    images = None if unknown else images_by_row(whole.config, prompts)
    if images is None:
        if has_equal_rows(prompts["input_ids"]):
            note_bypass("packed prompts", f"unknown argument {', '.join(unknown)}" if unknown else NOT_ASSIGNED)
        return model(**fields)
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(first_equal_rows(prompts, images)):
        groups.setdefault(first, []).append(row)
    if len(groups) == len(tokens_RT):
        return model(**fields)
    parts = []
    for first, rows in groups.items():
        mask_NT = fields["attention_mask"][rows, end:].bool()
        packed = _Packed.of(select_rows(prompts, images, [first]), tokens_RT[rows, end:], mask_NT)
        parts.append(packed.logits(model, whole))
    if len(parts) == 1:
        return SimpleNamespace(logits=parts[0])
    order = [row for rows in groups.values() for row in rows]
    return SimpleNamespace(logits=torch.cat(parts)[[order.index(row) for row in range(len(order))]])


@dataclass(frozen=True, slots=True)
class _Packed:
    """A prompt and its completions in one row, without padding.

    Attributes:
        prompt: The model's arguments for the prompt alone, with one row.
        tokens_T: The tokens.
        owner_T: 0 for the prompt, otherwise the number of the completion.
        order_T: The place of each token in an unpacked row.
        logits_NT: For each completion, the places whose logits are computed: the end of the prompt and each token. For
            padding this is the end of the prompt, because its logits are not used.
    """

    prompt: _Fields
    tokens_T: torch.Tensor
    owner_T: torch.Tensor
    order_T: torch.Tensor
    logits_NT: torch.Tensor

    @classmethod
    def of(cls, prompt: _Fields, tokens_NT: torch.Tensor, mask_NT: torch.Tensor) -> "_Packed":
        """Pack the completions that ``mask_NT`` leaves after a prompt with padding."""
        real_T = prompt["attention_mask"][0].bool()
        prompt = {
            name: value[:, real_T] if name in _BY_ROW and value is not None else value for name, value in prompt.items()
        }
        # Places count the padding, as positions of an unpacked row do. Shifted positions would be rounded differently.
        places_T = torch.arange(len(real_T) + tokens_NT.shape[1], device=tokens_NT.device)
        before_T, after_T = places_T[: len(real_T)], places_T[len(real_T) :]
        owner_NT = torch.arange(1, len(tokens_NT) + 1, device=tokens_NT.device)[:, None].expand_as(tokens_NT)
        end = int(real_T.sum()) - 1
        packed_NT = (end + mask_NT.flatten().cumsum(0)).view_as(tokens_NT)
        return cls(
            prompt=prompt,
            tokens_T=torch.cat([prompt["input_ids"][0], tokens_NT[mask_NT]]),
            owner_T=torch.cat([torch.zeros_like(before_T[real_T]), owner_NT[mask_NT]]),
            order_T=torch.cat([before_T[real_T], after_T.expand_as(tokens_NT)[mask_NT]]),
            logits_NT=torch.cat([torch.full_like(packed_NT[:, :1], end), packed_NT.where(mask_NT, end)], dim=1),
        )

    def logits(self, model: Any, whole: Any) -> torch.Tensor:
        """Return the logits of each completion, as the model returns them for unpacked rows.

        Args:
            model: The model to call.
            whole: The same model without wrappers.
        """
        images = {name: self.prompt.get(name) for name in ("pixel_values", "image_grid_thw")}
        images = {name: value for name, value in images.items() if value is not None and len(value)}
        found: torch.Tensor = model(
            input_ids=self.tokens_T[None],
            attention_mask=self._masks(whole),
            position_ids=self._positions(whole),
            logits_to_keep=self.logits_NT.flatten(),
            use_cache=False,
            **images,
        ).logits
        return found.view(*self.logits_NT.shape, -1)

    def _masks(self, whole: Any) -> Any:
        """Return which tokens each token attends to, as transformers does for unpacked rows."""
        config, model_type = whole.config.get_text_config(), whole.config.model_type
        query_T, key_T = self.order_T[:, None], self.order_T[None]
        seen_TT = (self.owner_T == 0)[None] | (self.owner_T[:, None] == self.owner_T[None])
        seen_TT = seen_TT & (key_T <= query_T)
        if model_type in IMAGE_BLOCKS:
            seen_TT = seen_TT | self._same_image()
        full = _for_attention(seen_TT, whole)
        if model_type in _MASK_FOR_ALL_LAYERS:
            return full
        masks = {"full_attention": full}
        if "sliding_attention" in config.layer_types:
            near_TT = query_T - key_T < config.sliding_window
            masks["sliding_attention"] = _for_attention(seen_TT & near_TT, whole)
        return masks

    def _same_image(self) -> torch.Tensor:
        """Return which pairs of tokens belong to one image, whose tokens attend to each other in both directions."""
        block_T = torch.full_like(self.owner_T, -1)
        types = self.prompt.get("token_type_ids")
        if types is not None:
            is_image_T = types[0] == 1
            starts_T = is_image_T & ~torch.nn.functional.pad(is_image_T, (1, 0))[:-1]
            block_T[: len(is_image_T)] = torch.where(is_image_T, starts_T.cumsum(0), -1)
        return (block_T[:, None] == block_T[None]) & (block_T >= 0)

    def _positions(self, whole: Any) -> torch.Tensor:
        """Return the positions, shape (1, tokens). Qwen's have an axis for time, height and width before them."""
        if not hasattr(whole.model, "get_rope_index"):
            return self.order_T[None]
        types, grid = self.prompt.get("mm_token_type_ids"), self.prompt.get("image_grid_thw")
        if types is None or grid is None:
            return self.order_T.expand(3, 1, -1)
        positions, offset = whole.model.get_rope_index(
            self.prompt["input_ids"], mm_token_type_ids=types, image_grid_thw=grid
        )
        length = types.shape[1]
        after_T = self.order_T[length:] - self.order_T[length - 1] + length - 1 + offset[0, 0]
        return torch.cat([positions, after_T.expand(3, 1, -1)], dim=-1)


def _unwrap(model: Any) -> Any:
    """Return the model of transformers inside the wrappers of accelerate and peft."""
    inner = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _for_attention(seen_TT: torch.Tensor, whole: Any) -> torch.Tensor:
    """Return a mask of four axes: True where attention may look. Eager attention adds its mask to the scores."""
    mask = seen_TT[None, None]
    if whole.config.get_text_config()._attn_implementation != "eager":
        return mask
    dtype = whole.get_input_embeddings().weight.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
