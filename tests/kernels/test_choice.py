"""How an implementation is chosen, remembered and refused; what CUDA would get is pretended."""

import contextlib
import dataclasses
import functools
import json
import logging
import threading

import pytest
import torch
from kernel_operations import INTERPRETED

from fastdigin_kernels.attention import attention, unavailable
from fastdigin_kernels.common import choice, choices, clocks, native, registry
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


MILLISECONDS = {"sdpa": 1.0, "torch": 1.0, "cpp": 0.5, "triton": 0.5, "cudnn": 0.7}


class FakeClock:
    """Says how long an implementation takes; runs nothing."""

    def __init__(self, kind):
        pass

    def prepare(self, call):
        return call

    def milliseconds(self, call):
        return TIMES[call.args[0]]


TIMES: dict[str, float] = {}


@pytest.fixture
def timed(monkeypatch):
    """Every backend can run, and takes MILLISECONDS; returns what was timed.

    TIMES may be changed; what an implementation gives is 1, or what `found.wrong` says.
    """
    TIMES.clear()
    TIMES.update(MILLISECONDS)
    found = Timed()
    for name in SHAPES:

        def prepare(*what):
            found.append(what)
            return lambda impl: [torch.tensor(found.wrong.get(impl, 1.0))]

        pretended = dataclasses.replace(choice._operations[name], prepare=prepare)
        monkeypatch.setitem(choice._operations, name, pretended)
    monkeypatch.setattr(choice, "unavailable", lambda *args: None)
    monkeypatch.setattr(clocks, "clock_of", FakeClock)
    monkeypatch.setattr(choices, "environment", lambda device: f"a {device.type}")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: found.recording)
    return found


class Timed(list):
    """(shape, batch, dtype, device) of what was timed."""

    def __init__(self):
        super().__init__()
        self.wrong, self.recording = {}, False


def decide(name, device, batch=None, dtype=torch.float16):
    return choice._decide(name, "auto", SHAPES[name], batch, dtype, device)


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
    taken = [decide(name, device) for device in (CPU, CUDA, torch.device("meta"))]
    assert taken == ["cpp", "triton", choice.own(name)]
    TIMES["cudnn"] = 0.4
    taken += [decide(name, CUDA, batch=3)]
    assert set(taken) == set(choice.implementations(name)) - {"auto", "reference", "xformers"}
    devices = [CPU] if name == "attention" else []
    assert [device for *_, device in timed] == [*devices, CUDA, CUDA]


def test_pytorchs_own_stays_where_no_backend_is_clearly_faster(timed):
    TIMES.update(cpp=0.96, triton=0.96, cudnn=0.95)
    for name in SHAPES:
        assert decide(name, CUDA) == choice.own(name)


@pytest.mark.parametrize("wrong", [float("nan"), 0.9, 1.1])
def test_who_gives_other_results_than_pytorch_is_not_taken(wrong, timed, caplog):
    TIMES["cudnn"] = 0.1
    timed.wrong["cudnn"] = wrong
    assert decide("attention", CUDA, batch=16) == "triton"
    assert "cudnn is not taken" in caplog.text
    timed.wrong["triton"] = wrong
    assert decide("attention", CUDA, batch=8) == "sdpa"


def test_who_fails_is_not_taken(caplog):
    """As cuDNN on GPUs that are too old; where memory runs out, that is another matter."""
    error = RuntimeError("No available kernel. Aborting execution.")

    def run(name):
        if name == "cudnn":
            raise error
        return [torch.ones(2)]

    assert choice._sound(("sdpa", "triton", "cudnn"), run) == ["sdpa", "triton"]
    assert "cudnn is not taken: RuntimeError: No available kernel" in caplog.text
    error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        choice._sound(("sdpa", "triton", "cudnn"), run)


def test_on_cuda_the_batch_is_timed_as_it_is(timed):
    def taken(batch):
        return choice._choose("attention", "auto", (batch, 3, 5, 7, 8), torch.float16, CUDA)

    assert taken(16) == "triton"
    TIMES["sdpa"] = 0.1
    assert (taken(2), taken(16)) == ("sdpa", "triton")
    assert [batch for _, batch, _, _ in timed] == [16, 2]
    assert [shape for shape, *_ in timed] == [(3, 5, 7, 8)] * 2


def test_while_a_graph_is_recorded_nothing_is_timed_and_nothing_remembered(timed):
    timed.recording = True
    long, short = (2, 3, 5, 4096, 8), (2, 3, 5, 77, 8)
    for shape, expected in ((long, "sdpa"), (short, "triton")):
        assert choice._choose("attention", "auto", shape, torch.float16, CUDA) == expected
    assert not timed and not choice._chosen
    timed.recording = False
    assert choice._choose("attention", "auto", long, torch.float16, CUDA) == "triton" and timed


def test_where_algorithms_must_be_deterministic_ours_are_taken_untimed(timed):
    TIMES["sdpa"] = TIMES["torch"] = 0.1
    torch.use_deterministic_algorithms(True)
    try:
        assert [decide(name, CUDA, batch=2) for name in SHAPES] == ["triton"] * 3 and not timed
        assert decide("attention", CPU) == "sdpa", "a CPU's are deterministic: they are timed"
    finally:
        torch.use_deterministic_algorithms(False)
    assert decide("attention", CUDA, batch=2) == "sdpa"


@pytest.mark.skipif(native.library_path() is None, reason="installed without the CPU library")
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_timed_runs(name):
    """Each as declared, forward and backward, on the CPU."""
    for batch in (None, 3):
        run = choice._operations[name].prepare(SHAPES[name], batch, torch.float32, CPU)
        names = [choice.own(name), "cpp"]
        assert choice._sound(names, run) == names
        calls = {each: functools.partial(run, each) for each in names}
        assert all(ms > 0 for ms in clocks.time_in_turns(calls, "cpu").values())


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
    assert auto(*tensors()[:2]) == "cpp"
    assert timed == [((3, 5, 7, 8), None, torch.float32, CPU)]


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


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 3}', '{"x": {"y": 3}}', "\xff", "[" * 10**5])
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
    for name in ("attention", "geglu"):
        nobody = dataclasses.replace(choice._operations[name], rivals={})
        monkeypatch.setitem(choice._operations, name, nobody)
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
def test_shapes_that_a_compiler_does_not_know(fresh):
    """A timed choice is for the length that there is, and the same as without a compiler."""
    x, (q, k, v) = torch.randn(2, 6, 5, 8), tensors()
    for function, inputs in [
        (attention, (q, k, v)),
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


@pytest.mark.gpu
def test_events_time_a_graph_of_calls():
    """A product of eight times the work takes several times as long, whatever starting it takes."""
    a, b = (torch.randn(n, n, device="cuda") for n in (1024, 2048))
    calls = {"small": lambda: a @ a, "large": lambda: b @ b, "waits": lambda: float(a.sum())}
    taken = clocks.time_in_turns(calls, "cuda")
    assert 3 < taken["large"] / taken["small"] < 20 and taken["waits"] > 0
