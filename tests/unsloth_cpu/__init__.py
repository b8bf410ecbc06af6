"""Unsloth's own Python code on a CPU: `toolkit run` with backend "unsloth" on a machine without a GPU.

    python tests/unsloth_cpu/run.py run recipes/quickstart.toml --set model.backend=unsloth --set model.precision=4bit

The process simulates one CUDA device whose memory is the CPU's. Unsloth's loader, ``get_peft_model``, the modules and
trainers that it generates, its generation and its merge then run as on a GPU. torch and bitsandbytes compute on the
CPU. ``substitutes.SUBSTITUTES`` is the complete table of substitutes for CUDA functions, with reasons. No substitute
computes anything of training, and none replaces code of the toolkit, Unsloth, TRL, transformers or peft.

Not shown by this harness:

- Triton kernels and torch.compile: TORCHDYNAMO_DISABLE runs the modules that Unsloth generates as they are written.
- CUDA streams and offloaded checkpointing: Unsloth offloads only activations of CUDA tensors above 2 MB.
- vLLM rollouts.
- GPU memory, speed, and the rounding of CUDA kernels.
"""
