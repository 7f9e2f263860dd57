"""``fastdigin bench profile``: an ESTIMATE of a task's speed on a GPU, from counts alone.

No GPU and no weights are needed. Networks of the true architecture run on fake tensors, which have
shapes but no content, and the task's own loop drives the engine (stages.py). Every operation is
counted on its way (ledger.py). The formula is fixed: FLOPs / rate for every product, and bytes /
bandwidth for every other operation, with no overlap. The rates are stated, not measured (gpus.py).
Kernels that a compiler would fuse cannot be seen here: steps are not compiled.
"""

from fastdigin_bench.profile.report import run

__all__ = ["run"]
