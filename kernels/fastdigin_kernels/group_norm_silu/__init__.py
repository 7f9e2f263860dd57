"""Group norm followed by SiLU, with frozen parameters."""

from fastdigin_kernels.group_norm_silu.api import group_norm_silu, group_norm_silu_reference

__all__ = ["group_norm_silu", "group_norm_silu_reference"]
