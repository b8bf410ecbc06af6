"""Merging of a LoRA adapter into the base's files, shard by shard, and comparison of the written matrices.

The merge builds no second model. It loads one shard of the base at a time, on the CPU, so it also works for a 16-bit
base that does not fit the GPU. Names and shards are those of the base's files, and so are dtypes unless the recipe
loads the base in another precision. transformers' table of renamings maps each layer of the model to its stored tensor
(Gemma 3: ``vision_tower.encoder`` is loaded from ``vision_tower.vision_model.encoder``).

peft's ``merge_and_unload`` handles the other cases: adapters beyond LoRA and DoRA on linear layers, bases without
safetensors, and dequantized bases.

A DoRA matrix is merged in float32. peft merges in the dtype of the base, in which norms of rows are less accurate.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from toolkit.errors import ModelError, warn
from toolkit.models.backend import MergeComparison
from toolkit.models.model_config import read_object
from toolkit.models.weight_files import INDEX, SINGLE, model_weights

ADAPTER = "default"
DTYPES: Mapping[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Maps names of dtypes in safetensors to torch."""
MAX_SHOWN = 3
"""Number of matrices that an error names."""
PLAIN_INITS = (True, False, "gaussian", "orthogonal")
"""Values of ``init_lora_weights`` with which peft does not change the base's parameters."""
SUMMATION_ERROR = 2e-6
"""Effect of the summation order in float32, relative to the sum of absolute values."""


