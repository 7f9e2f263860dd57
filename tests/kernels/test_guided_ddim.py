import pytest
import torch

from fastdigin_kernels.guided_ddim import guided_ddim, guided_ddim_reference


def draw(batch=3, channels=4, height=5, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    size = (batch, channels, height, width)
    variables = [normal(*size).requires_grad_() for _ in range(3)]
    weight = torch.rand(batch, 1, height, width, generator=generator).to(dtype)
    return variables, (normal(batch, 4), normal(batch), weight, normal(*size))


def outputs_and_gradients(function, variables, constants, **options):
    outputs = function(*variables, *constants, **options)
    probes = [torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view_as(x) for x in outputs]
    return *outputs, *torch.autograd.grad(outputs, variables, probes)


@pytest.mark.parametrize("blended", [False, True])
def test_agrees_with_its_reference(blended):
    variables, constants = draw()
    constants = constants if blended else constants[:2]
    actual = outputs_and_gradients(guided_ddim, variables, constants)
    expected = outputs_and_gradients(guided_ddim_reference, variables, constants)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_gradients_agree_with_finite_differences():
    variables, constants = draw(1, 2, 2, 3)
    assert torch.autograd.gradcheck(lambda *v: guided_ddim(*v, *constants), variables)


def test_one_mask_serves_all_samples():
    (z, cond, null), (coefficients, guidance, weight, source) = draw()
    one = guided_ddim(z, cond, null, coefficients, guidance, weight[:1], source)
    each = guided_ddim(
        z, cond, null, coefficients, guidance, weight[:1].expand(3, -1, -1, -1), source
    )
    for a, e in zip(one, each, strict=True):
        torch.testing.assert_close(a, e)


def test_low_precision_outputs_of_the_network_do_not_lower_the_latents():
    (z, cond, null), constants = draw(dtype=torch.float32)
    half = [x.detach().half().requires_grad_() for x in (cond, null)]
    z_prev, x0 = guided_ddim(z, *half, *constants)
    assert z_prev.dtype == x0.dtype == torch.float32
    expected = guided_ddim_reference(z, *(x.float() for x in half), *constants)
    torch.testing.assert_close((z_prev, x0), expected)
    dz, dcond, dnull = torch.autograd.grad((z_prev.sum() + x0.sum()), (z, *half))
    assert (dz.dtype, dcond.dtype, dnull.dtype) == (torch.float32, torch.float16, torch.float16)


def test_nothing_of_the_variables_is_kept():
    variables, constants = draw()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        guided_ddim(*variables, *constants)
    assert {x.data_ptr() for x in kept} <= {x.data_ptr() for x in constants}


def test_works_under_functional_transforms():
    variables, constants = draw()
    expected = outputs_and_gradients(guided_ddim_reference, variables, constants)
    outputs, pull = torch.func.vjp(
        lambda *v: guided_ddim(*v, *constants), *(v.detach() for v in variables)
    )
    probes = tuple(torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view_as(x) for x in outputs)
    for a, e in zip((*outputs, *pull(probes)), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_what_cannot_be_taken_is_named():
    (z, cond, null), (coefficients, guidance, weight, source) = draw()
    trainable = guidance.clone().requires_grad_()
    for arguments, reason in [
        ((z[0], cond, null, coefficients, guidance), r"z must be \(B,C,H,W\)"),
        ((z, cond[:2], null, coefficients, guidance), "cond must be"),
        ((z, cond, null.float(), coefficients, guidance), "cond and null must have one dtype"),
        ((z, cond, null, coefficients[:, :3], guidance), r"coefficients must be \(3, 4\)"),
        ((z, cond, null, coefficients, guidance[:2]), r"guidance must be \(3,\)"),
        ((z, cond, null, coefficients, guidance, weight), "give both or neither"),
        ((z, cond, null, coefficients, guidance, weight[:2], source), "weight must be"),
        ((z, cond, null, coefficients, trainable), "guidance requires a gradient"),
        ((z, cond, null, coefficients, guidance, None, None, "cuda"), "impl must be"),
    ]:
        with pytest.raises(ValueError, match=reason):
            guided_ddim(*arguments)
