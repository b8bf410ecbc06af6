"""One protocol, two ways to train: ``hf`` (transformers and peft, any device) and ``unsloth`` (CUDA)."""

from toolkit.backends.base import Backend as Backend
from toolkit.backends.choice import backend_name as backend_name
from toolkit.backends.choice import choose_backend as choose_backend
from toolkit.backends.choice import preload as preload
