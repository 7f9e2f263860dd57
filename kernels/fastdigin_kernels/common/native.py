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

import torch

import fastdigin_kernels
from fastdigin_kernels.common import devices

_ABI_VERSION = 4
_CPUINFO = Path("/proc/cpuinfo")
_FEATURES = ("avx2", "avx512f")  # bit 0, bit 1, ... of fastdigin_cpu_features()


# The result, then the arguments. Structures, whose fields are 8 bytes wide, are passed as bytes:
# struct packs them in a quarter of the time that ctypes takes for an array of integers.
_STRUCTURE = ctypes.c_char_p
_SIGNATURES = {
    "fastdigin_cpu_features": (ctypes.c_uint32,),
    "fastdigin_limit_features": (None, ctypes.c_uint32),
    "fastdigin_use_openmp": (None, ctypes.c_void_p, ctypes.c_void_p),
    "fastdigin_attention_forward": (ctypes.c_int32, _STRUCTURE, ctypes.c_int32),
    "fastdigin_attention_backward": (ctypes.c_int32, _STRUCTURE, ctypes.c_int32),
    "fastdigin_group_norm_silu_forward": (ctypes.c_int32, _STRUCTURE, ctypes.c_int32),
    "fastdigin_group_norm_silu_backward": (ctypes.c_int32, _STRUCTURE, ctypes.c_int32),
    "fastdigin_geglu_forward": (ctypes.c_int32, _STRUCTURE, ctypes.c_int32),
    "fastdigin_geglu_backward": (ctypes.c_int32, _STRUCTURE, ctypes.c_int32),
    "fastdigin_conv3x3": (ctypes.c_int32, _STRUCTURE, ctypes.c_int32),
}


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


def unsupported(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """Why the library's kernels cannot take tensors of this device and dtype, or None."""
    if devices.kind_of(device) != "cpu":
        return f"it runs on the CPU, not on {device}"
    return None if dtype is torch.float32 else f"it computes in float32, not in {dtype}"


def load() -> ctypes.CDLL:
    """The library, ready to be called. ImportError, saying why, where it cannot be."""
    library = _load_library()
    if library is None:
        raise ImportError(
            "the C++ library is not built: install fastdigin where there is a C++20 compiler "
            "(GCC or Clang)"
        )
    return library


def check(status: int) -> None:
    """MemoryError if a function of the library says that it found no scratch memory."""
    if status != 0:
        raise MemoryError("the C++ kernels found no scratch memory")


@functools.cache
def _load_library() -> ctypes.CDLL | None:
    path = library_path()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    library.fastdigin_abi_version.restype = ctypes.c_int32
    library.fastdigin_abi_version.argtypes = []
    version = library.fastdigin_abi_version()
    if version != _ABI_VERSION:
        raise ImportError(
            f"{path} has ABI version {version}, but this fastdigin_kernels needs {_ABI_VERSION}: "
            "install the package again"
        )
    for name, (restype, *argtypes) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = restype, argtypes
    openmp = _openmp_of_torch()
    if openmp is not None:
        library.fastdigin_use_openmp(*openmp)
    return library


def _openmp_of_torch() -> tuple[ctypes.c_void_p, ctypes.c_void_p] | None:
    """Addresses of GOMP_parallel and omp_get_thread_num in torch's OpenMP library, if there is one.

    torch's wheels bring their own, sometimes under another name than the system's: linking to
    OpenMP could start a second pool of threads. (Linux only: elsewhere threads are started for
    every call.)
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    files = dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if "/" in line)
    for file in files:
        if "omp" in Path(file).name and ".so" in Path(file).name:
            functions = [
                getattr(ctypes.CDLL(file), name, None)
                for name in ("GOMP_parallel", "omp_get_thread_num")
            ]
            if None not in functions:
                return tuple(ctypes.cast(function, ctypes.c_void_p) for function in functions)
    return None
