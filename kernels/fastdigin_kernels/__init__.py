"""Fast operations for optimising images through a diffusion model: each beside its reference.

Imports torch and nothing of ``fastdigin``, so that it can be used alone. A folder an operation.
"""
