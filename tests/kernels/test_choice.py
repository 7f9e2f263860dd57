"""How an implementation is chosen, remembered and refused; what CUDA would get is pretended."""

import json
import logging
import threading

import pytest
import torch
from kernel_operations import INTERPRETED

from fastdigin_kernels.attention import attention, unavailable
from fastdigin_kernels.common import choice, choices, native, registry
from fastdigin_kernels.common.registry import BackendError
from fastdigin_kernels.geglu import geglu
from fastdigin_kernels.group_norm_silu import group_norm_silu

pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton would run on the CPU")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SHAPES = {"attention": (3, 5, 7, 8), "group_norm_silu": (6, 5, 7, 3), "geglu": (5, 16)}


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """No choice in memory or on disk; returns the file of attention's choices."""
    monkeypatch.setenv("FASTDIGIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "_chosen", {})
    return tmp_path / "cache" / "attention.json"


@pytest.fixture
def timed(monkeypatch):
    """Every backend can run and takes half of PyTorch's time; returns what was timed."""
    found = []

    def time(names, run, device):
        found.append(run)
        return dict(zip(names, (1.0, 0.5), strict=True))

    for operation in SHAPES:
        declared = choice._operations[operation]
        pretended = choice.Operation(
            declared.own, declared.implementations, lambda *what: what, declared.untimed
        )
        monkeypatch.setitem(choice._operations, operation, pretended)
    monkeypatch.setattr(choice, "unavailable", lambda *args: None)
    monkeypatch.setattr(choice, "_time", time)
    monkeypatch.setattr(choices, "environment", lambda device: f"a {device.type}")
    return found


def auto(q, k):
    _, heads, image_tokens, size = q.shape
    return choice.choose("attention", "auto", (heads, image_tokens, k.shape[2], size), q)


def tensors(batch=2, heads=3, image_tokens=5, tokens=7, size=8, **kwargs):
    q = torch.randn(batch, image_tokens, heads, size, **kwargs).transpose(1, 2)
    k = torch.randn(batch, tokens, heads, size, **kwargs).transpose(1, 2)
    return q, k, k + 1


@pytest.mark.parametrize("name", SHAPES)
def test_auto_can_take_every_implementation(name, timed):
    """But the reference. No GPU is needed."""
    taken = [choice._decide(name, "auto", SHAPES[name], torch.float32, device)
             for device in (CPU, CUDA, torch.device("meta"))]  # fmt: skip
    assert taken == ["cpp", "triton", choice.own(name)]
    assert set(taken) == set(choice.implementations(name)) - {"auto", "reference"}
    assert [device for *_, device in timed] == ([CPU] if name == "attention" else []) + [CUDA]


def test_pytorchs_own_stays_where_the_backend_is_hardly_faster(timed, monkeypatch):
    def time(names, *_):
        return dict(zip(names, (1.0, 0.96), strict=True))

    monkeypatch.setattr(choice, "_time", time)
    for name, shape in SHAPES.items():
        assert choice._decide(name, "auto", shape, torch.float16, CUDA) == choice.own(name)


@pytest.mark.skipif(native.library_path() is None, reason="installed without the CPU library")
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_timed_runs(name):
    """Each as declared, forward and backward, on the CPU."""
    run = choice._operations[name].prepare(SHAPES[name], torch.float32, CPU)
    names = (choice.own(name), "cpp")
    assert all(ms > 0 for ms in choice._time(names, run, CPU).values())


@pytest.mark.skipif(native.library_path() is None, reason="installed without the CPU library")
def test_the_fused_operations_take_cpp_for_float32_on_the_cpu_alone():
    x = torch.ones(1)
    for name in ("group_norm_silu", "geglu"):
        for given, expected in [
            (x, "cpp"), (x.double(), "torch"), (x.bfloat16(), "torch"), (x.to("meta"), "torch")
        ]:  # fmt: skip
            assert choice.choose(name, "auto", SHAPES[name], given) == expected


def test_an_unknown_name_is_refused_with_those_there_are():
    x = torch.ones(2, 6, 5, 7)
    for call, names in [
        (lambda: attention(*tensors(), impl="flash"), "auto, sdpa, triton.*got 'flash'"),
        (lambda: geglu(torch.ones(2, 4), impl="sdpa"), "auto, torch, cpp, triton, got 'sdpa'"),
        (lambda: group_norm_silu(x, x[0, :, 0, 0], x[0, :, 0, 0], 2, impl="x"), "auto, torch"),
        (lambda: unavailable("flash", CPU, torch.float32, 8), "auto, sdpa"),
    ]:
        with pytest.raises(ValueError, match=f"impl must be one of {names}"):
            call()


@pytest.mark.parametrize("impl", ["cpp", "triton"])
def test_a_backend_never_falls_back(impl, monkeypatch):
    def missing(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(registry, "import_module", missing)
    registry.backend.cache_clear()
    x = torch.ones(2, 6, 5, 7)
    try:
        for call in (
            lambda: attention(*tensors(), impl=impl),
            lambda: geglu(x[..., :6], impl=impl),
            lambda: group_norm_silu(x, x[0, :, 0, 0], x[0, :, 0, 0], 2, impl=impl),
        ):
            with pytest.raises(BackendError, match=f"by '{impl}' .* cannot be used: no fastdigin"):
                call()
        assert "cannot be used" in unavailable(impl, CPU, torch.float32, 8)
        assert auto(*tensors()[:2]) == "sdpa"
    finally:
        registry.backend.cache_clear()


def test_what_cannot_run_here_is_said():
    for impl, dtype, reason in [
        ("triton", torch.float32, "on CUDA devices, not on cpu"),
        ("triton", torch.float64, "takes float16, bfloat16 and float32, not torch.float64"),
        ("cpp", torch.bfloat16, "not in torch.bfloat16"),
    ]:
        if impl != "cpp" or native.library_path() is not None:
            assert reason in unavailable(impl, CPU, dtype, 8)


def test_the_choice_is_made_once_and_remembered(timed, fresh, caplog):
    with caplog.at_level(logging.INFO, "fastdigin_kernels"):
        assert auto(*tensors()[:2]) == "cpp"
    assert "cpp (sdpa 1 ms, cpp 0.5 ms)" in caplog.text
    (remembered,) = json.loads(fresh.read_text()).values()
    assert list(remembered.values()) == ["cpp"]
    choice._chosen.clear()
    assert auto(*tensors()[:2]) == "cpp" and timed == [((3, 5, 7, 8), torch.float32, CPU)]


def test_neither_batch_nor_strides_nor_gradients_take_part(timed):
    q, k, _ = tensors(batch=1)
    for given in [
        (q, k), tensors(batch=9)[:2], (q.contiguous(), k.contiguous()),
        (q.clone().requires_grad_(), k),
    ]:  # fmt: skip
        auto(*given)
    assert len(timed) == 1
    auto(*tensors(tokens=8)[:2])
    assert len(timed) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 3}', '{"x": {"y": 3}}', "\xff"])
def test_a_corrupt_file_is_replaced(content, timed, fresh):
    fresh.parent.mkdir()
    fresh.write_text(content, encoding="latin-1")
    assert auto(*tensors()[:2]) == "cpp"
    assert "cpp" in json.loads(fresh.read_text())["a cpu"].values()


def test_an_implementation_that_cannot_run_any_more_is_not_taken_from_the_file(timed, fresh):
    auto(*tensors()[:2])
    choice._chosen.clear()
    fresh.write_text(fresh.read_text().replace('"cpp"', '"gone"'))
    assert auto(*tensors()[:2]) == "cpp" and len(timed) == 2


def test_a_folder_that_cannot_be_written_costs_the_memory_alone(timed, fresh, caplog):
    fresh.parent.write_text("a file, no folder")
    assert auto(*tensors()[:2]) == "cpp"
    assert "cannot be kept" in caplog.text


def test_the_first_of_many_decides_for_all():
    """Other processes have their own memory but the same file."""
    answers = iter(["sdpa", "cpp"] * 4)
    found: list[str] = []

    def decide():
        names = ("sdpa", "cpp")
        found.append(choices.remembered("attention", CPU, "key", names, lambda: next(answers)))

    threads = [threading.Thread(target=decide) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["sdpa"] * 8


def test_auto_decides_while_a_compiler_traces_and_inside_transforms(timed, monkeypatch):
    monkeypatch.setattr(choice, "BACKENDS", {})
    q, k, v = tensors()

    def step(q):
        out, vjp = torch.func.vjp(lambda q: attention(q, k, v), q)
        return vjp(geglu(torch.ones_like(out).repeat(1, 1, 1, 2)))[0]

    expected = step(q)
    torch._dynamo.reset()
    choice._chosen.clear()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q), expected)
    assert sorted(choice._chosen.values()) == ["sdpa", "torch"]


@pytest.mark.skipif(native.library_path() is None, reason="installed without the CPU library")
def test_shapes_that_a_compiler_does_not_know_are_asked_for_by_a_timed_choice_alone():
    x, (q, k, v) = torch.randn(2, 6, 5, 8), tensors()
    for function, inputs in [
        (geglu, (x,)),
        (lambda x, w: group_norm_silu(x, w, w, 3), (x, torch.ones(6))),
        (lambda *qkv: attention(*qkv, impl="sdpa"), (q, k, v)),
        (lambda *qkv: attention(*qkv, impl="cpp"), (q, k, v)),
    ]:
        torch._dynamo.reset()
        for tokens in (2, 3):  # the first dimension of queries, keys and images is then dynamic
            given = [t[:, :, :tokens] if t.ndim == 4 else t for t in inputs]
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(*given), function(*given))


def test_fake_tensors_have_a_choice_too():
    with torch._subclasses.FakeTensorMode():
        assert attention(*tensors()).shape == (2, 3, 5, 8)
