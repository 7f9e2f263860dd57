"""The C++ kernels under sanitizers, and without a warning: csrc/tests/cpu_kernels_test.cpp."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("cmake", "c++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)) or not (ROOT / "CMakeLists.txt").exists(),
        reason=f"needs the sources and {' and '.join(TOOLS)}",
    ),
]


def run(*command):
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-5000:]
    return finished.stdout


def build(folder, target, *options):
    run("cmake", "-S", ROOT, "-B", folder, "-DCMAKE_CXX_FLAGS=-Werror", *options)
    return run("cmake", "--build", folder, "--target", target)


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizers, tmp_path):
    program = tmp_path / "program.cpp"
    program.write_text("int main() {}")
    flag = f"-fsanitize={sanitizers}"
    if subprocess.run(["c++", flag, program, "-o", tmp_path / "program"]).returncode:
        pytest.skip(f"the compiler has no {flag}")
    build(
        tmp_path / "build", "fastdigin_cpu_test",
        "-DFASTDIGIN_TESTS=ON", f"-DFASTDIGIN_SANITIZE={sanitizers}",
    )  # fmt: skip
    assert "all agree" in run(tmp_path / "build" / "fastdigin_cpu_test")


def test_a_release_build_has_no_warning(tmp_path):
    built = build(tmp_path, "fastdigin_cpu", "-DCMAKE_BUILD_TYPE=Release")
    assert "Built target fastdigin_cpu" in built and "warning" not in built
