"""Training: SFT and GRPO, checks before the first step, checkpoints, resume and OOM recovery."""
