"""Explain image classifiers by optimising images through an unrolled diffusion sampler."""

import ast
from importlib import import_module
from pathlib import Path

from fastdigin import presets as presets

__version__ = "0.1.0"


def _read_stub() -> dict[str, str]:
    """Public name -> its module, as __init__.pyi imports them for editors and type checkers."""
    text = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imports = (node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom))
    return {alias.name: node.module for node in imports for alias in node.names}


# Imported on first use: torch and diffusers take seconds, and `fastdigin --help` needs neither.
_HOME = _read_stub()
del _HOME["presets"]
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name == "scale":
        return import_module("fastdigin.scale")  # a room of its own: its `map` is not Python's
    if name not in _HOME:
        raise AttributeError(f"module 'fastdigin' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
