"""3x3 convolution in fp32 on the CPU, by the C++ library (csrc/conv3x3.h): Winograd's F(4x4, 3x3).

The transformed weight, four times the weight, is kept as long as the weight lives, for each of the
two directions. A weight that is changed in place is transformed anew, but not one that is changed
through ``.data``, which torch does not tell.
"""

from __future__ import annotations

import math
import struct
import weakref

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdigin_kernels.common import native
from fastdigin_kernels.frozen_conv.api import memory_format

_library = native.load()
_fields = struct.Struct("10q").pack  # FastdiginConv3x3
_PANEL = 16
_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)  # kA and kB of csrc/conv3x3.h; and infinity
_scales = [math.prod(p - q for q in _POINTS if q != p) for p in _POINTS]
# Toom-Cook: of three numbers of the filter, at each point. (No tensor: this module may be imported
# where tensors are fake.)
_TRANSFORM_63 = [
    *([1 / n, p / n, p * p / n] for p, n in zip(_POINTS, _scales, strict=True)),
    [0.0, 0.0, 1.0],
]

_kept: weakref.WeakKeyDictionary[torch.UntypedStorage, dict[tuple, Tensor]]
_kept = weakref.WeakKeyDictionary()


def unsupported(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """``shape``: ends with 0 where the convolution is of another kind (api.py)."""
    if shape and not shape[-1]:
        return "it computes convolutions of 3x3 with stride 1, padding 1 and one group"
    return native.unsupported(device, dtype, shape)


def convolve(x: Tensor, weight_oikk: Tensor, bias_o: Tensor | None, transposed: bool) -> Tensor:
    """(B,I,H,W) -> (B,O,H,W); transposed: from (B,O,H,W), the gradient with respect to x."""
    layout = memory_format(x, weight_oikk)
    x = x.contiguous(memory_format=torch.channels_last)
    bias_o = None if bias_o is None else bias_o.contiguous()
    batch, inputs, height, width = x.shape
    outputs = weight_oikk.shape[1 if transposed else 0]
    y = x.new_empty(batch, height, width, outputs).permute(0, 3, 1, 2)
    transformed, threads = _transformed(weight_oikk, transposed), torch.get_num_threads()
    fields = _fields(
        batch, height, width, inputs, outputs, x.data_ptr(), transformed.data_ptr(),
        0 if bias_o is None else bias_o.data_ptr(), y.data_ptr(), threads,
    )  # fmt: skip
    native.check(_library.fastdigin_conv3x3(fields, threads))
    return y.contiguous(memory_format=layout)


def prepare(weight_oikk: Tensor) -> None:
    """Transforms the weight for both directions."""
    for transposed in (False, True):
        _transformed(weight_oikk, transposed)


def _transformed(weight_oikk: Tensor, transposed: bool) -> Tensor:
    """(panels,36,I,16) as csrc/conv3x3.h wants it; of the input's gradient for ``transposed``."""
    of_storage = _kept.setdefault(weight_oikk.untyped_storage(), {})
    key = (weight_oikk.storage_offset(), *weight_oikk.shape, *weight_oikk.stride(), transposed)
    version, transformed = of_storage.get(key, (None, None))
    now = 0 if weight_oikk.is_inference() else weight_oikk._version
    if version != now:
        transformed = _transform(weight_oikk.detach(), transposed)
        of_storage[key] = (now, transformed)
    return transformed


def _transform(weight_oikk: Tensor, transposed: bool) -> Tensor:
    if transposed:
        weight_oikk = weight_oikk.flip(2, 3).transpose(0, 1)
    g = torch.tensor(_TRANSFORM_63, dtype=torch.float64)
    points_noi = torch.einsum("pa,oiab,qb->pqoi", g, weight_oikk.double(), g).flatten(0, 1)
    padded = F.pad(points_noi, (0, 0, 0, -points_noi.shape[1] % _PANEL))
    return padded.unflatten(1, (-1, _PANEL)).permute(1, 0, 3, 2).float().contiguous()
