"""HQ-SAM: the masks of SamPredictor, and weights that do not fit."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("segment_anything_hq")
timm = pytest.importorskip("timm")

from loaders import LOADERS, read, write  # noqa: E402
from sam import small_sam  # noqa: E402

from fastdigin.errors import UserError  # noqa: E402
from fastdigin.models.segmenter import Prompt, Segmenter, _registry  # noqa: E402

SIZE = 64  # what the small network looks at: nothing is resized
POINTS = torch.tensor([[10.0, 30.0], [40.0, 5.0], [24.0, 24.0]])
BOX = torch.tensor([5.0, 8.0, 40.0, 30.0])


def images(count):
    """8-bit values, so that both sides see the same picture."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator) / 255)


@torch.no_grad()
def test_masks_are_of_the_high_quality_token():
    """Each image with its own kind of prompt; the truth is the network's own forward."""
    network, pictures = small_sam(), images(3)
    prompts = [Prompt(points=POINTS), Prompt(box=BOX), Prompt(points=POINTS[:1], box=BOX)]
    inputs = []
    for image, prompt in zip(pictures, prompts, strict=True):
        given = {"image": 255 * image, "original_size": (SIZE, SIZE)}
        if prompt.points is not None:
            given["point_coords"] = prompt.points[None]
            given["point_labels"] = torch.ones(1, len(prompt.points))
        if prompt.box is not None:
            given["boxes"] = prompt.box[None]
        inputs.append(given)

    def forward(hq_token_only):
        return network(inputs, multimask_output=False, hq_token_only=hq_token_only)

    # Random weights hardly ever cross zero: the threshold is put amidst their logits.
    network.mask_threshold = float(
        torch.stack([x["low_res_logits"] for x in forward(True)]).median()
    )
    found = Segmenter(network).masks(pictures, prompts)
    for mask, truth, other in zip(found, forward(True), forward(False), strict=True):
        assert torch.equal(mask, truth["masks"][0, 0])
        assert not torch.equal(mask, other["masks"][0, 0])
    assert 0.02 < torch.stack(found).float().mean() < 0.98


def test_timm_keeps_its_own_networks():
    """The package registers its TinyViT under timm's names."""
    _registry()
    assert timm.models.model_entrypoint("tiny_vit_5m_224").__module__ == "timm.models.tiny_vit"
    assert timm.models.is_model_pretrained("tiny_vit_5m_224.dist_in22k_ft_in1k")


def test_weights_of_another_shape(tmp_path):
    """What is wrong with weights of any network: test_loaders.py and test_weight_files.py."""
    segmenter = LOADERS["segmenter"]
    path = Path(segmenter.save(tmp_path))
    write(path, read(path) | {"mask_decoder.hf_token.weight": torch.zeros(3)})
    with pytest.raises(UserError, match="size mismatch for mask_decoder"):
        segmenter.load(str(path))
