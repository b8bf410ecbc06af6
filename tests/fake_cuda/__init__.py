"""The GPU memory of a training stage at real size, traced on a machine without a GPU.

A model of the real architecture is built under torch's ``FakeTensorMode`` on a simulated CUDA device: every operation
computes shapes and types, and no numbers. A dispatch mode logs each allocation and each release of a storage
(``log``), and torch's caching allocator is replayed on that log (``allocator``). What runs is the toolkit's code:
LoRA, gradient checkpointing, TRL's log-probabilities, the losses of SFT.

What it assumes:

- Kernels. bitsandbytes' choice between its fused 4-bit product and dequantization is read from its own source
  (``kernels``). Attention runs through the flash and memory-efficient kernels that torch prefers on capability 8.0
  and above. Scratch memory inside cuBLAS, cuDNN and other kernels is not seen.
- Sizes. Every row has the length of the longest row. Quantized weights have the layout after loading. Memory for
  loading itself is not traced.
- Generation. A loop of prefill and decode steps replaces transformers' ``generate``, with its float32 copy of the
  logits, suppressed tokens, softmax and draw. The first steps and the last ones are traced. The steps between are
  interpolated, because each allocation grows linearly with the length.
- Optimizer. State has the tensors of bitsandbytes or torch and exists before the first pass, as in every step
  except the first. Paged state counts as GPU memory.
- One stream. Replayed segments are never returned to the driver, so the reserved figure is an upper bound.
- Unsloth. Its losses, its setting of the allocator (expandable segments), its autocast while sampling and its static
  cache are traced. Its compiled modules, Triton kernels and offloaded checkpointing are not: checkpoints count as
  kept on the GPU, and its losses run without torch.compile, which saves some of their intermediate tensors.
- Limits. 8-bit weights (their products have no fake kernel) and vLLM cannot be traced.
"""
