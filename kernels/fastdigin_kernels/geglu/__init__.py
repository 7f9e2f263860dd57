"""GEGLU, the gate of Stable Diffusion's feed-forward layers."""

from fastdigin_kernels.geglu.api import geglu, geglu_reference

__all__ = ["geglu", "geglu_reference"]
