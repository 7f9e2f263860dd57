"""Explain image classifiers by optimising images through an unrolled diffusion sampler."""

__version__ = "0.1.0"
