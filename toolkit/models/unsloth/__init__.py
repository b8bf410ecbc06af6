"""The Unsloth backend (CUDA only). No other package imports unsloth, before transformers, trl and peft.

``preload`` lists unsupported settings and imports Unsloth, ``options`` has the keyword arguments of every call, and
``backend`` implements the protocol. Unsloth's code is not patched.
"""
