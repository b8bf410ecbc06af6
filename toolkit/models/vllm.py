"""Requirements of GRPO rollouts with vLLM (``[grpo] rollouts = "vllm"``)."""

from dataclasses import dataclass
from importlib.util import find_spec

from toolkit.models.families import VLLM
from toolkit.recipe import Recipe

MIN_GPU_GB = 24.0
"""vLLM reserves half of the GPU, in addition to the memory for training."""
DRIVER_RESERVE = 0.06
"""Fraction of a GPU's nominal size that the driver may reserve: GPUs of 24 GB report 22.7 to 25.8 GB."""
MIN_CAPABILITY = (7, 0)


@dataclass(frozen=True, slots=True)
class Machine:
    """GPU memory in GB (10^9 bytes), compute capability, and whether vLLM is installed."""

    gigabytes: float
    capability: tuple[int, int]
    vllm: bool

    @classmethod
    def here(cls) -> "Machine":
        """Return the values of this machine. Without a CUDA device it has 0 GB."""
        import torch

        if not torch.cuda.is_available():
            return cls(0.0, (0, 0), find_spec("vllm") is not None)
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return cls(properties.total_memory / 1e9, (properties.major, properties.minor), find_spec("vllm") is not None)


def vllm_unsupported_reasons(recipe: Recipe, machine: Machine, architecture: str, images: int) -> list[str]:
    """Return the reasons why vLLM cannot generate the completions. Empty if it can, or is not requested.

    Args:
        recipe: The run.
        machine: The machine of the run.
        architecture: The model's ``model_type``, such as gemma3.
        images: The largest number of images in a training prompt.
    """
    if recipe.grpo is None or recipe.grpo.rollouts != "vllm":
        return []
    known = ", ".join(sorted(VLLM))
    found: list[tuple[bool, str]] = [
        (machine.vllm, "vLLM is not installed (install it in its own environment, because it pins torch)"),
        (recipe.model.backend != "hf", 'it needs Unsloth, but [model] backend is "hf"'),
        (architecture in VLLM, f"Unsloth supports vLLM for {known}, but not for {architecture}"),
        # unsloth_zoo starts the engine with limit_mm_per_prompt = {"image": 1} (vllm_utils.py).
        (images <= 1, f"the engine accepts one image per prompt, but a prompt has {images}"),
        (not recipe.lora.dora, "vLLM does not load DoRA adapters: set lora.dora = false"),
        (not recipe.lora.vision, "vLLM cannot serve an adapter on the vision tower: set lora.vision = false"),
        (
            machine.gigabytes >= MIN_GPU_GB * (1 - DRIVER_RESERVE),
            f"it needs a GPU of {MIN_GPU_GB:.0f} GB, but this one has {machine.gigabytes:.1f}",
        ),
        (machine.capability >= MIN_CAPABILITY, "it needs a GPU of compute capability 7.0 or higher"),
        # The engine reads the newest weights of the repository (unsloth, models/loader.py).
        (recipe.model.revision is None, "vLLM would ignore model.revision and load the newest weights"),
        (recipe.sft is None, "the engine would fill the GPU during SFT too: move [sft] to another recipe"),
        (recipe.dpo is None, "Unsloth does not support [dpo]: move it to another recipe"),
    ]
    return [reason for holds, reason in found if not holds]
