"""The training of selector, judge, policy and feature extractor: rows, whole epochs, and moves between devices.

All randomness of an epoch comes from the seed and the epoch's number, and the learning rate from the step's number. The
model, the optimizer, the best parameters and the records are therefore all that a resumed training needs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import DataError, TrainingError

Loss = Callable[[Tensor, torch.Generator], Tensor]
"""Loss of some rows, given as indices. The generator is for augmentation and sampling."""

_SEED_STRIDE = 100_003


@dataclass(frozen=True, slots=True, eq=False)
class RatedImages:
    """Ratings with their images, one row per rating.

    Attributes:
        images_NCHW: Images with 1 or 3 channels, in uint8 or in [0, 1]. ``as_floats`` gives both as floats.
        levels_N: Rank of each rating in the range of ratings, 0 for the lowest.
        weights_N: Weight of each rating, above 0.
        prompts: The prompt of each image.
        modalities: The modality of each image.
        groups: The patient or image of each rating. Bootstrap samples draw whole groups.
    """

    images_NCHW: Tensor
    levels_N: Tensor
    weights_N: Tensor
    prompts: tuple[str, ...]
    modalities: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        n = len(self.images_NCHW)
        sizes = [len(each) for each in (self.levels_N, self.weights_N, self.prompts, self.modalities, self.groups)]
        if any(size != n for size in sizes):
            raise ValueError(f"{n} images, but levels, weights, prompts, modalities and groups number {sizes}")
        if self.levels_N.is_floating_point():
            raise ValueError(f"levels must be integer ranks, got {self.levels_N.dtype}")
        as_bytes = self.images_NCHW.dtype == torch.uint8
        if n and not as_bytes and not (float(self.images_NCHW.min()) >= 0 and float(self.images_NCHW.max()) <= 1):
            raise ValueError("images must be in [0, 1]")
        if n and not (torch.isfinite(self.weights_N).all() and float(self.weights_N.min()) > 0):
            raise ValueError("weights must be finite and above 0")

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def take(self, rows: Sequence[int]) -> "RatedImages":
        """Return some of the rows, in the given order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        chosen = index.tolist()
        return RatedImages(
            self.images_NCHW[index],
            self.levels_N[index],
            self.weights_N[index],
            tuple(self.prompts[row] for row in chosen),
            tuple(self.modalities[row] for row in chosen),
            tuple(self.groups[row] for row in chosen),
        )


def as_floats(images_NCHW: Tensor) -> Tensor:
    """Return images in [0, 1] of images in uint8. Call it for a batch at a time: floats take four times the memory."""
    return images_NCHW.float() / 255 if images_NCHW.dtype == torch.uint8 else images_NCHW


def check_training_levels(levels_N: Tensor, n_levels: int) -> None:
    """Raise DataError if a level has no row to learn from, or a row has a level outside the range."""
    if n_levels < 2:
        raise ValueError(f"there must be 2 levels or more, got {n_levels}")
    present = set(levels_N.tolist())
    if outside := present - set(range(n_levels)):
        raise ValueError(f"levels must be from 0 to {n_levels - 1}, got {sorted(outside)}")
    if missing := sorted(set(range(n_levels)) - present):
        raise DataError(
            "imagegen.fitting_levels_missing",
            "the training split must have a rating of every level",
            place="ratings",
            value=f"no rating of rank {', '.join(map(str, missing))} (0 is the lowest of {n_levels})",
            remedy="Rate more images, or narrow rating_range.",
        )


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Settings of AdamW with a cosine schedule from ``learning_rate`` to 0."""

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch: the mean training loss, the loss on validation rows (None without) and the last learning rate."""

    epoch: int
    loss: float
    validation_loss: float | None
    learning_rate: float


@dataclass(frozen=True, slots=True, eq=False)
class FittingState:
    """The state of a fitting after an epoch, besides the parameters of its model.

    Attributes:
        optimizer: ``state_dict`` of the optimizer.
        records: the records of the finished epochs.
        best: the parameters with the lowest validation loss. None without validation rows.
    """

    optimizer: dict[str, Any]
    records: tuple[EpochRecord, ...]
    best: dict[str, Tensor] | None


