"""How an implementation of attention is chosen, remembered and refused."""

import json
import logging
import threading

import pytest
import torch

from fastdigin_kernels.attention import api as ops
from fastdigin_kernels.attention import choice as dispatch
from fastdigin_kernels.attention import operations as attention_ops
from fastdigin_kernels.attention.operations import BackendError
from fastdigin_kernels.common import choices

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """No choice in memory or on disk; returns the file of choices."""
    monkeypatch.setenv("FASTDIGIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dispatch, "_chosen", {})
    return tmp_path / "cache" / "attention.json"


@pytest.fixture
def timed(monkeypatch):
    """Every candidate can run, cpp takes half of torch's time; returns the shapes timed."""
    shapes = []

    def time(names, shape, dtype, device):
        shapes.append(shape)
        return {name: 1.0 if name == "sdpa" else 0.5 for name in names}

    monkeypatch.setattr(dispatch, "unavailable", lambda *args: None)
    monkeypatch.setattr(dispatch, "_time", time)
    return shapes


def tensors(batch=2, heads=3, image_tokens=5, tokens=7, size=8, **kwargs):
    q = torch.randn(batch, image_tokens, heads, size, **kwargs).transpose(1, 2)
    k = torch.randn(batch, tokens, heads, size, **kwargs).transpose(1, 2)
    return q, k, k + 1


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="one of auto, sdpa, triton.*got 'flash'"):
        ops.attention(*tensors(), impl="flash")


@pytest.mark.parametrize("impl", attention_ops.BACKENDS)
def test_a_backend_never_falls_back(impl, monkeypatch):
    def missing(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(attention_ops, "import_module", missing)
    attention_ops.backend.cache_clear()
    try:
        with pytest.raises(BackendError, match=f"{impl!r} cannot be used: no fastdigin_kernels"):
            ops.attention(*tensors(), impl=impl)
        assert "cannot be used" in dispatch.unavailable(impl, CPU, torch.float32, 8)
        assert dispatch.choose(*tensors()[:2]) == "sdpa"
    finally:
        attention_ops.backend.cache_clear()


def test_the_choice_is_made_once_and_remembered(timed, fresh, caplog):
    with caplog.at_level(logging.INFO, "fastdigin_kernels"):
        assert dispatch.choose(*tensors()[:2]) == "cpp"
    assert "cpp (sdpa 1 ms, cpp 0.5 ms)" in caplog.text
    (remembered,) = json.loads(fresh.read_text()).values()
    assert list(remembered.values()) == ["cpp"]
    dispatch._chosen.clear()
    assert dispatch.choose(*tensors()[:2]) == "cpp" and timed == [(3, 5, 7, 8)]


def test_neither_batch_nor_strides_nor_gradients_take_part(timed):
    q, k, _ = tensors(batch=1)
    dispatch.choose(q, k)
    dispatch.choose(*tensors(batch=9)[:2])
    dispatch.choose(q.contiguous(), k.contiguous())
    dispatch.choose(q.clone().requires_grad_(), k)
    assert len(timed) == 1
    dispatch.choose(*tensors(tokens=8)[:2])
    assert len(timed) == 2


def test_torch_stays_where_another_is_hardly_faster(monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable", lambda *args: None)
    monkeypatch.setattr(dispatch, "_time", lambda *args: {"sdpa": 1.0, "cpp": 0.96})
    assert dispatch.choose(*tensors()[:2]) == "sdpa"


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 3}', '{"x": {"y": 3}}', "\xff"])
def test_a_corrupt_file_is_replaced(content, timed, fresh):
    fresh.parent.mkdir()
    fresh.write_text(content, encoding="latin-1")
    assert dispatch.choose(*tensors()[:2]) == "cpp"
    assert "cpp" in json.loads(fresh.read_text())[choices.environment(CPU)].values()


def test_an_implementation_that_cannot_run_any_more_is_not_taken_from_the_file(timed, fresh):
    dispatch.choose(*tensors()[:2])
    dispatch._chosen.clear()
    fresh.write_text(fresh.read_text().replace('"cpp"', '"gone"'))
    assert dispatch.choose(*tensors()[:2]) == "cpp" and len(timed) == 2


def test_a_folder_that_cannot_be_written_costs_the_memory_alone(timed, fresh, caplog):
    fresh.parent.write_text("a file, no folder")
    assert dispatch.choose(*tensors()[:2]) == "cpp"
    assert "cannot be kept" in caplog.text


def test_the_first_of_many_decides_for_all(monkeypatch, fresh):
    """Other processes have their own memory but the same file."""
    answers = iter(["sdpa", "cpp"] * 4)
    monkeypatch.setattr(dispatch, "unavailable", lambda *args: None)

    def decide():
        with choices.locked(CPU) as remembered:
            found.append(remembered.setdefault("key", next(answers)))

    found: list[str] = []
    threads = [threading.Thread(target=decide) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["sdpa"] * 8


def test_auto_decides_while_a_compiler_traces_and_inside_transforms(timed, monkeypatch):
    monkeypatch.setattr(dispatch, "_CANDIDATES", {"cpu": ("sdpa",)})
    q, k, v = tensors()

    def step(q):
        out, vjp = torch.func.vjp(lambda q: ops.attention(q, k, v), q)
        return vjp(torch.ones_like(out))[0]

    expected = step(q)
    torch._dynamo.reset()
    dispatch._chosen.clear()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q), expected)
    assert list(dispatch._chosen.values()) == ["sdpa"]


def test_fake_tensors_have_a_choice_too():
    with torch._subclasses.FakeTensorMode():
        assert ops.attention(*tensors()).shape == (2, 3, 5, 8)


def test_other_devices_have_torch_alone():
    assert dispatch.choose(*tensors(device="meta")[:2]) == "sdpa"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), r"takes q \(B,H,N,d\)"),
        (lambda q, k, v: (q, k[:1], v[:1]), r"takes q \(B,H,N,d\)"),
        (lambda q, k, v: (q, k, v[..., :4]), r"takes q \(B,H,N,d\)"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "at least one key"),
        (lambda q, k, v: (q, k.double(), v), "of one dtype, got torch.float32, torch.float64"),
        (lambda q, k, v: (q, k, v.to("meta")), "on one device"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(change, message):
    for impl in ("sdpa", "reference", "auto"):
        with pytest.raises(ValueError, match=message):
            ops.attention(*change(*tensors()), impl=impl)
