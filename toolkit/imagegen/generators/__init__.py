"""Image generators: Stable Diffusion and a small DiT behind one interface, with DDIM sampling and LoRA."""
