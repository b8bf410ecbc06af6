"""Fine-tune medical vision-language models on one GPU: SFT, GRPO, evaluation and export from one recipe."""

__version__ = "0.1.0"
