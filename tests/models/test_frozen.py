"""Networks that keep less for the backward: the same function, the same gradient, fewer bytes."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from gradients import assert_all_ways_agree, output_and_gradient
from tiny import LATENT_SHAPE, assert_near, build_tiny, normal
from torch import nn
from torch._subclasses import FakeTensorMode

from fastdigin.engine.architectures import SD_1_4
from fastdigin.engine.footprint import unet_pass
from fastdigin.models.attention import install_processors
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.frozen import FrozenConv2d, FrozenGroupNormSiLU, freeze_aware
from fastdigin_bench.counters import SavedBytes
from fastdigin_kernels.common import native
from fastdigin_kernels.common.registry import backend


@pytest.fixture(scope="module")
def tiny_pair(tiny):
    """The networks of two tiny models of the same weights: diffusers' own, and freeze-aware."""
    return tiny.pipe, build_tiny().model


@pytest.fixture(scope="module")
def embedded_pair(embedded):
    """The packaged U-Net and autoencoder in fp64: (plain, freeze-aware) each."""

    def both(network):  # which is freeze-aware already
        plain = type(network).from_config(network.config)
        plain.load_state_dict(network.state_dict())
        plain.double().eval().requires_grad_(False)
        if isinstance(plain, UNet2DConditionModel):
            install_processors(plain)
        return plain, copy.deepcopy(network).double()

    return both(embedded.unet), both(embedded.vae)


def test_a_timestep_of_all_samples_is_embedded_once(embedded_pair):
    (plain, frozen), _ = embedded_pair
    latents, text = normal(3, 4, 16, 16), normal(3, 16, 64, seed=1)
    t = torch.tensor([900])
    rows = []
    handle = frozen.time_embedding.register_forward_hook(lambda *x: rows.append(len(x[-1])))
    for given in (t, t.expand(3), torch.tensor([900, 900, 3])):
        expected = plain(latents, given, text, return_dict=False)[0]
        assert_near(frozen(latents, given, text, return_dict=False)[0], expected, 1e-12)
    handle.remove()
    assert rows == [1, 1, 3]


def residual_block(**options):
    options = {"in_channels": 8, "out_channels": 12, "temb_channels": 6, "groups": 4, **options}
    return ResnetBlock2D(**options).double().eval().requires_grad_(False)


def assert_same_output_and_gradient(plain, frozen, x, tolerance=1e-12):
    actual, expected = output_and_gradient(frozen, x), output_and_gradient(plain, x)
    assert_near(actual[0], expected[0], tolerance)
    assert_near(actual[1], expected[1], tolerance)


def test_the_embedded_networks_are_the_same_functions(embedded_pair):
    unets, autoencoders = embedded_pair
    latents, text, t = normal(2, 4, 16, 16), normal(2, 16, 64, seed=1), torch.tensor([900, 3])
    plain, frozen = (lambda z, u=u: u(z, t, text, return_dict=False)[0] for u in unets)
    assert_same_output_and_gradient(plain, frozen, latents)
    plain, frozen = (lambda c, u=u: u(latents, t, c, return_dict=False)[0] for u in unets)
    assert_same_output_and_gradient(plain, frozen, text)
    plain, frozen = (lambda z, v=v: v.decode(z).sample for v in autoencoders)
    assert_same_output_and_gradient(plain, frozen, latents)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"out_channels": 8, "output_scale_factor": 1.7},
        {"skip_time_act": True},
        {"temb_channels": None, "time_embedding_norm": "group"},
        {"time_embedding_norm": "scale_shift"},
        {"up": True},
        {"down": True},
        {"non_linearity": "mish"},
    ],
    ids=str,
)
def test_every_residual_block_is_the_same_function(options):
    plain = residual_block(**options)
    frozen = copy.deepcopy(plain)
    freeze_aware(frozen)
    assert type(frozen.conv1) is FrozenConv2d
    embedding = None if plain.time_emb_proj is None else normal(2, 6, seed=1)
    assert_same_output_and_gradient(
        lambda x: plain(x, embedding), lambda x: frozen(x, embedding), normal(2, 8, 6, 6)
    )


def test_a_residual_block_works_under_transforms_and_compilation():
    block = residual_block()
    freeze_aware(block)
    embedding = normal(2, 6, seed=1)
    assert_all_ways_agree(lambda x: block(x, embedding), normal(2, 8, 6, 6))


def test_names_weights_and_other_networks_stay_as_they_are(tiny_pair):
    plain, frozen = (model.unet for model in tiny_pair)
    assert list(plain.state_dict()) == list(frozen.state_dict())
    type(plain).from_config(plain.config).load_state_dict(frozen.state_dict())
    frozen_of = dict(frozen.named_modules())
    for name, module in plain.named_modules():
        assert not type(module).__module__.startswith("fastdigin")
        if any(True for _ in module.parameters()):
            assert isinstance(frozen_of[name], type(module))


def test_every_layer_it_knows_is_changed_once(tiny_pair):
    for network in (tiny_pair[1].unet, tiny_pair[1].vae):
        types = [type(module) for module in network.modules()]
        assert not {nn.Conv2d, ResnetBlock2D, GEGLU} & set(types)
        freeze_aware(network)
        assert [type(module) for module in network.modules()] == types


