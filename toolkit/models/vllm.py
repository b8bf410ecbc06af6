"""Whether vLLM can write GRPO's completions (``[grpo] rollouts = "vllm"``): the reasons why not."""

from dataclasses import dataclass
from importlib.util import find_spec

from toolkit.recipe import Recipe

ARCHITECTURES = frozenset({"qwen2_5_vl", "gemma3", "mistral3", "qwen3_vl", "qwen3_5", "idefics3", "gemma4"})
"""Model types that Unsloth gives to vLLM (``VLLM_SUPPORTED_VLM`` in its models/vision.py), less mixtures of experts."""

LEAST_GIGABYTES = 24.0
"""vLLM keeps half of the GPU for itself, beside what trains."""
RESERVED = 0.06
"""The part of a card's named size that its driver may keep: 24 GB cards show 22.7 to 25.8 GB."""
LEAST_CAPABILITY = (7, 0)


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides: the GPU's memory in GB (10^9 bytes) and compute capability, and whether vLLM is installed."""

    gigabytes: float
    capability: tuple[int, int]
    vllm: bool

    @classmethod
    def here(cls) -> "Machine":
        """This machine; without a CUDA device it has 0 GB."""
        import torch

        if not torch.cuda.is_available():
            return cls(0.0, (0, 0), find_spec("vllm") is not None)
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return cls(properties.total_memory / 1e9, (properties.major, properties.minor), find_spec("vllm") is not None)


def vllm_unsupported_reasons(recipe: Recipe, machine: Machine, architecture: str, pictures: int) -> list[str]:
    """Why vLLM cannot write this recipe's completions, each as a sentence; empty: it can, or is not asked to.

    Args:
        recipe: the run.
        machine: what it runs on.
        architecture: the model's ``model_type``, such as gemma3.
        pictures: the most pictures that a training prompt has.
    """
    if recipe.grpo is None or recipe.grpo.rollouts != "vllm":
        return []
    known = ", ".join(sorted(ARCHITECTURES))
    found: list[tuple[bool, str]] = [
        (machine.vllm, "vLLM is not installed (install it in its own environment, because it pins torch)"),
        (recipe.model.backend != "hf", 'it needs Unsloth, but [model] backend is "hf"'),
        (architecture in ARCHITECTURES, f"Unsloth supports vLLM for {known}, but not for {architecture}"),
        # unsloth_zoo starts the engine with limit_mm_per_prompt = {"image": 1} (vllm_utils.py).
        (pictures <= 1, f"the engine accepts one image per prompt, but a prompt has {pictures}"),
        (not recipe.lora.vision, "vLLM cannot serve an adapter on the vision tower: set lora.vision = false"),
        (
            machine.gigabytes >= LEAST_GIGABYTES * (1 - RESERVED),
            f"it needs a GPU of {LEAST_GIGABYTES:.0f} GB, but this one has {machine.gigabytes:.1f}",
        ),
        (machine.capability >= LEAST_CAPABILITY, "it needs a GPU of compute capability 7.0 or higher"),
        # The engine reads the newest weights of the repository (unsloth, models/loader.py).
        (recipe.model.revision is None, "vLLM would ignore model.revision and load the newest weights"),
        (recipe.sft is None, "the engine would fill the GPU during SFT too: move [sft] to another recipe"),
    ]
    return [reason for holds, reason in found if not holds]
