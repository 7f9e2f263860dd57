"""fastdigin info."""

import json
import platform
from argparse import ArgumentParser, Namespace
from typing import Any

import diffusers
import torch
import transformers

import fastdigin


def add_options(parser: ArgumentParser, command: str) -> None:
    """There are none but the common ones."""


def versions() -> dict[str, Any]:
    """Software, and the devices it runs on."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fastdigin": fastdigin.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "devices": [*cuda, f"cpu ({torch.get_num_threads()} threads)"],
    }


def run(options: Namespace) -> int:
    """Versions, devices, backends."""
    from fastdigin.embedded import classifier_names
    from fastdigin.models.precision import choose_device, choose_dtype
    from fastdigin_kernels.common import native

    facts = versions() | {
        "dtype auto": str(choose_dtype("auto", choose_device())).removeprefix("torch."),
        "fp32 on GPUs": "products in TF32",
        "attention": "torch.nn.functional.scaled_dot_product_attention",
        "native library": str(native.library_path() or "not built"),
        "cpu features": list(native.cpu_features()) if native.library_path() else [],
        "embedded classifiers": [f"embedded:{name}" for name in classifier_names()],
    }
    if options.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            shown = ", ".join(value) if isinstance(value, list) else value
            print(f"{name:<21}{shown}")
    return 0
