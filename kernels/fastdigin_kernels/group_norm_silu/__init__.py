"""Group norm followed by SiLU, with frozen parameters."""

from fastdigin_kernels.group_norm_silu.api import IMPLEMENTATIONS, group_norm, group_norm_silu

__all__ = ["IMPLEMENTATIONS", "group_norm", "group_norm_silu"]
