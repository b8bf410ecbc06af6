"""A cache of the outputs of a frozen vision tower, so that each distinct image passes through the tower once.

A GRPO step uses the features of an image in its rollout, in each pass for log-probabilities and in the update, each
time once per completion. A frozen tower computes the same features every time.

The cache replaces ``tower.forward`` by an instance attribute. Parameter names, hooks, peft and saving are unaffected.
An image is recognised by its pixels, which are compared exactly, so that no key has to pass through the trainer.

The tower's own ``forward`` runs as usual if the tower is trained or adapted, if its output depends on random numbers,
if an argument beside pixels and grid is a tensor, and if a field of the output cannot be divided by image. Such calls
are counted and logged (``usage.note_bypass``).
"""

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.utils.generic import ModelOutput

from toolkit.models.families import VISION
from toolkit.runfolder.usage import note_bypass

GRID = "grid_thw"
"""Argument of towers that get the patches of all images in one tensor: time, height and width of each image."""

_NO_EFFECT = ("use_cache",)
"""Arguments for the language model, which some families pass to the tower too."""


@dataclass(slots=True, eq=False)
class _Image:
    """One image in the cache.

    Attributes:
        key: What its features depend on beside the pixels: dtype, device, autocast, grid and options of the call.
        pixels: Shape (1, channels, height, width), or (patches, values) for towers that get a grid.
        grid: Time, height and width in patches, shape (1, 3), or None.
        output: Its part of each field of the tower's output. Empty until it is computed.
    """

    key: tuple[object, ...]
    pixels: torch.Tensor
    grid: torch.Tensor | None
    output: dict[str, Any] = field(default_factory=dict)


