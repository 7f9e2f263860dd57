import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from fastdigin.errors import UserError
from fastdigin.objectives import Distance, LpipsDistance, load_lpips


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def candidate(image=None, latents=None):
    return SimpleNamespace(image=image, latents=latents, key=(0, 0, 0))


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("region", ["all", "foreground", "background"])
def test_mean_over_all_elements(norm, region):
    x, reference, mask = rand(3, 6, 8), rand(3, 6, 8, seed=1), rand(6, 8, seed=2)
    weight = {"all": torch.ones(6, 8), "foreground": mask, "background": 1 - mask}[region]
    errors = (x - reference).abs() ** {"l1": 1, "l2": 2}[norm]
    loss = Distance(reference, norm=norm, region=region, mask=mask)
    torch.testing.assert_close(loss(candidate(x)), (weight * errors).sum() / errors.numel())
    assert loss(candidate(reference)) == 0


def test_foreground_and_background_add_up():
    x, reference, mask = rand(3, 6, 6), rand(3, 6, 6, seed=1), rand(6, 6, seed=2)
    parts = (Distance(reference, region=r, mask=mask) for r in ("foreground", "background"))
    total = sum(part(candidate(x)) for part in parts)
    torch.testing.assert_close(total, Distance(reference)(candidate(x)))


def test_latents_with_a_mask_in_pixels():
    latents, reference, mask = rand(4, 4, 4), rand(4, 4, 4, seed=1), rand(32, 32, seed=2)
    loss = Distance(reference, space="latents", region="background", mask=mask)
    pooled = F.avg_pool2d(mask[None, None], 8)[0]
    expected = ((1 - pooled) * (latents - reference) ** 2).mean()
    torch.testing.assert_close(loss(candidate(rand(3, 32, 32), latents)), expected)


def test_boolean_mask():
    mask = rand(5, 5) > 0.5
    x, reference = rand(3, 5, 5, seed=1), rand(3, 5, 5, seed=2)
    losses = (Distance(reference, region="foreground", mask=m) for m in (mask, mask.double()))
    assert len({float(loss(candidate(x))) for loss in losses}) == 1


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gradients(norm):
    mask = rand(5, 5, seed=2)
    loss = Distance(rand(3, 5, 5), norm=norm, region="background", mask=mask)
    x = rand(3, 5, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda image: loss(candidate(image)), x, fast_mode=True)


def test_reference_is_fixed():
    reference = rand(3, 4, 4).requires_grad_()
    loss = Distance(reference)
    before = loss(candidate(rand(3, 4, 4, seed=1)))
    with torch.no_grad():
        reference += 1
    assert not before.requires_grad
    assert torch.equal(loss(candidate(rand(3, 4, 4, seed=1))), before)


def test_mistakes_are_named():
    reference, mask = rand(3, 4, 4), rand(4, 4)
    for setting in ({"space": "pixel"}, {"norm": "l3"}, {"region": "bg"}):
        with pytest.raises(UserError, match=f"{next(iter(setting))} must be one of"):
            Distance(reference, **setting)
    with pytest.raises(UserError, match="needs a mask"):
        Distance(reference, region="background")
    for bad in (mask * 3, mask[None], mask * float("nan")):
        with pytest.raises(UserError, match=r"mask must be \(H,W\) with values in \[0,1\]"):
            Distance(reference, region="background", mask=bad)
    with pytest.raises(UserError, match=r"'distance' is \(3, 4, 4\).*\(3, 5, 5\)"):
        Distance(reference)(candidate(rand(3, 5, 5)))


@pytest.fixture
def random_backbone(tmp_path, monkeypatch):
    """A torch hub cache that holds AlexNet's file, with random weights; returns its layers."""
    from torchvision.models import AlexNet_Weights, alexnet

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    features = alexnet(weights=None).features.eval()
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    file_name = AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(state, tmp_path / "checkpoints" / file_name)
    return features


def test_lpips_reads_backbone_and_heads(random_backbone):
    lpips = pytest.importorskip("lpips")
    network = load_lpips("alex")
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.net(x).relu5, random_backbone[:12](x))
    file = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    for key, value in torch.load(file, map_location="cpu", weights_only=True).items():
        assert torch.equal(network.state_dict()[key], value)


def test_lpips_distance_and_its_region(random_backbone):
    pytest.importorskip("lpips")
    network, reference = load_lpips("alex"), rand(3, 64, 64).float()
    mask = torch.zeros(64, 64)
    mask[:, :32] = 1
    everywhere = LpipsDistance(network, reference)
    foreground = LpipsDistance(network, reference, region="foreground", mask=mask)
    x = rand(3, 64, 64, seed=1).float().requires_grad_()
    assert everywhere(candidate(reference)) == 0
    expected = network(x[None] * 2 - 1, reference[None] * 2 - 1).squeeze()
    torch.testing.assert_close(everywhere(candidate(x)), expected)
    assert 0 < foreground(candidate(x)) < everywhere(candidate(x))
    (gradient,) = torch.autograd.grad(foreground(candidate(x)), x)
    assert gradient[:, :, :32].abs().sum() > 0 and gradient[:, :, 32:].abs().sum() == 0


def test_lpips_never_downloads(tmp_path, monkeypatch):
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="needs the weights alexnet-owt-7be5be79.pth"):
        load_lpips("alex")
    assert list(tmp_path.iterdir()) == []


def test_lpips_package_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"pip install 'fastdigin\[lpips\]'"):
        load_lpips()
