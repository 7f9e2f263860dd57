"""The optional C++ library of CPU kernels: where it is, and what the processor offers it.

It has a plain C ABI and is loaded with ctypes, so one build serves every torch and Python version.
An installation made without a C++ compiler has no such file, and everything here says so.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import zlib
from pathlib import Path

import fastdigin_kernels

_ABI_VERSION = 1
_CPUINFO = Path("/proc/cpuinfo")
_FEATURES = ("avx2", "avx512f")  # bit 0, bit 1, ... of fastdigin_cpu_features()


def library_path() -> Path | None:
    """Path of the compiled library, or None if it was not built."""
    file_name = "libfastdigin_cpu" + (".dll" if sys.platform == "win32" else ".so")
    # An editable install keeps the library in site-packages and the modules in the checkout:
    # the package then has two folders.
    for folder in fastdigin_kernels.__path__:
        path = Path(folder) / file_name
        if path.is_file():
            return path
    return None


def cpu_features() -> tuple[str, ...]:
    """Instruction sets the library may use on this processor, found at run time.

    Any of "avx2" (with FMA) and "avx512f". Empty where only portable code can run, and where the
    library was not built.

    Raises ImportError if the library was built from other sources than this module.
    """
    library = _load_library()
    if library is None:
        return ()
    bits = library.fastdigin_cpu_features()
    return tuple(name for bit, name in enumerate(_FEATURES) if bits >> bit & 1)


@functools.cache
def fingerprint() -> str:
    """Changes with the compiled library; "none" where it was not built."""
    path = library_path()
    return "none" if path is None else f"{zlib.crc32(path.read_bytes()):08x}"


def cpu_model() -> str:
    """The processor's name as Linux or Python tells it, or "unknown"."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


@functools.cache
def _load_library() -> ctypes.CDLL | None:
    path = library_path()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    library.fastdigin_abi_version.restype = ctypes.c_int32
    library.fastdigin_abi_version.argtypes = []
    library.fastdigin_cpu_features.restype = ctypes.c_uint32
    library.fastdigin_cpu_features.argtypes = []
    version = library.fastdigin_abi_version()
    if version != _ABI_VERSION:
        raise ImportError(
            f"{path} has ABI version {version}, but this fastdigin_kernels needs {_ABI_VERSION}: "
            "install the package again"
        )
    return library