@dataclass(frozen=True, slots=True)
class Factors:
    """The adapter of one matrix: ``scale * b @ a`` is added, with a of shape (r, in) and b of shape (out, r).

    With DoRA, each row of the sum is then scaled to the length in ``lengths``, of shape (out,). ``scale`` is peft's, so
    it is ``alpha / sqrt(r)`` with rsLoRA.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    lengths: torch.Tensor | None = None

    def update(self) -> torch.Tensor:
        """Return ``scale * b @ a`` in float32, of shape (out, in)."""
        return self.scale * (self.b.float() @ self.a.float())

    def merged(self, base: torch.Tensor) -> torch.Tensor:
        """Return the merged matrix in float32, in the shape of the base."""
        summed = base.float() + self.update().reshape(base.shape)
        return summed if self.lengths is None else summed * self._stretch(summed)

    def _stretch(self, summed: torch.Tensor) -> torch.Tensor:
        """Return what DoRA multiplies each row of the sum by (Liu et al. 2024, arXiv 2402.09353, equation 5)."""
        assert self.lengths is not None
        norms: torch.Tensor = torch.linalg.norm(summed, dim=1)
        return (self.lengths.float() / norms)[:, None]

    def magnitude_of(self, base: torch.Tensor) -> torch.Tensor:
        """Return for each merged element the sum of the absolute values of its terms."""
        found = base.float().abs() + self.magnitude().reshape(base.shape)
        if self.lengths is None:
            return found
        return found * self._stretch(base.float() + self.update().reshape(base.shape)).abs()

    def magnitude(self) -> torch.Tensor:
        """Return for each element of the update the sum of the absolute values of its terms."""
        return abs(self.scale) * (self.b.float().abs() @ self.a.float().abs())


@dataclass(frozen=True, slots=True)
class MergePlan:
    """An adapter and the files of its base. Keys are names of tensors in these files."""

    folder: Path
    files: tuple[str, ...]
    factors: Mapping[str, Factors]
    replaced: Mapping[str, torch.Tensor]
    """Full tensors in the adapter (peft's ``modules_to_save``)."""
    dtype: torch.dtype | None
    """The dtype of written floating-point tensors. None: as stored."""


def plan_merge(model: PeftModel) -> MergePlan | None:
    """Return the plan of a merge into the base's files. None if peft must merge, with the reason in the log.

    Raises:
        ModelError: An adapted layer is not in the base's files.
    """
    base = model.get_base_model()
    try:
        _check_plain(model.peft_config[ADAPTER])
        folder, files = _base_files(base.config)
        adapted = dict(_factors(base))
        saved = dict(_saved_modules(base))
    except _NotPlainError as reason:
        warn(
            "export.merged_in_memory",
            f"peft merges in memory, without comparing matrices one by one: {reason}",
            place="export",
        )
        return None
    stored = _stored_names(base, folder, files)
    missing = sorted(name for name in (*adapted, *saved) if name not in stored)
    if missing:
        raise ModelError(
            "export.matrix_not_in_base",
            "every adapted matrix must be in the base's files",
            place=folder,
            value=missing[:MAX_SHOWN],
            remedy="Report this with the model's name and the version of transformers.",
        )
    return MergePlan(
        folder,
        files,
        {stored[name]: factors for name, factors in adapted.items()},
        {stored[name]: tensor for name, tensor in saved.items()},
        None if base.dtype == _main_dtype(folder, files) else base.dtype,
    )


def write_merged(merge: MergePlan, folder: Path) -> None:
    """Write the merged weights to ``folder`` under the names of the base's files. A file is renamed when complete."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for file in merge.files:
        shard = {name: _merged(merge, name, tensor) for name, tensor in _tensors(merge.folder / file)}
        partial = folder / f"{file}.partial"
        save_file(shard, partial, metadata={"format": "pt"})
        partial.replace(folder / file)
        total += sum(tensor.nbytes for tensor in shard.values())
    if merge.files != (SINGLE,):
        index = read_object(merge.folder / INDEX, "model.index")
        index = {**index, "metadata": {**(index.get("metadata") or {}), "total_size": total}}
        (folder / f"{INDEX}.partial").write_text(json.dumps(index, indent=2), encoding="utf-8")
        (folder / f"{INDEX}.partial").replace(folder / INDEX)


def compare_merged(merge: MergePlan, folder: Path) -> MergeComparison:
    """Compare the safetensors in ``folder`` with the base and the adapter, tensor by tensor.

    An adapted matrix must equal base + scale * B A within the rounding of its dtype, with DoRA after the scaling of its
    rows. Other tensors must equal the base.

    Raises:
        ModelError: A matrix is missing, unchanged or wrong. The error names the first ones.
    """
    written = {name: file for file in sorted(folder.glob("*.safetensors")) for name in _names(file)}
    wrong: list[str] = []
    deviation = change = 0.0
    for file in merge.files:
        for name, base in _tensors(merge.folder / file):
            if name not in written:
                if name in merge.factors or name in merge.replaced:
                    wrong.append(f"{name} (missing)")
                continue
            found = _tensor(written[name], name)
            if name not in merge.factors:
                expected = merge.replaced.get(name, base)
                if not torch.equal(found, expected.to(found.dtype)):
                    wrong.append(f"{name} (changed, and no part of the adapter)")
                continue
            expected, bound = _expectation(merge.factors[name], base, found.dtype)
            gap = (found.float() - expected).abs()
            change = max(change, float((expected - base.float()).abs().max()))
            deviation = max(deviation, float(gap.max()))
            if not bool((gap <= bound).all()):  # NaN compares as False, so it is reported too
                same = torch.equal(found, base.to(found.dtype))
                wrong.append(f"{name} ({'unchanged' if same else f'off by up to {float(gap.max()):.2g}'})")
    if wrong:
        raise ModelError(
            "export.merged_matrices_wrong",
            "merged matrices must be base + scale * B A, with DoRA after the scaling of its rows",
            place=folder,
            value=f"{len(wrong)} wrong, {len(merge.factors)} adapted: {', '.join(wrong[:MAX_SHOWN])}",
            remedy="Export the adapter alone, and report this with the model's name and the versions of peft and "
            "transformers.",
        )
    return MergeComparison(len(merge.factors), float(f"{deviation:.3g}"), float(f"{change:.3g}"))


class _NotPlainError(Exception):
    """The reason why peft must merge an adapter."""


def _expectation(factors: Factors, base: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the merged matrix of a stored tensor, and the largest permitted difference of each written element.

    The bound has three parts: half a unit in the last place of the dtype (with a margin of 0.1 %), the effect of the
    summation order, and the smallest normal number for elements near 0.
    """
    expected = factors.merged(base)
    half = torch.finfo(dtype).eps / 2
    order = SUMMATION_ERROR * factors.magnitude_of(base)
    return expected, half * expected.abs() * 1.001 + order + torch.finfo(dtype).smallest_normal


def _merged(merge: MergePlan, name: str, tensor: torch.Tensor) -> torch.Tensor:
    dtype = merge.dtype if merge.dtype is not None and tensor.is_floating_point() else tensor.dtype
    if name in merge.replaced:
        return merge.replaced[name].to(dtype).contiguous()
    if name in merge.factors:
        tensor = merge.factors[name].merged(tensor)
    return tensor.to(dtype)


def _check_plain(config: Any) -> None:
    """Raise if the adapter changes more of the base than its matrices: that would be missing from the files."""
    if config.peft_type != PeftType.LORA:
        raise _NotPlainError(f"the adapter is {config.peft_type.value}, not LoRA")
    if config.bias != "none":
        raise _NotPlainError(f"the adapter trains biases (bias = {config.bias!r})")
    if config.init_lora_weights not in PLAIN_INITS:
        raise _NotPlainError(f"peft changes the base for init_lora_weights = {config.init_lora_weights!r}")


def _base_files(config: Any) -> tuple[Path, tuple[str, ...]]:
    source = str(getattr(config, "_name_or_path", ""))
    folder = Path(source)
    if not folder.is_dir():
        try:
            revision = getattr(config, "_commit_hash", None)
            folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, ValueError) as error:
            raise _NotPlainError(f"the files of {source} are not on disk") from error
    try:
        return folder, tuple(file.name for file in model_weights(folder))
    except ModelError as error:
        raise _NotPlainError(str(error)) from error


