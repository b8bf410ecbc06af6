"""The Unsloth backend (CUDA only). No other package imports unsloth, before transformers, trl and peft.

``start`` imports it, ``limits`` lists unsupported settings, ``options`` has the keyword arguments of every call, and
``backend`` implements the protocol. Unsloth's code is not patched.
"""