def test_copies_are_independent(tiny_pair):
    network = copy.deepcopy(tiny_pair[1].vae.decoder)
    network.conv_in.weight.zero_()
    network.conv_in.bias.zero_()
    x = normal(1, *LATENT_SHAPE)
    assert not network.conv_in(x).any() and tiny_pair[1].vae.decoder.conv_in(x).any()


def test_layers_with_trainable_parameters_are_left_alone(tiny):
    network = copy.deepcopy(tiny.pipe.vae.decoder)
    block = network.mid_block.resnets[0]
    for parameter in (network.conv_norm_out.bias, block.norm2.weight, network.conv_in.weight):
        parameter.requires_grad_()
    freeze_aware(network)
    assert type(network.conv_norm_out) is nn.GroupNorm and type(network.conv_act) is nn.SiLU
    assert type(network.conv_in) is nn.Conv2d
    assert type(block) is ResnetBlock2D and type(block.conv1) is FrozenConv2d
    latents = normal(1, *LATENT_SHAPE)
    network(latents).sum().backward()
    assert block.norm2.weight.grad.any() and network.conv_in.weight.grad.any()


def test_a_weight_made_trainable_afterwards_is_refused(tiny_pair):
    network = copy.deepcopy(tiny_pair[1].vae.decoder)
    network.conv_norm_out.weight.requires_grad_()
    assert type(network.conv_norm_out) is FrozenGroupNormSiLU
    with pytest.raises(ValueError, match="weight requires a gradient"):
        network(normal(1, *LATENT_SHAPE))


def test_unforeseen_layers_are_left_alone():
    class OtherConv(nn.Conv2d):
        pass

    layers = nn.Sequential(
        OtherConv(2, 2, 3),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.ConvTranspose2d(2, 2, 3),
    ).requires_grad_(False)
    before = [type(layer) for layer in layers]
    freeze_aware(layers)
    assert [type(layer) for layer in layers] == before


def saved_bytes(network, function, *inputs):
    """Of what autograd keeps for the backward, weights left out."""
    saved = SavedBytes([*network.parameters(), *network.buffers()])
    with saved:
        function(*inputs)
    return saved.total


def test_the_embedded_networks_keep_far_less(embedded_pair):
    unets, autoencoders = embedded_pair
    z, text = normal(2, 4, 16, 16).requires_grad_(), normal(2, 16, 64).requires_grad_()
    t = torch.tensor([7, 7])
    plain, frozen = (saved_bytes(u, lambda z, c, u=u: u(z, t, c).sample, z, text) for u in unets)
    assert frozen < 0.6 * plain
    plain, frozen = (saved_bytes(v, lambda z, v=v: v.decode(z).sample, z) for v in autoencoders)
    assert frozen < 0.34 * plain


def test_stable_diffusion_keeps_37_percent_less():
    """design.md: one guidance pair at 512 px in fp16, 1.55 GB plain and 0.98 GB freeze-aware."""
    with FakeTensorMode():
        counted = unet_pass(SD_1_4, 512, torch.float16)
        install_processors(counted.network)
        assert saved_bytes(counted.network, counted.forward) / 1e9 == pytest.approx(1.549, abs=1e-3)
        freeze_aware(counted.network)
        assert saved_bytes(counted.network, counted.forward) / 1e9 == pytest.approx(0.977, abs=1e-3)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_autocast_may_be_over_before_the_backward(tiny_pair, where):
    """The gradient is then as exact as that of diffusers' own layers, and has the input's dtype."""
    latents, text = normal(2, *LATENT_SHAPE), normal(2, 16, 16, seed=1)
    incoming = normal(2, *LATENT_SHAPE, seed=2)

    def gradient(model, dtype):
        unet = copy.deepcopy(model.unet).to(dtype)
        z = latents.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
            output = unet(z, torch.tensor([500, 20]), text.to(dtype), return_dict=False)[0]
            if where == "inside":
                return torch.autograd.grad(output, z, incoming.to(output.dtype))[0]
        return torch.autograd.grad(output, z, incoming.to(output.dtype))[0]

    # Of a pipeline that all tests share, somebody may have kept attention maps: no copy of those.
    plain, frozen = build_tiny().pipe, tiny_pair[1]
    exact = gradient(frozen, torch.float64)
    errors = []
    for model in (plain, frozen):
        found = gradient(model, torch.float32)
        assert found.dtype is torch.float32
        errors.append((found - exact).norm() / exact.norm())
    assert errors[1] < max(2 * errors[0], 1e-2)


@pytest.mark.skipif(not native.cpu_features(), reason="no CPU library, or no AVX2")
def test_weights_are_transformed_when_a_network_is_loaded():
    """Before the engine plans with the memory that is left, and for both directions."""
    cpp = backend("frozen_conv", "cpp")

    def held():
        return {id(tensor) for kept in cpp._kept.values() for _, tensor in kept.values()}

    before = held()
    model = LatentDiffusion.load("embedded")
    loaded = held()
    assert len(loaded - before) > 40
    x = torch.randn(2, *model.latent_shape, requires_grad=True)
    text = torch.randn(2, 16, 64)
    model.unet(x, torch.tensor(5), text, return_dict=False)[0].sum().backward()
    model.decode(x).sum().backward()
    assert held() == loaded
