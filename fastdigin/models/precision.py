"""The device and the floating point type of networks, and gradients that halves can hold."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdigin import hardware
from fastdigin.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is named; for None CUDA where there is one, else the CPU.

    Raises:
        UserError: There is no such device, or networks cannot run on it.
    """
    if device is None:
        return hardware.default_device()
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(
            f"device {device!r} is not one of torch's: write cpu, cuda or cuda:1"
        ) from error
    if chosen.type == "mps":
        raise UserError(
            f"device {device!r} has no double precision, in which crops and steps are reckoned: "
            "write cpu"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r} is not there (torch sees {torch.cuda.device_count()} CUDA "
            "devices): write cpu, or install a torch that is built for your GPU"
        )
    return chosen


def pin_results() -> None:
    """Has torch repeat its bits from run to run, from here on, in the whole process.

    The same slots, threads, device and versions are needed beside it. Operations without a
    deterministic implementation are named in a warning of torch.
    """
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The floating point type that a text names, for networks on ``device``.

    "auto" is bf16 on GPUs that compute in it (sm_80 and newer), fp16 on older ones, fp32 on CPUs.
    With fp32 on a GPU, products are made in TF32 from here on, in the whole process: 10 bits of
    mantissa instead of 23, at several times the speed.

    Args:
        dtype: "auto", "bf16", "fp16" or "fp32"; a type of torch is taken as it is.
        device: As ``choose_device`` gives it.

    Raises:
        UserError: The text names no type.
    """
    if dtype == "auto":
        here, chosen = hardware.of(device), torch.float32
        if here.is_gpu:
            chosen = torch.bfloat16 if here.capability >= (8, 0) else torch.float16
    else:
        chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if not (isinstance(chosen, torch.dtype) and chosen.is_floating_point):
        raise UserError(f"dtype must be auto, {', '.join(DTYPES)} or one of torch's, got {dtype!r}")
    if device.type == "cuda" and chosen is torch.float32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    return chosen


def rescaled(
    product: Callable[[list[Tensor]], Sequence[Tensor]], *gradients: Tensor
) -> tuple[Tensor, ...]:
    """``product(gradients)``, a linear one, of gradients that are near 1 on the way.

    So a network in half precision neither underflows nor overflows. The factors are powers of two,
    which change no other bit. Each sample has its own, so all tensors have the batch as their
    leading dimension.
    """
    scale = power_of_two_near(*gradients)
    found = product([g * over(scale, g) for g in gradients])
    return tuple(g / over(scale, g) for g in found)


def power_of_two_near(*gradients: Tensor) -> Tensor:
    """(B,) powers of two that bring each sample's largest element into [0.5, 1); 1 for zeros."""
    largest = torch.stack([g.flatten(1).abs().amax(dim=1) for g in gradients]).amax(dim=0)
    # The bounds keep the factor and its inverse finite; fp32 has little beyond them.
    exponent = torch.frexp(largest).exponent.clamp(-120, 120)
    return torch.ldexp(torch.ones_like(largest), -exponent)


def over(scale_b: Tensor, tensor: Tensor) -> Tensor:
    """``scale_b`` shaped to multiply a tensor with leading dimension B."""
    return scale_b.view(-1, *[1] * (tensor.ndim - 1))


class _Grown(torch.autograd.Function):
    """``apply(scale, *outputs)``: the outputs in fp32, whose gradients are near 1 from here on.

    scale: a list, which gets the factors (B,) in the backward.
    """

    @staticmethod
    def forward(ctx, scale, *outputs):
        ctx.scale, ctx.dtype = scale, outputs[0].dtype
        return tuple(x.float() for x in outputs)

    @staticmethod
    def backward(ctx, *gradients):
        ctx.scale[:] = [power_of_two_near(*gradients)]
        return None, *((g * over(ctx.scale[0], g)).to(ctx.dtype) for g in gradients)


class _Shrunk(torch.autograd.Function):
    """``apply(scale, inputs)``: the inputs, whose gradients get their size back."""

    @staticmethod
    def forward(ctx, scale, inputs):
        ctx.scale = scale
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient / over(ctx.scale[0], gradient)


def rescaling(
    inputs: Tensor, run: Callable[[Tensor], Sequence[Tensor | None]]
) -> list[Tensor | None]:
    """``run(inputs)`` of a network in half precision, with gradients that are near 1 on the way.

    As :func:`rescaled`, inside autograd. inputs in fp32, all tensors with the batch first.
    """
    scale: list[Tensor] = []
    found = list(run(_Shrunk.apply(scale, inputs)))
    there = [n for n, x in enumerate(found) if x is not None]
    for n, x in zip(there, _Grown.apply(scale, *(found[n] for n in there)), strict=True):
        found[n] = x
    return found
