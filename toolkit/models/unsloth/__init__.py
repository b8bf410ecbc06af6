"""The Unsloth backend (CUDA only): the one place that imports unsloth, before transformers, trl and peft.

``start`` imports it, ``limits`` says what it is not asked to do, ``options`` holds every call's keywords, ``backend``
is the protocol. None of Unsloth's own code is patched.
"""
