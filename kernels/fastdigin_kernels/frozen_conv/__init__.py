"""Convolution with frozen weights: no gradient of weights, nothing kept of the input."""

from fastdigin_kernels.frozen_conv.api import IMPLEMENTATIONS, conv2d, prepare

__all__ = ["IMPLEMENTATIONS", "conv2d", "prepare"]
