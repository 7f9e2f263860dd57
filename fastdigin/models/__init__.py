"""Frozen networks: loading them, and calling them on images and latents."""
