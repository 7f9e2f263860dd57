"""Distances to a reference: pixels, latents, LPIPS and the features of an embedding."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import build_classifier, uniform
from torch.nn import functional as F

from fastdigin.engine.job import Candidate
from fastdigin.errors import UserError
from fastdigin.objectives import Distance, FeatureDistance, LpipsDistance, load_lpips


def of_image(loss, image):
    return loss(Candidate(image, None))


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("region", ["all", "foreground", "background"])
def test_mean_over_all_elements(norm, region):
    x, reference, mask = uniform(3, 6, 8), uniform(3, 6, 8, seed=1), uniform(6, 8, seed=2)
    weight = {"all": torch.ones(6, 8), "foreground": mask, "background": 1 - mask}[region]
    errors = (x - reference).abs() ** {"l1": 1, "l2": 2}[norm]
    loss = Distance(reference, norm=norm, region=region, mask=mask)
    torch.testing.assert_close(of_image(loss, x), (weight * errors).sum() / errors.numel())
    assert of_image(loss, reference) == 0


def test_latents_with_a_mask_in_pixels():
    latents, reference, mask = uniform(4, 4, 4), uniform(4, 4, 4, seed=1), uniform(32, 32, seed=2)
    loss = Distance(reference, space="latents", region="background", mask=mask)
    pooled = F.avg_pool2d(mask[None, None], 8)[0]
    expected = ((1 - pooled) * (latents - reference) ** 2).mean()
    torch.testing.assert_close(loss(Candidate(uniform(3, 32, 32), latents)), expected)


def background(**options):
    return lambda reference: Distance(reference, region="background", **options)


MASK_WORDS = r"mask must be \(H,W\) with values in \[0,1\]"
MISTAKES = [
    (lambda x: Distance(x, space="pixel"), "space must be one"),
    (lambda x: Distance(x, norm="l3"), "norm must be one"),
    (lambda x: Distance(x, region="bg"), "region must be one"),
    (background(), "needs a mask"),
    (background(mask=uniform(4, 4) * 3), MASK_WORDS),
    (background(mask=uniform(4, 4)[None]), MASK_WORDS),
    (background(mask=uniform(4, 4) * float("nan")), "mask has values that are not finite: .* fp16"),
    (lambda x: of_image(Distance(x), uniform(3, 5, 5)), r"'distance' is \(3, 4, 4\).*\(3, 5, 5\)"),
    (lambda x: FeatureDistance(lambda y: y, x), r"must be \(B,D\), got \(1, 3, 4, 4\).*pool"),
    (lambda x: FeatureDistance(lambda y: y[:, 0, 0], x, norm="l1"), "norm must be one of cosine"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make(uniform(3, 4, 4))


@pytest.mark.parametrize("norm", ["cosine", "l2"])
def test_features_of_a_classifier(norm):
    """By the formula; with a region the rest is the reference's and has no gradient."""
    classifier, reference = build_classifier(), uniform(3, 16, 16)
    x = uniform(3, 16, 16, seed=1).requires_grad_()
    mask = torch.zeros(16, 16)
    mask[:, :8] = 1
    made = {
        region: FeatureDistance(classifier.activations, reference, norm, region, mask)
        for region in ("all", "foreground", "background")
    }
    mixed = torch.cat([x[..., :8], reference[..., 8:]], dim=-1)
    for loss, image in ((made["all"], x), (made["foreground"], mixed)):
        a, b = (classifier.activations(y[None])[0] for y in (image, reference))
        cosine = 1 - (a * b).sum() / (a.norm() * b.norm())
        expected = cosine if norm == "cosine" else (a - b).square().mean()
        torch.testing.assert_close(of_image(loss, x), expected)
        assert of_image(loss, reference).abs() < 1e-12 < expected
    for region, outside in (("foreground", slice(8, None)), ("background", slice(0, 8))):
        (gradient,) = torch.autograd.grad(of_image(made[region], x), x)
        assert gradient.abs().sum() > 0 and gradient[..., outside].abs().sum() == 0


def test_features_of_the_reference_are_computed_once():
    calls = []
    loss = FeatureDistance(lambda x: (calls.append(len(x)), x.flatten(1))[1], uniform(3, 4, 4))
    for seed in (1, 2):
        of_image(loss, uniform(3, 4, 4, seed=seed))
    assert calls == [1, 1, 1]


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
    network, reference = load_lpips("alex"), uniform(3, 64, 64).float()
    mask = torch.zeros(64, 64)
    mask[:, :32] = 1
    everywhere = LpipsDistance(network, reference)
    foreground = LpipsDistance(network, reference, region="foreground", mask=mask)
    x = uniform(3, 64, 64, seed=1).float().requires_grad_()
    assert of_image(everywhere, reference) == 0
    expected = network(x[None] * 2 - 1, reference[None] * 2 - 1).squeeze()
    torch.testing.assert_close(of_image(everywhere, x), expected)
    assert 0 < of_image(foreground, x) < of_image(everywhere, x)
    (gradient,) = torch.autograd.grad(of_image(foreground, x), x)
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
