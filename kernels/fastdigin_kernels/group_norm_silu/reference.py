"""Group norm, and group norm followed by SiLU, by their definitions."""

from __future__ import annotations

import torch
from torch import Tensor


def group_norm_reference(
    x_bchw: Tensor, weight_c: Tensor, bias_c: Tensor, groups: int, eps: float = 1e-5
) -> Tensor:
    """group_norm(x) -> (B,C,H,W)."""
    x_bgnhw = x_bchw.unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(x_bgnhw, dim=(2, 3, 4), correction=0, keepdim=True)
    normalised = ((x_bgnhw - mean) / torch.sqrt(variance + eps)).flatten(1, 2)
    return normalised * weight_c[:, None, None] + bias_c[:, None, None]


def group_norm_silu_reference(*norm) -> Tensor:
    """silu(group_norm(x)) -> (B,C,H,W); arguments as of `group_norm_reference`."""
    y_bchw = group_norm_reference(*norm)
    return y_bchw * torch.sigmoid(y_bchw)
