"""Logits and probabilities are those of a model's own library, of every loader and kind."""

from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torchvision
import transformers as hf
from clip_model import save_model
from photos import as_tensor, check_transform, photo
from safetensors.torch import save_file
from torch import nn

from fastdigin.models.classifier import Classifier

WORDS = ("cat", "dog", "bird")
NAMED = {"id2label": dict(enumerate(WORDS)), "label2id": {w: n for n, w in enumerate(WORDS)}}
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = {**SMALL, "intermediate_size": 32, "image_size": 32, "patch_size": 8}


def randomised(model: nn.Module) -> nn.Module:
    """Heads and gates start at zero or near it: nothing would differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


def timm_model(name: str, cfg: dict | None = None, **options):
    def make(folder: Path):
        model = randomised(timm.create_model(name, pretrained_cfg_overlay=cfg, **options))
        timm.models.save_for_hf(model, folder, model_args=options, safe_serialization=True)
        return f"timm:local-dir:{folder}", model, _timm_transform(model)

    return make


def _timm_transform(model):
    data = timm.data.resolve_model_data_config(model)
    if getattr(getattr(model, "patch_embed", None), "strict_img_size", False):
        data["input_size"] = (3, *model.patch_embed.img_size)
    return timm.data.create_transform(**data, is_training=False)


def torchvision_model(name: str, **options):
    def make(folder: Path):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        model = randomised(torchvision.models.get_model(name, weights=None, **options))
        torch.save(model.state_dict(), folder / "w.pth")
        (folder / "hub" / "checkpoints").mkdir(parents=True)
        torch.save(model.state_dict(), folder / "hub" / "checkpoints" / Path(weights.url).name)
        return f"torchvision:{name}", model, weights.transforms()

    return make


def of_file(make, architecture: str):
    """The same weights as a file for an architecture."""

    def made(folder: Path):
        _, model, transform = make(folder)
        save_file(
            {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "own.safetensors"
        )
        return f"file:{folder / 'own.safetensors'}@{architecture}", model, transform

    return made


def hf_model(name: str, processor, **options):
    def make(folder: Path):
        config, model = (
            getattr(hf, f"{name}{end}") for end in ("Config", "ForImageClassification")
        )
        model = randomised(model(config(**options)))
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

        def transform(image):
            scale = {"do_rescale": False} if isinstance(image, torch.Tensor) else {}
            return processor(images=image, return_tensors="pt", **scale)["pixel_values"][0]

        return f"hf:{folder}", model, transform

    return make


def clip(preprocess=None, **options):
    def make(folder: Path):
        model = save_model(folder, preprocess, **options).eval()
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        with torch.no_grad():
            text = open_clip.build_zero_shot_classifier(
                model, tokenizer, WORDS, ["a photo of a {}.".format]
            )

        class Own(nn.Module):
            def forward(self, pixels):
                logits = model.logit_scale.exp() * model.encode_image(pixels, normalize=True) @ text
                return logits if model.logit_bias is None else logits + model.logit_bias

        _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        return f"open_clip:{folder}", Own(), transform

    return make


SQUARE_32 = {"height": 32, "width": 32}
VIT = hf.ViTImageProcessor(size=SQUARE_32)
MULTI = "multi_label_classification"
QUICK = {
    "timm resnet": timm_model("test_resnet", {"interpolation": "bilinear"}),
    "timm vit squashed": timm_model("test_vit", {"crop_mode": "squash", "crop_pct": 1.0}),
    "torchvision squeezenet": torchvision_model("squeezenet1_1"),
    "file of torchvision": of_file(torchvision_model("squeezenet1_1"), "torchvision:squeezenet1_1"),
    "hf vit": hf_model("ViT", VIT, **TINY, **NAMED),
    "hf vit multi-label": hf_model("ViT", VIT, **TINY, **NAMED, problem_type=MULTI),
    "hf vit one logit": hf_model("ViT", VIT, **TINY, num_labels=1),
    "hf convnext below 384": hf_model(
        "ConvNext", hf.ConvNextImageProcessor(size={"shortest_edge": 64}),
        hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], **NAMED,
    ),
    "open_clip clip": clip(),
    "open_clip siglip": clip(init_logit_bias=-2.0),
}  # fmt: skip
SLOW = {
    "timm convnext": timm_model("test_convnext", {"crop_pct": 0.9}),
    "timm efficientnet": timm_model("test_efficientnet"),
    "timm vit at 64": timm_model("vit_tiny_patch16_224", img_size=64),
    "timm swin": timm_model(
        "swin_tiny_patch4_window7_224", embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "timm eva": timm_model("test_vit3"),
    "file of timm at 64": of_file(
        timm_model("vit_tiny_patch16_224", img_size=64), "timm:vit_tiny_patch16_224"
    ),
    "file of timm with 3 classes": of_file(
        timm_model("test_resnet", num_classes=3), "timm:test_resnet"
    ),
    "file of timm with one logit": of_file(timm_model("test_vit", num_classes=1), "timm:test_vit"),
    "torchvision resnet18": torchvision_model("resnet18"),
    "torchvision mobilenet": torchvision_model("mobilenet_v3_small"),
    "torchvision shufflenet": torchvision_model("shufflenet_v2_x0_5"),
    "torchvision convnext": torchvision_model("convnext_tiny"),
    "torchvision swin": torchvision_model("swin_t"),
    "torchvision vit": torchvision_model("vit_b_32"),
    "hf vit not normalised": hf_model(
        "ViT", hf.ViTImageProcessor(size=SQUARE_32, do_normalize=False), **TINY, **NAMED
    ),
    "hf vit to [-1, 1]": hf_model(
        "ViT",
        hf.ViTImageProcessor(size=SQUARE_32, image_mean=[0.5] * 3, image_std=[0.25] * 3),
        **TINY, **NAMED,
    ),
    "hf deit": hf_model(
        "DeiT", hf.DeiTImageProcessor(size={"height": 36, "width": 36}, crop_size=SQUARE_32),
        **TINY, **NAMED,
    ),
    "hf resnet at 384": hf_model(
        "ResNet", hf.ConvNextImageProcessor(size={"shortest_edge": 384}),
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **NAMED,
    ),
    "hf swin": hf_model(
        "Swin", hf.ViTImageProcessor(size={"height": 64, "width": 64}),
        image_size=64, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=4, **NAMED,
    ),
    "hf siglip": hf_model(
        "Siglip", hf.SiglipImageProcessor(size=SQUARE_32), vision_config=TINY,
        text_config={**SMALL, "intermediate_size": 32, "vocab_size": 99}, **NAMED,
    ),
    "hf clip": hf_model(
        "CLIP",
        hf.CLIPImageProcessor(size={"shortest_edge": 37}, crop_size=SQUARE_32),
        vision_config=TINY, text_config={**SMALL, "intermediate_size": 32, "vocab_size": 99},
        **NAMED,
    ),
    "hf mobilevit in BGR": hf_model(
        "MobileViT",
        hf.MobileViTImageProcessor(
            size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}
        ),
        image_size=64, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16], **NAMED,
    ),
    "hf levit": hf_model(
        "Levit", hf.LevitImageProcessor(), hidden_sizes=[16, 32, 48],
        num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8], **NAMED,
    ),
    "hf poolformer": hf_model(
        "PoolFormer", hf.PoolFormerImageProcessor(size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64}), hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
        **NAMED,
    ),
    "hf efficientnet twice normalised": hf_model(
        "EfficientNet",
        hf.EfficientNetImageProcessor(size={"height": 64, "width": 64}, resample=0),
        width_coefficient=0.2, depth_coefficient=0.2, hidden_dim=256, image_size=64, **NAMED,
    ),
    "open_clip squashed": clip(
        preprocess={"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3}
    ),
}  # fmt: skip
CASES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("case", CASES)
def test_logits_and_probabilities_are_those_of_the_library(case, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    spec, model, transform = (QUICK | SLOW)[case](tmp_path)
    classes = WORDS if spec.startswith("open_clip") else None
    classifier = Classifier.load(spec, classes=classes)

    def shown(pixels):
        found = model(pixels)
        logits = getattr(found, "logits", found)
        return nn.functional.pad(logits, (1, 0)) if "one logit" in case else logits

    side = classifier.size
    check_transform(classifier, shown, transform, (max(150, side + 40), max(190, side + 90)))
    image = photo(side + 30, side + 70)
    with torch.no_grad():
        logits = shown(transform(as_tensor(image)[0])[None])
        sigmoid = "multi-label" in case or "siglip" in case and spec.startswith("open_clip")
        expected = logits.sigmoid() if sigmoid else logits.softmax(1)
        torch.testing.assert_close(
            classifier.probabilities(as_tensor(image)), expected, atol=1e-3, rtol=0
        )


def test_a_flexible_resolution_on_square_images(tmp_path):
    """SigLIP 2's NaFlex takes patches; on square images they are the same."""
    processor = hf.Siglip2ImageProcessor(patch_size=8, max_num_patches=20)
    vision = {**SMALL, "intermediate_size": 32, "patch_size": 8, "num_patches": 16}
    config = hf.Siglip2Config(
        vision_config=vision, text_config={**SMALL, "intermediate_size": 32, "vocab_size": 99},
        **NAMED,
    )  # fmt: skip
    model = randomised(hf.Siglip2ForImageClassification(config))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classifier = Classifier.load(f"hf:{tmp_path}")
    image = as_tensor(photo(90, 90, span=(0.3, 0.7)))
    with torch.no_grad():
        inputs = processor(images=image[0], do_rescale=False, return_tensors="pt")
        expected = model(**inputs).logits
    torch.testing.assert_close(classifier.logits(image), expected, atol=1e-3, rtol=0)
    assert classifier.size == 32 and expected.std() > 0.01
    with pytest.raises(ValueError, match="110 x 90 pixels, .* crop it first"):
        classifier.logits(as_tensor(photo(90, 110)))
