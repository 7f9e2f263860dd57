"""The guided DDIM update by Triton against fp64. Where it runs: tests/triton_device.py."""

import pytest
import torch
from triton_device import DEVICE, DTYPES, excess, on_device, poisoned  # noqa: F401 - a fixture

pytest.importorskip("triton")
from fastdigin_kernels.guided_ddim import guided_ddim, guided_ddim_reference  # noqa: E402

pytestmark = on_device


def draw(batch, channels, height, width, eps_dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    z, cond, null, source = (normal(batch, channels, height, width) for _ in range(4))
    weight = torch.rand(batch, 1, height, width, generator=generator).to(DEVICE)
    variables = [x.requires_grad_() for x in (z, cond.to(eps_dtype), null.to(eps_dtype))]
    return variables, (normal(batch, 4), 3 * normal(batch), weight, source)


def run(function, variables, constants, **options):
    outputs = function(*variables, *constants, **options)
    probes = [torch.cos(torch.arange(x.numel(), device=x.device).to(x.dtype)) for x in outputs]
    probes = [probe.view_as(x) for probe, x in zip(probes, outputs, strict=True)]
    return *(x.detach() for x in outputs), *torch.autograd.grad(outputs, variables, probes)


@pytest.mark.parametrize("eps_dtype", DTYPES)
@pytest.mark.parametrize("blend", ["none", "each", "one"])
@pytest.mark.parametrize("size", [(3, 4, 5, 7), (1, 4, 1, 1), (2, 4, 32, 32)])
def test_errors_are_at_most_twice_those_of_torch(size, blend, eps_dtype, poisoned):  # noqa: F811
    variables, (coefficients, guidance, weight, source) = draw(*size, eps_dtype)
    constants = (coefficients, guidance)
    if blend != "none":
        constants += (weight if blend == "each" else weight[:1], source)
    exact = [x.detach().double().requires_grad_() for x in variables]
    truth = run(guided_ddim_reference, exact, [x.double() for x in constants])
    actual = run(guided_ddim, variables, constants, impl="triton")
    torchs = run(guided_ddim, variables, constants, impl="torch")
    names = ("z_prev", "x0", "dz", "dcond", "dnull")
    for name, *result in zip(names, actual, torchs, truth, strict=True):
        assert result[0].dtype == result[1].dtype
        assert excess(*result) <= 1, f"{name}: {excess(*result):.2f}"


def test_repeats_strides_and_no_samples():
    variables, constants = draw(2, 4, 8, 8, torch.float16)
    first = run(guided_ddim, variables, constants, impl="triton")
    again = run(guided_ddim, variables, constants, impl="triton")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    last = [
        x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for x in variables
    ]
    strided = run(guided_ddim, last, constants, impl="triton")
    assert all(torch.equal(a, b) for a, b in zip(first, strided, strict=True))
    none = guided_ddim(*(x[:0] for x in (*variables, *constants)), impl="triton")
    assert none[0].shape == (0, 4, 8, 8)


def test_what_cannot_be_taken_is_named():
    variables, constants = draw(2, 4, 8, 8, torch.float32)
    with pytest.raises(ValueError, match="float64"):
        guided_ddim(*(x.double() for x in (*variables, *constants)), impl="triton")
    with pytest.raises(ValueError, match="not on meta"):
        guided_ddim(*(x.to("meta") for x in (*variables, *constants)), impl="triton")
