"""Models behind one protocol: ``hf`` (transformers and peft, any device), ``unsloth`` (CUDA), ``gguf`` (inference)."""

from toolkit.models.backend import Backend, backend_name, choose_backend, preload

__all__ = ["Backend", "backend_name", "choose_backend", "preload"]
