"""Models behind one protocol: ``hf`` (transformers and peft, any device), ``unsloth`` (CUDA), ``gguf`` (inference)."""

from toolkit.models.backend import Backend as Backend
from toolkit.models.choose import backend_name as backend_name
from toolkit.models.choose import choose_backend as choose_backend
from toolkit.models.choose import preload as preload
