"""What a device is asked: its memory as containers limit it, bytes counted, another pretended."""

from types import SimpleNamespace

import pytest
import torch

from fastdigin import hardware
from fastdigin.hardware import Hardware, LiveBytes


@pytest.mark.parametrize(
    ("cgroup", "files", "rest"),
    [
        ("0::/", {}, 8000),
        ("0::/a/b", {"a/b/memory.max": "5000", "a/b/memory.current": "2000"}, 3000),
        ("0::/a/b", {"a/memory.max": "5000", "a/memory.current": "2000"}, 3000),
        ("0::/far", {"memory.max": "5000", "memory.current": "4500"}, 500),
        ("0::/a", {"a/memory.max": "max", "a/memory.current": "2000"}, 8000),
        (
            "5:cpu:/x\n4:memory:/a",
            {"memory/a/memory.limit_in_bytes": "900", "memory/a/memory.usage_in_bytes": "1000"},
            0,
        ),
    ],
)
def test_free_memory_respects_control_groups(monkeypatch, tmp_path, cgroup, files, rest):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(cgroup + "\n")
    for name, content in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(content + "\n")
    monkeypatch.setattr(hardware, "_PROC", proc)
    monkeypatch.setattr(hardware, "_CGROUP", groups)
    available = SimpleNamespace(available=8000)
    monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: available)
    assert hardware.of("cpu").free_memory() == rest


def test_live_bytes_follow_storages():
    outside = torch.ones(1000)
    with LiveBytes() as live:
        a = outside.view(10, 100)[:, :50]
        assert live.now == 0, "views of what was there before take nothing"
        b = a + 1
        view = b[2:]
        del b
        assert live.now == 500 * 4, "a view holds the whole storage"
        del view
        assert live.now == 0 and live.peak == 500 * 4
        x = torch.ones(64, 64, requires_grad=True)
        y = (x.exp() * 2).sum()
        assert live.now == 2 * 64 * 64 * 4 + 4, "exp saved its output"
        torch.autograd.grad(y, x)
        del y
        assert live.now == 64 * 64 * 4 and live.peak <= 5 * 64 * 64 * 4


def test_a_pretended_device_stands_for_all_until_the_context_ends():
    class Large(Hardware):
        is_gpu, capability = True, (9, 0)

        def free_memory(self):
            return 80 * 2**30

    with pytest.raises(ValueError, match="out"), hardware.pretend(Large()):
        for device in ("cpu", torch.device("cuda", 3)):
            assert hardware.of(device).is_gpu and hardware.of(device).free_memory() == 80 * 2**30
        raise ValueError("out")
    assert not hardware.of("cpu").is_gpu and hardware.of("cuda").is_gpu
