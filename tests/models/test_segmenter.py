"""HQ-SAM: the masks of SamPredictor, weights that are read as tensors only, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("segment_anything_hq")
timm = pytest.importorskip("timm")

from loaders import write  # noqa: E402
from sam import small_sam  # noqa: E402

from fastdigin.errors import UserError  # noqa: E402
from fastdigin.models.segmenter import Prompt, Segmenter, _registry  # noqa: E402

SIZE = 48
POINTS = torch.tensor([[10.0, 30.0], [40.0, 5.0], [24.0, 24.0]])
BOX = torch.tensor([5.0, 8.0, 40.0, 30.0])


def images(count, size=SIZE):
    """8-bit values, so that both sides see the same picture."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (count, 3, size, size), generator=generator) / 255)


def reference(network, image, prompt):
    """The mask and the logits of the library's own predictor."""
    from segment_anything_hq import SamPredictor

    predictor = SamPredictor(network)
    predictor.set_image((image * 255).round().byte().permute(1, 2, 0).numpy())
    given = {"multimask_output": False, "hq_token_only": True}
    if prompt.points is not None:
        labels = np.ones(len(prompt.points))
        given |= {"point_coords": prompt.points.numpy(), "point_labels": labels}
    if prompt.box is not None:
        given["box"] = prompt.box.numpy()
    logits, _, _ = predictor.predict(**given, return_logits=True)
    return torch.from_numpy(logits[0])


def assert_masks_equal(network, pictures, prompts):
    """Equal wherever the predictor is not within rounding of undecided.

    Random weights hardly ever cross zero: the threshold is put amidst their logits.
    """
    logits = [reference(network, *pair) for pair in zip(pictures, prompts, strict=True)]
    network.mask_threshold = float(torch.stack(logits).median())
    found = Segmenter(network).masks(pictures, prompts)
    for expected, mask in zip(logits, found, strict=True):
        assert mask.shape == expected.shape and mask.dtype == torch.bool
        margins = expected - network.mask_threshold
        decided = margins.abs() > 1e-3 * expected.std()
        assert decided.float().mean() > 0.99
        assert torch.equal(mask[decided], (margins > 0)[decided])
    assert sum(0.02 < mask.float().mean() < 0.98 for mask in found) > len(found) / 2


def test_batched_masks_equal_those_of_the_predictor():
    """Six images, more than one batch, each with its own kind and number of prompts."""
    prompts = [
        Prompt(points=POINTS), Prompt(box=BOX), Prompt(points=POINTS[:1]),
        Prompt(points=POINTS, box=BOX), Prompt(points=POINTS.flip(0)), Prompt(box=BOX / 2),
    ]  # fmt: skip
    assert_masks_equal(small_sam(), images(6), prompts)


@pytest.mark.slow
def test_the_true_vit_tiny():
    torch.manual_seed(0)
    network = _registry()["vit_tiny"]()
    prompts = [Prompt(points=10 * POINTS), Prompt(box=BOX)]
    assert_masks_equal(network.eval(), images(2, 512), prompts)



def test_timm_keeps_its_own_networks():
    """The package registers its TinyViT under timm's names."""
    _registry()
    assert timm.models.model_entrypoint("tiny_vit_5m_224").__module__ == "timm.models.tiny_vit"
    assert timm.models.is_model_pretrained("tiny_vit_5m_224.dist_in22k_ft_in1k")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_the_true_architecture(tmp_path, suffix):
    torch.manual_seed(0)
    state = _registry()["vit_tiny"]().state_dict()
    path = tmp_path / f"weights{suffix}"
    write(path, state)
    loaded = Segmenter.load("hq-sam:vit_tiny", checkpoint=path)
    assert loaded.name == "hq-sam:vit_tiny"
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_wrong_weights(tmp_path):
    torch.manual_seed(0)
    state = _registry()["vit_tiny"]().state_dict()
    for content, message in (
        ({k: v for k, v in state.items() if "hf_" not in k}, "lack mask_decoder.hf_mlp"),
        (
            state | {"mask_decoder.hf_token.weight": torch.zeros(3)},
            "size mismatch for mask_decoder",
        ),
        ([1, 2], "hold no named tensors"),
    ):
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=message):
            Segmenter.load("hq-sam:vit_tiny", checkpoint=tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="segmenter weights .*none.pth' do not exist"):
        Segmenter.load("hq-sam:vit_tiny", checkpoint=tmp_path / "none.pth")
