"""A model of the real size on the simulated device, as the toolkit loads it: quantized, frozen, with its adapter."""

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import bitsandbytes
import bitsandbytes.functional as quantizing
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer

from tests.fake_cuda.log import DEVICE, AllocationLog
from toolkit.models import lora as adapter
from toolkit.models.families import VISION
from toolkit.planning.architecture import is_unquantized
from toolkit.planning.model_files import UNQUANTIZED_MODULES
from toolkit.planning.stages import Setting
from toolkit.recipe import Lora


class _Packed:
    """A parameter with the attributes of ``bitsandbytes.nn.Params4bit``, which cannot contain a fake tensor."""

    def __new__(cls, data: Any = None, requires_grad: bool = False, quant_state: Any = None, **_: Any) -> Any:
        parameter = torch.nn.Parameter(data, requires_grad=False)
        parameter.quant_state = quant_state  # type: ignore[attr-defined]
        parameter.blocksize, parameter.quant_type = 64, "nf4"  # type: ignore[attr-defined]
        parameter.compress_statistics = parameter.bnb_quantized = True  # type: ignore[attr-defined]
        parameter.quant_storage = torch.uint8  # type: ignore[attr-defined]
        return parameter


def build(fields: Mapping[str, Any], setting: Setting, log: AllocationLog) -> Any:
    """Return the model with its adapter, traced in the phases ``weights`` and ``adapter``.

    Args:
        fields: of the model's config.json.
        setting: precision, types and adapter.
        log: entered by the caller, inside a FakeTensorMode.
    """
    kind = torch.bfloat16 if setting.stored == 2 else torch.float32
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields))
    log.phase = "weights"
    with torch.device(DEVICE):
        model = AutoModelForImageTextToText.from_config(config, dtype=kind)
    model.tie_weights()
    if setting.precision == "4bit":
        _quantize(model, kind, UNQUANTIZED_MODULES if setting.backend == "unsloth" else ())
    elif setting.precision == "8bit":
        raise NotImplementedError("8-bit products have no fake kernel in bitsandbytes")
    model.requires_grad_(False)
    log.phase = "adapter"
    lora = Lora(
        r=setting.r,
        alpha=2 * setting.r,
        dropout=setting.dropout,
        targets=list(setting.targets),
        vision=setting.lora_vision,
    )
    # All tensors are created on the device, so nothing has to be moved.
    unmoved = patch.object(BaseTunerLayer, "_move_adapter_to_device_of_base_layer", lambda *_, **__: None)
    unchanged = patch.object(torch.nn.Module, "_apply", lambda self, fn, recurse=True: self)
    with unmoved, unchanged, torch.device(DEVICE):
        return adapter.attach(model, lora, 0)


def tower_bytes(model: Any) -> int:
    """Return the bytes of the vision tower's parameters, with the scales of its quantized ones."""
    total = 0
    for name, parameter in model.named_parameters():
        if not VISION.search(name) or "lora_" in name:
            continue
        total += parameter.untyped_storage().nbytes()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += sum(
                one.nbytes for one in (state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset)
            )
    return total


def _quantize(model: Any, kind: torch.dtype, skipped: Sequence[str]) -> None:
    """Quantize the linear layers that transformers hands to bitsandbytes, except ``skipped`` modules."""
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    kept += [name for name, _ in model.named_modules() if is_unquantized(name, skipped)]
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
    )
    bitsandbytes.nn.modules.Params4bit = _Packed
    quantizing.get_4bit_type = lambda *_, **__: torch.empty(16, device=DEVICE)
    for name in ("dynamic", "udynamic"):
        quantizing.name2qmap[name] = torch.empty(256, device=DEVICE)
    replace_with_bnb_linear(model, kept, settings)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            whole = torch.empty(module.out_features, module.in_features, dtype=kind, device=DEVICE)
            packed, state = quantizing.quantize_4bit(whole, blocksize=64, compress_statistics=True, quant_type="nf4")
            module.weight, module.quant_state = _Packed(packed, quant_state=state), state
            if module.bias is not None:
                bias = torch.empty(module.out_features, dtype=kind, device=DEVICE)
                module.bias = torch.nn.Parameter(bias, requires_grad=False)
    model.is_loaded_in_4bit = model.is_quantized = True
    model.config.quantization_config = settings


def grid_of(patches: int, merge: int) -> tuple[int, int]:
    """Return the grid with this number of patches that is closest to a square, with sides divisible by ``merge``."""
    cells = patches // merge**2
    rows = max(one for one in range(1, int(cells**0.5) + 1) if cells % one == 0)
    return rows * merge, cells // rows * merge