class VisionCache:
    """The cache of one vision tower, in use from its creation until ``remove``.

    It grows by each distinct image until ``clear``.

    Args:
        tower: The vision tower.

    Attributes:
        computed: The number of images that passed through the tower.
        reused: The number of images whose features were reused.
        last: Images and patches that the last call computed. None: the call did not use the cache.
    """

    def __init__(self, tower: nn.Module) -> None:
        self.computed = self.reused = 0
        self.last: tuple[int, int] | None = None
        self._tower, self._forward = tower, tower.forward
        parameters = inspect.signature(tower.forward).parameters
        self._names = list(parameters)
        self._not_none = {name for name, one in parameters.items() if one.default is not None}
        self._images: list[_Image] = []
        self._output_type: type[ModelOutput] | None = None
        self._indivisible = ""

        replace_forward(tower, self._call).vision_cache = self

    def clear(self) -> None:
        """Free the features of all images."""
        self._images.clear()

    def remove(self) -> None:
        """Restore the tower's own ``forward``, and free the features."""
        self._tower.forward = self._forward
        self.clear()

    def _call(self, fields: dict[str, Any]) -> Any:
        reason = self._indivisible or self._changing() or self._unknown(fields)
        found, new = ([], []) if reason else self._find(self._read(fields))
        self.last = (0, 0)
        if new and not self._compute(new, fields):
            reason = self._indivisible
        if reason or not found:
            self.last = None
            if reason:
                note_bypass("vision cache", reason)
            return self._forward(**fields)
        self.computed += len(new)
        self.reused += len(found) - len(new)
        self._images += new
        assert self._output_type is not None
        names = found[0].output
        return self._output_type(**{name: _join([image.output[name] for image in found]) for name in names})

    def _changing(self) -> str:
        """Return why equal images may have different features. Empty: the tower is frozen."""
        # An adapter can be switched off, frozen or not, and the arguments of the call do not show it.
        if any(isinstance(module, BaseTunerLayer) for module in self._tower.modules()):
            return "the tower has an adapter"
        if any(parameter.requires_grad for parameter in self._tower.parameters()):
            return "the tower is trained"
        return "the tower has active dropout or batch normalisation" if is_random(self._tower) else ""

    def _unknown(self, fields: Mapping[str, Any]) -> str:
        """Return which argument is unknown to the cache. Empty: none is."""
        pixels = fields.get(self._names[0])
        if not isinstance(pixels, torch.Tensor) or pixels.requires_grad:
            return f"{self._names[0]} is no tensor, or has a gradient"
        unknown = [
            name
            for name, value in self._options(fields).items()
            if not (value is None or isinstance(value, bool | int | float | str))
        ]
        return f"unknown argument {', '.join(sorted(unknown))}" if unknown else ""

    def _options(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments beside pixels and grid. None is left out where it is the default."""
        return {
            name: value
            for name, value in fields.items()
            if name not in (self._names[0], GRID, *_NO_EFFECT) and not (value is None and name not in self._not_none)
        }

    def _read(self, fields: Mapping[str, Any]) -> list[_Image]:
        """Return the images of a call."""
        pixels, grid, options = fields[self._names[0]], fields.get(GRID), self._options(fields)
        device = pixels.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (pixels.dtype, pixels.device, autocast, *sorted(options.items()))
        if grid is None:
            return [_Image(key, own, None) for own in pixels.split(1)]
        each = zip(pixels.split(grid.prod(-1).tolist()), grid.split(1), strict=True)
        return [_Image((*key, *shape.flatten().tolist()), own, shape) for own, shape in each]

    def _find(self, images: Sequence[_Image]) -> tuple[list[_Image], list[_Image]]:
        """Return the images in the cache or in the call that have the same pixels, and those that must be computed."""
        found, new = list[_Image](), list[_Image]()
        for image in images:
            known = (other for other in (*self._images, *new) if other.key == image.key)
            same = next((other for other in known if torch.equal(other.pixels, image.pixels)), None)
            if same is None:
                new.append(image)
            found.append(same or image)
        return found, new

    def _compute(self, images: Sequence[_Image], fields: Mapping[str, Any]) -> bool:
        """Compute the outputs of images. Return False if a field cannot be divided by image."""
        # Features that were computed in inference mode could not be used in training.
        with torch.inference_mode(mode=False), torch.no_grad():
            for image in images:
                image.pixels = image.pixels.clone()
            inputs = {self._names[0]: torch.cat([image.pixels for image in images])}
            if images[0].grid is not None:
                inputs[GRID] = torch.cat([image.grid.clone() for image in images if image.grid is not None])
            output = self._forward(**{**fields, **inputs})
            divisions = self._divisions(images)
            parts = {name: _divide(value, divisions) for name, value in _fields(output).items()}
        undivided = [name for name, part in parts.items() if part is None]
        if undivided or not parts:
            named = ", ".join(undivided) or type(output).__name__
            self._indivisible = f"the tower's output {named} cannot be divided by image"
            return False
        for name, part in parts.items():
            for image, own in zip(images, part or (), strict=True):
                image.output[name] = own
        self._output_type = type(output)
        self.last = len(images), _patches(images, output)
        return True

    def _divisions(self, images: Sequence[_Image]) -> list[list[int]]:
        """Return the possible lengths of each image in a tensor of the output."""
        if images[0].grid is None:
            return [[1] * len(images)]
        patches = [len(image.pixels) for image in images]
        merged = int(getattr(self._tower, "spatial_merge_size", 1)) ** 2
        return [patches, [count // merged for count in patches]]


def cache_frozen_vision(model: Any) -> VisionCache | None:
    """Cache the features of images from now on, if the model has a vision tower. An earlier cache is removed."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    tower = find_tower(whole)
    if tower is None:
        if getattr(whole.config, "vision_config", None) is not None:
            note_bypass("vision cache", "the tower has an unknown name")
        return None
    if (earlier := vision_cache_of(tower)) is not None:
        earlier.remove()
    return VisionCache(tower)


def find_tower(model: nn.Module) -> nn.Module | None:
    """Return the vision tower of a model without an adapter's wrapper. None: it has none, or an unknown name."""
    return next((module for name, module in model.named_modules() if VISION.search(f"{name}.")), None)


def vision_cache_of(tower: nn.Module) -> VisionCache | None:
    """Return the cache of a vision tower, if it has one."""
    return getattr(tower.forward, "vision_cache", None)


def replace_forward(module: Any, call: Callable[[dict[str, Any]], Any]) -> Any:
    """Replace the ``forward`` of one module by a function of its arguments by name. Return the function.

    ``generate`` reads the signature of ``forward``, and TRL expects a bound method.
    """
    before = module.forward
    names = list(inspect.signature(before).parameters)

    @functools.wraps(getattr(before, "__func__", before))
    def forward(_: Any, *arguments: Any, **options: Any) -> Any:
        return call(dict(zip(names, arguments, strict=False)) | options)

    module.forward = types.MethodType(forward, module)
    return forward


def is_random(module: nn.Module) -> bool:
    """Return whether equal inputs can have different outputs: dropout or batch normalisation in training mode."""
    return any(part.training and _is_random_layer(part) for part in module.modules())


def _is_random_layer(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Dropout):
        return layer.p > 0
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return True
    # Attention layers of transformers have the probability as a number.
    return any(
        isinstance(p := getattr(layer, name, None), float) and p > 0 for name in ("dropout", "attention_dropout")
    )


def _fields(output: Any) -> dict[str, Any]:
    """Return the fields of a tower's output. Empty: it is not an output of transformers with named fields."""
    return (
        {name: value for name, value in output.items() if value is not None} if isinstance(output, ModelOutput) else {}
    )


def _divide(value: Any, divisions: Sequence[Sequence[int]]) -> list[Any] | None:
    """Return the part of each image. None: the length fits no division."""
    if isinstance(value, torch.Tensor):
        sizes = next((sizes for sizes in divisions if value.ndim and len(value) == sum(sizes)), None)
        return None if sizes is None else [part.clone() for part in value.split(list(sizes))]
    if not isinstance(value, list | tuple):
        return None
    parts = [_divide(inner, divisions) for inner in value]
    if any(part is None for part in parts):
        return None
    return [type(value)(own) for own in zip(*(part or [] for part in parts), strict=True)]


def _join(parts: Sequence[Any]) -> Any:
    """Return a field of the output for the images of a call. The inverse of ``_divide``."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return type(parts[0])(_join(column) for column in zip(*parts, strict=True))


def _patches(images: Sequence[_Image], output: ModelOutput) -> int:
    if images[0].grid is not None:
        return sum(len(image.pixels) for image in images)
    hidden = output[0]
    return int(hidden.shape[:-1].numel())
