"""One protocol: ``hf`` (transformers and peft, any device) and ``unsloth`` (CUDA) train, a GGUF is only asked."""

from toolkit.backends.base import Backend as Backend
from toolkit.backends.choice import backend_name as backend_name
from toolkit.backends.choice import choose_backend as choose_backend
from toolkit.backends.choice import preload as preload
