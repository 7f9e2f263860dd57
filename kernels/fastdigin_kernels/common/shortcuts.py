"""Whether a call may go around torch's dispatcher and autograd's bookkeeping.

Both take tens of microseconds a call, as long as the smallest kernels (bench/NOTES.md), and serve
those who follow operations: compilers, transforms, modes such as a counter of operations,
profilers. torch has no public way to ask whether there are any. The private names that tell are
used here and nowhere else. Where one of them is missing, every call takes the public way.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from torch._C import _are_functorch_transforms_active as may_be_transformed
    from torch._C import _len_torch_dispatch_stack
    from torch._C._functorch import is_functorch_wrapped_tensor
    from torch.autograd.profiler import _is_profiler_enabled  # noqa: F401 - asked at every call
except ImportError:
    AVAILABLE = False

    def may_be_transformed() -> bool:
        """Whether a transform of torch.func may be at work."""
        return True
else:
    AVAILABLE = True


def may_be_watched(args: tuple) -> bool:
    """Whether a mode, a profiler or a transform may want to see an operation on ``args``.

    So does whatever kind of tensor has no numbers of its own.
    """
    if (
        not AVAILABLE
        or _len_torch_dispatch_stack() > 0
        or torch.autograd.profiler._is_profiler_enabled
    ):
        return True
    for x in args:
        if type(x) is Tensor:
            if is_functorch_wrapped_tensor(x):
                return True
        elif isinstance(x, Tensor) and type(x) is not torch.nn.Parameter:
            return True
    return False
