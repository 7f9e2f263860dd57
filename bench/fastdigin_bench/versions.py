"""The contracts with the oldest versions that pyproject.toml allows, or those of a GPU machine.

    python -m fastdigin_bench.versions oldest    # from a checkout; 6 GB of disk, some minutes
    python -m fastdigin_bench.versions gpu --folder DIR

It makes a virtual environment, installs the versions, and runs TESTS there. The exit code is
pytest's.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ("tests/contracts", "tests/models", "tests/embedded/test_package.py")
GPU = {"torch": "==2.11.*", "triton": "==3.6.*", "transformers": "==5.17.*", "numpy": "<2.4"}
"""What machines with GPUs often have; Triton 3.6 interprets kernels only with numpy before 2.4."""


def requirements(kind: str, project: str) -> list[str]:
    """What pip is asked for: every package that pyproject.toml names with a bound, and pytest.

    kind: "oldest" pins each to its bound; "gpu" leaves the bounds, and pins the packages of GPU.
    """
    bounds = dict(re.findall(r'"([\w-]+)(>=[\w.]+)"', project))
    bounds = {name: bound for name, bound in bounds.items() if not name.startswith("scikit-build")}
    if kind == "oldest":
        return sorted(name + bound.replace(">=", "==") for name, bound in bounds.items())
    return sorted(name + bound for name, bound in (bounds | GPU).items())


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("oldest", "gpu"))
    parser.add_argument("--folder", type=Path, help="of the environment; kept and used again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        python = folder / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        wanted = requirements(options.kind, (ROOT / "pyproject.toml").read_text())
        wanted += ["scipy", str(ROOT)]
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        return subprocess.run([python, "-m", "pytest", "-q", *TESTS], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