def _factors(base: torch.nn.Module) -> Iterator[tuple[str, Factors]]:
    """Yield the name of each adapted parameter, without peft's wrapping, and its update on the CPU."""
    for name, part in base.named_modules():
        if not isinstance(part, LoraLayer):
            continue
        layer = part.get_base_layer()
        if not isinstance(layer, torch.nn.Linear) or ADAPTER not in part.lora_A:
            raise _NotPlainError(f"{name} has an adapter on a {type(layer).__name__}")
        if part.lora_bias.get(ADAPTER) or getattr(part, "fan_in_fan_out", False):
            raise _NotPlainError(f"{name} has more than an update of LoRA or DoRA")
        a, b = part.lora_A[ADAPTER].weight, part.lora_B[ADAPTER].weight
        lengths = part.lora_magnitude_vector[ADAPTER].weight.detach().cpu() if part.use_dora.get(ADAPTER) else None
        yield f"{name}.weight", Factors(a.detach().cpu(), b.detach().cpu(), float(part.scaling[ADAPTER]), lengths)


def _saved_modules(base: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, part in base.named_modules():
        if isinstance(part, ModulesToSaveWrapper):
            for key, tensor in part.modules_to_save[ADAPTER].state_dict().items():
                yield f"{name}.{key}", tensor.detach().cpu()
        elif type(part).__name__ == "TrainableTokensWrapper":
            raise _NotPlainError(f"{name} has trained tokens")


def _stored_names(base: Any, folder: Path, files: tuple[str, ...]) -> dict[str, str]:
    """Return a mapping from parameter names to the names of the stored tensors that transformers loads them from.

    It omits parameters that are computed from several stored tensors, or by more than a change of shape.
    """
    inside = (".base_layer.", ".original_module.")
    known = {_unwrapped(name, inside): value for name, value in base.state_dict().items() if "lora_" not in name}
    table = getattr(base, "_weight_conversions", None) or get_model_conversion_mapping(base)
    renamings = [one for one in table if isinstance(one, WeightRenaming)]
    converters = [one for one in table if isinstance(one, WeightConverter)]
    found: dict[str, str] = {}
    for stored in (name for file in files for name in _names(folder / file)):
        name, converted = rename_source_key(stored, renamings, converters, base.base_model_prefix, known)
        if name not in known and stored in known:
            name, converted = stored, None
        if converted is None:
            found[name] = stored
    return found


def _unwrapped(name: str, inside: tuple[str, ...]) -> str:
    for part in inside:
        name = name.replace(part, ".")
    return name


def _main_dtype(folder: Path, files: tuple[str, ...]) -> torch.dtype | None:
    """Return the dtype of most stored elements, or None if ``DTYPES`` does not have it."""
    counted: Counter[str] = Counter()
    for file in files:
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                counted[part.get_dtype()] += math.prod(part.get_shape())
    return DTYPES.get(counted.most_common(1)[0][0])


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            yield name, opened.get_tensor(name)
