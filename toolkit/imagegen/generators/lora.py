"""LoRA on a generator's network: attach, switch off for the base model, copy its parameters, save and load it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from toolkit.errors import ModelError

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The file name that ``StableDiffusionPipeline.load_lora_weights`` expects."""

METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers stores rank, alpha and target modules in the file's metadata. Without it, alpha becomes the rank."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Rank, alpha and target modules. There is no dropout, because rollout and update must compute the same.

    Attributes:
        rank: rank of the update of each target module.
        alpha: the update is multiplied by alpha / rank.
        targets: name endings of the linear layers that get an adapter.
    """

    rank: int = 16
    alpha: int = 16
    targets: tuple[str, ...] = ATTENTION


def attach_lora(network: nn.Module, settings: LoraSettings, seed: int) -> None:
    """Add a trainable float32 LoRA to a frozen network. Its output stays that of the base until the first update.

    Raises:
        ModelError: no module of the network has one of the target names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    network.requires_grad_(False)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        init_lora_weights="gaussian",
        target_modules=list(settings.targets),
    )
    missing = [name for name in settings.targets if not _has_module(network, name)]
    if missing:
        raise ModelError(
            "imagegen.lora_target_unknown",
            "every LoRA target must be the ending of a module's name",
            place="lora.targets",
            value=missing,
            remedy=f"Use {', '.join(ATTENTION)}.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network, ADAPTER)
    for parameter in lora_parameters(network).values():
        parameter.data = parameter.data.float()
    reset_lora(network, seed)


def reset_lora(network: nn.Module, seed: int) -> None:
    """Give the LoRA its initial parameters again, so that the network equals the base.

    They are drawn on the CPU, so that every device begins with the same ones.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in lora_parameters(network).items():
        rank = parameter.shape[0]
        start = torch.randn(parameter.shape, generator=generator) / rank if ".lora_A." in name else torch.zeros(())
        parameter.data.copy_(start)


def lora_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the LoRA parameters by name. The name decides, because switching adapters changes ``requires_grad``."""
    return {name: parameter for name, parameter in network.named_parameters() if ".lora_" in name}


@contextmanager
def lora_disabled(network: nn.Module) -> Iterator[None]:
    """Switch the LoRA off while the block runs, so that the network is the base model.

    With gradient checkpointing, a switch between a graded forward pass and its backward pass makes every LoRA gradient
    zero without an error, since the recomputation runs without the adapter. Use the block before the graded pass.

    Raises:
        RuntimeError: gradients are enabled.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if torch.is_grad_enabled():
        raise RuntimeError("the LoRA may be switched off only under torch.no_grad()")
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def copy_lora(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the LoRA parameters on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in lora_parameters(network).items()}


def restore_lora(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the LoRA parameters to those that ``copy_lora`` returned.

    Raises:
        ModelError: the state has other names or shapes than the network's LoRA.
    """
    own = {name: parameter.shape for name, parameter in lora_parameters(network).items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    if own != given:
        different = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
        raise ModelError(
            "imagegen.lora_settings_differ",
            "a saved LoRA must have the rank and the target modules of the recipe",
            place="lora",
            value=different[:3],
            remedy="Use the settings that it was trained with.",
        )
    for name, parameter in lora_parameters(network).items():
        parameter.data.copy_(state[name])


def write_lora(folder: Path, network: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    """Write a LoRA file in the format of diffusers, with the adapter's configuration (rank, alpha, target modules).

    Args:
        folder: where ``LORA_FILE`` is written.
        network: the network of the LoRA.
        state: parameters by name, as the reader of ``prefix`` expects them.
        prefix: the network's name: "unet", or "dit".
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{prefix}.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    prefixed = {f"{prefix}.{name}": value for name, value in _adapter_config(network).items()}
    text = json.dumps(prefixed, indent=2, sort_keys=True, default=_to_json)
    content = save(tensors, metadata={"format": "pt", METADATA_KEY: text})
    (folder / LORA_FILE).write_bytes(_with_sorted_header(content))


def read_lora(folder: Path, network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the parameters of a LoRA file by name, without the prefix.

    Raises:
        ModelError: the file is missing, damaged, of another network, rank or alpha, or has no adapter metadata.
    """
    path = folder / LORA_FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(
            "imagegen.lora_file_unreadable",
            "the LoRA file must be readable",
            place=path,
            value=str(error),
            remedy="Save the LoRA again.",
        ) from error
    start = f"{prefix}."
    if metadata is None or not all(name.startswith(start) for name in tensors):
        raise ModelError(
            "imagegen.lora_file_contents",
            f"the LoRA file must hold adapter metadata, and parameters of {prefix!r} only",
            place=path,
            value=sorted({name.partition(".")[0] for name in tensors}),
            remedy="Save it with the toolkit, or with diffusers and unet_lora_adapter_metadata.",
        )
    own = {name.removeprefix(start): value for name, value in metadata.items() if name.startswith(start)}
    _check_rank(network, own, folder)
    return {name.removeprefix(start): tensor for name, tensor in tensors.items()}


def _with_sorted_header(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in alphabetical order, so that equal LoRAs have equal files.

    The library writes several metadata keys in an order that differs between processes.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__")
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _adapter_config(network: nn.Module) -> dict[str, object]:
    """Return the configuration of the network's adapter, as JSON can hold it."""
    config = network.peft_config[ADAPTER].to_dict()  # type: ignore[union-attr, index]
    return {
        name: value for name, value in json.loads(json.dumps(config, default=_to_json)).items() if value is not None
    }


def _check_rank(network: nn.Module, metadata: Mapping[str, object], place: Path) -> None:
    """Check that a file's adapter has the rank and alpha of the network's own."""
    own = _adapter_config(network)
    wrong = {key: metadata.get(key) for key in ("r", "lora_alpha") if metadata.get(key) != own[key]}
    if wrong:
        raise ModelError(
            "imagegen.lora_rank_differs",
            f"the LoRA must have rank {own['r']} and alpha {own['lora_alpha']}",
            place=place,
            value=wrong,
            remedy="Use the settings that it was trained with.",
        )


def _has_module(network: nn.Module, ending: str) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for name, _ in network.named_modules())


def _to_json(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)
