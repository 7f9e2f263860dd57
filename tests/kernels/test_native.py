import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fastdigin_kernels.common import native

needs_library = pytest.mark.skipif(
    native.library_path() is None, reason="installed without the CPU library"
)


@needs_library
def test_features_are_known_and_consistent():
    features = native.cpu_features()
    assert set(features) <= {"avx2", "avx512f"}
    assert "avx2" in features or "avx512f" not in features  # every AVX-512 processor has AVX2
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        flags = cpuinfo.read_text().split()
        assert ("avx512f" in features) == ("avx512f" in flags)


@needs_library
def test_other_abi_is_refused(monkeypatch):
    native._load_library.cache_clear()
    monkeypatch.setattr(native, "_ABI_VERSION", -1)
    with pytest.raises(ImportError, match="install the package again"):
        native.cpu_features()
    native._load_library.cache_clear()


def test_without_the_library_there_are_no_features(monkeypatch, tmp_path):
    native._load_library.cache_clear()
    monkeypatch.setattr(native.fastdigin_kernels, "__path__", [str(tmp_path)])
    assert native.library_path() is None
    assert native.cpu_features() == ()
    native._load_library.cache_clear()


def test_cpu_model(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 85\nmodel name\t: A CPU @ 2 GHz\n")
    monkeypatch.setattr(native, "_CPUINFO", cpuinfo)
    assert native.cpu_model() == "A CPU @ 2 GHz"
    cpuinfo.unlink()
    assert native.cpu_model()


def test_kernels_do_not_import_fastdigin():
    code = (
        "import sys, fastdigin_kernels.attention, fastdigin_kernels.common.native;"
        "sys.exit('fastdigin' in sys.modules)"
    )
    paths = [p for p in sys.path if p] + [sysconfig.get_path("purelib")]
    environment = {"PYTHONPATH": ":".join(paths)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