class Fitting:
    """A training of ``module``, one epoch per call.

    Args:
        module: The module to train. Parameters without gradient are not changed.
        n_rows: Number of training rows.
        loss: Loss of a batch of rows.
        settings: Epochs, batches, optimizer and seed.
        validation_loss: Called after each epoch in eval mode without gradients. The parameters with the lowest one are
            restored by ``finish``.
    """

    def __init__(
        self,
        module: nn.Module,
        n_rows: int,
        loss: Loss,
        settings: FitSettings,
        validation_loss: Callable[[], float] | None = None,
    ) -> None:
        self.module, self.n_rows, self.loss, self.settings = module, n_rows, loss, settings
        self.validation_loss = validation_loss
        self.records: list[EpochRecord] = []
        self.best: dict[str, Tensor] | None = None
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=settings.weight_decay)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.records) >= self.settings.epochs

    def run(self) -> tuple[EpochRecord, ...]:
        """Run the epochs that are left, restore the best parameters and return the records of all epochs."""
        while not self.is_finished:
            self.run_epoch()
        self.finish()
        return tuple(self.records)

    def run_epoch(self) -> EpochRecord:
        """Train on every row once, in random order.

        Raises:
            TrainingError: The loss is not finite.
        """
        epoch = len(self.records)
        generator = torch.Generator().manual_seed(self.settings.seed * _SEED_STRIDE + epoch)
        batches = torch.randperm(self.n_rows, generator=generator).split(self.settings.batch_size)
        self.module.train()
        total = 0.0
        with torch.random.fork_rng(self._cuda_devices()):
            torch.manual_seed(generator.initial_seed())  # of the dropout of a pretrained tower
            for index, rows_B in enumerate(batches):
                self._set_learning_rate((epoch + index / len(batches)) / self.settings.epochs)
                total += self._step(rows_B, generator) * len(rows_B)
        self.module.eval()
        record = EpochRecord(epoch, total / self.n_rows, self._validate(), self._learning_rate())
        self._keep_if_best(record)
        self.records.append(record)
        return record

    def finish(self) -> None:
        """Restore the parameters with the lowest validation loss, if there are validation rows."""
        if self.best is not None:
            load_trained_state(self.module, self.best)
        self.module.eval()

    def state(self) -> "FittingState":
        """Return the state of a resumable training, besides the model's parameters."""
        return FittingState(self.optimizer.state_dict(), tuple(self.records), self.best)

    def restore(self, model: Mapping[str, Tensor], state: "FittingState") -> None:
        """Continue from the parameters and the ``state`` of a fitting with the same settings and rows."""
        load_trained_state(self.module, model)
        self.optimizer.load_state_dict(state.optimizer)
        self.records, self.best = list(state.records), state.best

    def _step(self, rows_B: Tensor, generator: torch.Generator) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(rows_B, generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                "imagegen.loss_not_finite",
                "the loss must be finite",
                place=type(self.module).__name__,
                value=value,
                remedy="Lower the learning rate.",
            )
        loss.backward()
        self.optimizer.step()
        return value

    def _cuda_devices(self) -> list[torch.device]:
        return list({parameter.device for parameter in self.module.parameters() if parameter.device.type == "cuda"})

    def _set_learning_rate(self, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2

    def _learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _validate(self) -> float | None:
        if self.validation_loss is None:
            return None
        with torch.no_grad():
            return self.validation_loss()

    def _keep_if_best(self, record: EpochRecord) -> None:
        if record.validation_loss is None:
            return
        before = [each.validation_loss for each in self.records if each.validation_loss is not None]
        if not before or record.validation_loss < min(before):
            self.best = {name: value.detach().clone() for name, value in trained_state(self.module).items()}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of ``module`` except frozen parameters, which their source restores."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def load_trained_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what ``trained_state`` gave.

    Raises:
        TrainingError: Names differ, so that the state belongs to another module.
    """
    expected = set(trained_state(module))
    if expected != set(state):
        raise TrainingError(
            "imagegen.checkpoint_parameters_differ",
            "a checkpoint must have the parameters of the model it is loaded into",
            place=type(module).__name__,
            value=sorted(expected ^ set(state))[:3],
            remedy="Use the recipe that wrote the checkpoint.",
        )
    module.load_state_dict(dict(state), strict=False)


@contextmanager
def on_device(device: torch.device, *modules: nn.Module) -> Iterator[None]:
    """Give modules copies of their tensors on a device, and their own tensors again when the context ends.

    Trained parameters and buffers keep the values that they got in the context. Tensors that are on the device already
    stay there, such as those of a shared encoder in an outer context. An optimizer must be built in the context.
    """
    places = [place for module in modules for place in _tensors(module) if place[2].device.type != device.type]
    copies: dict[int, Tensor] = {}
    for module, name, home in places:
        # A tensor that several modules have is copied once, so that tied parameters stay tied.
        if id(home) not in copies:
            copies[id(home)] = _copied(home, device)
        setattr(module, name, copies[id(home)])
    try:
        yield
    finally:
        for module, name, home in places:
            if not isinstance(home, nn.Parameter) or home.requires_grad:
                home.data.copy_(copies[id(home)])
            setattr(module, name, home)
        copies.clear()
        if places and device.type == "cuda":
            # Otherwise the allocator keeps the blocks, in sizes that an update cannot use.
            torch.cuda.empty_cache()


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield each parameter and buffer with its module and its name in that module."""
    for one in module.modules():
        own = chain(one.named_parameters(recurse=False, remove_duplicate=False), one.named_buffers(recurse=False))
        for name, tensor in own:
            yield one, name, tensor


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.detach().to(device)
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
