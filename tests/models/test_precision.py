"""Which device and floating point type networks get, told apart by what the device can do."""

import pytest
import torch

from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.precision import DTYPES, choose_device, choose_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A function that pretends one CUDA device of a compute capability."""
    before = torch.get_float32_matmul_precision()

    def pretend(*capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    yield pretend
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")],
)
def test_auto_is_what_the_device_is_fast_in(gpu, capability, dtype):
    gpu(*capability)
    assert choose_device().type == "cuda"
    assert choose_dtype("auto", GPU) == DTYPES[dtype]
    assert choose_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize("dtype", ["fp32", torch.float32])
def test_single_precision_on_a_gpu_allows_tf32(gpu, dtype):
    gpu(8, 0)
    torch.set_float32_matmul_precision("highest")
    for other, device in (("bf16", GPU), (torch.float64, GPU), (dtype, CPU)):
        choose_dtype(other, device)
        assert torch.get_float32_matmul_precision() == "highest"
    assert choose_dtype(dtype, GPU) == torch.float32
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("dtype", ["float16x", "int8", torch.int8, None])
def test_types_that_are_none(dtype):
    with pytest.raises(UserError, match="dtype must be auto, bf16, fp16, fp32 or one of torch's"):
        LatentDiffusion.from_pretrained("embedded", device="cpu", dtype=dtype)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("mps", "has no double precision"),
        ("gpu", "is not one of torch's"),
        ("cuda:7", "'cuda:7' is not there"),
    ],
)
def test_devices_that_cannot_be_used(gpu, device, message):
    gpu(8, 0)
    with pytest.raises(UserError, match=message):
        LatentDiffusion.from_pretrained("embedded", device=device)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_names_of_types(name):
    model = LatentDiffusion.from_pretrained("embedded", device="cpu", dtype=name)
    assert {p.dtype for n in model.networks for p in n.parameters()} == {DTYPES[name]}
