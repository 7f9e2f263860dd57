"""The models that are profiled, without weights: published configurations on fake tensors.

Sources: the ``config.json`` files of CompVis/stable-diffusion-v1-4,
stabilityai/stable-diffusion-2-1 and stabilityai/stable-diffusion-xl-base-1.0. U-Nets and VAEs are
in engine/architectures.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdigin.embedded import model_folder
from fastdigin.engine.architectures import SD_1_4, SD_2_1, SDXL, Architecture
from fastdigin.engine.footprint import built
from fastdigin.models.classifier import Classifier
from fastdigin.models.ddim import choose_solver
from fastdigin.models.diffusion import LatentDiffusion

CLASSES = ("cat", "dog", *(f"class {i}" for i in range(2, 1000)))

_CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
_OPEN_CLIP_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512,
}  # fmt: skip
_OPEN_CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
_NOISE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "num_train_timesteps": 1000,
}  # fmt: skip
_PNDM = {
    "_class_name": "PNDMScheduler", **_NOISE, "skip_prk_steps": True, "set_alpha_to_one": False,
}  # fmt: skip
_DDIM_V = {
    "_class_name": "DDIMScheduler", **_NOISE, "set_alpha_to_one": False, "clip_sample": False,
    "prediction_type": "v_prediction",
}  # fmt: skip
_EULER = {"_class_name": "EulerDiscreteScheduler", **_NOISE, "timestep_spacing": "leading"}


@dataclass(frozen=True)
class Published:
    """size: of its images in pixels. texts: configurations of its text encoders.

    slots: that are profiled where nobody says how many. The formula knows no gain from more rows in
    a batch, and fewer slots leave memory for more kept steps.
    """

    architecture: Architecture
    size: int
    texts: tuple[dict[str, Any], ...]
    scheduler: dict[str, Any]
    slots: int = 4

    def solver(self) -> Any:
        import diffusers

        kind = getattr(diffusers, self.scheduler["_class_name"])
        return choose_solver(kind.from_config(self.scheduler))


PUBLISHED = {
    "sd-1.4": Published(SD_1_4, 512, (_CLIP_L,), _PNDM),
    "sd-2.1": Published(SD_2_1, 768, (_OPEN_CLIP_H,), _DDIM_V),
    "sdxl": Published(SDXL, 1024, (_CLIP_L, _OPEN_CLIP_G), _EULER, slots=2),
}


def _tokenizer():
    """CLIP's tokens as the packaged model knows them, for prompts of 77."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(model_folder() / "tokenizer", model_max_length=77)


def build(
    name: str, dtype: torch.dtype, device: str | torch.device = "meta"
) -> tuple[LatentDiffusion, Classifier]:
    """A model and its classifier.

    name: of PUBLISHED, with weights as torch draws them, or "embedded", the packaged ones. device:
    on torch's meta device there are shapes without content; ``as_fake`` makes them run.
    """
    if name != "embedded":
        return _published(PUBLISHED[name], dtype, device), _vit(dtype, device)
    model = LatentDiffusion.load("embedded", device="cpu", dtype=dtype)
    classifier = Classifier.load("embedded:robust").to(dtype=dtype).with_classes(CLASSES[:8])
    for network in (*model.networks, classifier.network):
        network.to(device)
    return model, classifier


def _published(published: Published, dtype: torch.dtype, device) -> LatentDiffusion:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    architecture, words = published.architecture, _tokenizer()
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    with torch.device(device):
        texts = [
            kind(CLIPTextConfig(vocab_size=49408, **config)).to(dtype)
            for kind, config in zip(kinds, published.texts, strict=False)
        ]
        unet = built(UNet2DConditionModel, architecture.unet, dtype)
        upcast = architecture.upcast and dtype is torch.float16
        vae = built(AutoencoderKL, architecture.vae, torch.float32 if upcast else dtype)
    second = {"text_encoder_2": texts[1], "tokenizer_2": words} if len(texts) > 1 else {}
    return LatentDiffusion(
        unet, vae, texts[0], words, published.solver(), size=published.size,
        zero_empty_prompt=len(texts) > 1, name=architecture.name, **second,
    )  # fmt: skip


def _vit(dtype: torch.dtype, device) -> Classifier:
    """ViT-B/16 at 384 px, as timm's vit_base_patch16_384."""
    import timm

    with torch.device(device):
        network = timm.create_model("vit_base_patch16_384").to(dtype)
    half = (0.5, 0.5, 0.5)
    return Classifier(network, size=384, mean=half, std=half, classes=CLASSES, name="ViT-B/384")


def as_fake(network: nn.Module) -> None:
    """Inside a FakeTensorMode: the weights, in place, as fake tensors that say they are on a CPU.

    ``to`` is replaced as well: torch's own swaps fake weights in a way that fails under a mode that
    watches them.
    """
    _remake(network, None)

    def to(*args, dtype: torch.dtype | None = None, **kwargs) -> nn.Module:
        _remake(network, next((x for x in args if isinstance(x, torch.dtype)), dtype))
        return network

    network.to = to


def _remake(network: nn.Module, dtype: torch.dtype | None) -> None:
    made: dict[int, Tensor] = {}

    def remade(x: Tensor) -> Tensor:
        kind = dtype if dtype is not None and x.is_floating_point() else x.dtype
        if x.device.type == "cpu" and kind is x.dtype:
            return x
        like = torch.empty_strided(x.shape, x.stride(), dtype=kind, device="cpu")
        is_parameter = isinstance(x, nn.Parameter)
        return nn.Parameter(like, requires_grad=False) if is_parameter else like

    for module in network.modules():
        for named in (module._parameters, module._buffers):
            for name, x in named.items():
                if x is not None:
                    named[name] = made.setdefault(id(x), remade(x))
