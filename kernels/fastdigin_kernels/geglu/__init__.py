"""GEGLU, the gate of Stable Diffusion's feed-forward layers."""

from fastdigin_kernels.geglu.api import IMPLEMENTATIONS, geglu

__all__ = ["IMPLEMENTATIONS", "geglu"]
