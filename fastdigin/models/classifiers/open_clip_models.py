"""open_clip:MODEL/PRETRAINED, zero-shot classifiers (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, square
from fastdigin.models.missing import loading, require, unknown
from fastdigin.models.preprocessing import Resizing
from fastdigin.models.weights import check_weights
from fastdigin.storage import TensorCache, cache_folder, cache_key, cached

TEMPLATES = ("a photo of a {}.",)
"""Prompts around a class name, where the user gives none."""

TEXT_BATCH = 256


class ZeroShotNetwork(nn.Module):
    """CLIP's image tower and, as its last linear layer, the embeddings of the class prompts.

    forward: normalised pixels (B,3,size,size) -> logits (B,K), the cosine similarities times the
    model's learned scale, plus its bias where it has one (SigLIP). The input of ``head``, a unit
    vector per image, is the layer of neurons.
    """

    def __init__(self, visual: nn.Module, text_kf: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.visual = visual
        self.head = nn.Linear(text_kf.shape[1], text_kf.shape[0], bias=bias is not None)
        self.head.weight.data = scale.detach().exp() * text_kf
        if bias is not None:
            self.head.bias.data = bias.detach().expand(len(text_kf)).clone()

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        return self.head(nn.functional.normalize(image_features(self.visual, pixels_b3hw), dim=1))


def image_features(visual: nn.Module, pixels_b3hw: Tensor) -> Tensor:
    """(B,F), not normalised, of an image tower of open_clip; CoCa's gives its tokens as well."""
    output = visual(pixels_b3hw)
    return output[0] if isinstance(output, tuple) else output


def load(
    name: str, classes: Sequence[str] | None, templates: Sequence[str] | None
) -> LoadedNetwork:
    """A zero-shot classifier of ``classes`` (default: ImageNet's).

    name: MODEL/PRETRAINED, a FOLDER with open_clip_config.json and weights, or hf-hub:ID.
    templates: prompts with ``{}`` for the class; their normalised embeddings are averaged. The
    text weights are kept in the user's cache.
    Raises UserError for an unknown name, for templates without ``{}`` and where the weights cannot
    be had.
    """
    spec = f"open_clip:{name}"
    open_clip = require("open_clip", "clip", f"classifier {spec!r}")
    templates = tuple(TEMPLATES if templates is None else templates)
    for template in templates or ("",):
        if "{}" not in template:
            raise UserError(f"template {template!r} must contain {{}}, where the class name goes")
    imagenet = tuple(open_clip.IMAGENET_CLASSNAMES)
    classes = imagenet if classes is None else tuple(classes)
    if len(classes) < 2:
        raise UserError(f"classifier {spec!r} is zero-shot: give at least two classes")
    model, tokenizer = _load(open_clip, name, spec)
    # "robin, American robin" lists synonyms; the first is what people say.
    words = [c.split(",")[0].replace("_", " ").strip() for c in classes]
    prompts = [template.replace("{}", word) for word in words for template in templates]
    text_kf = _text_weights(model, tokenizer, prompts, len(templates))
    bias = getattr(model, "logit_bias", None)
    return _described(model, ZeroShotNetwork(model.visual, text_kf, model.logit_scale, bias),
                     classes, spec)  # fmt: skip


class ImageTower(nn.Module):
    """CLIP's image features (B,F), and a head that leaves them as they are."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.head = nn.Identity()

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        return self.head(image_features(self.visual, pixels_b3hw))


def load_features(name: str) -> LoadedNetwork:
    """The image features of a model of open_clip with its preprocessing, and without classes.

    Raises UserError as :func:`load`.
    """
    spec = f"open_clip:{name}"
    model, _ = _load(require("open_clip", "clip", f"classifier {spec!r}"), name, spec)
    return _described(model, ImageTower(model.visual), (), spec)


def _described(
    model: Any, network: nn.Module, classes: tuple[str, ...], spec: str
) -> LoadedNetwork:
    """``network`` with the preprocessing of the model."""
    cfg = model.visual.preprocess_cfg
    edges = cfg["size"] if isinstance(cfg["size"], (tuple, list)) else (cfg["size"],) * 2
    fill = cfg.get("fill_color", 0)
    return LoadedNetwork(
        network=network,
        size=square(*edges, spec),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        classes=classes,
        head="head",
        resizing=Resizing(
            fit=cfg["resize_mode"],
            interpolation="bilinear" if cfg["interpolation"] == "bilinear" else "bicubic",
            fill=tuple(f / 255 for f in (fill if isinstance(fill, (tuple, list)) else (fill,) * 3)),
        ),
    )


def _load(open_clip: Any, name: str, spec: str) -> tuple[Any, Any]:
    """The model in fp32 and its tokenizer."""
    architecture, pretrained = _names(open_clip, name, spec)
    repository = _repository(open_clip, architecture, pretrained)
    wanted = "open_clip_model.safetensors (or open_clip_pytorch_model.bin) of "
    where = (wanted + str(repository), f"hf download {repository}")
    if repository is None:
        wanted = "a file with the weights of the model, or a folder with open_clip_config.json and"
        where = (f"{wanted} weights", None)
    with loading(f"classifier {spec!r}", *where):
        model = open_clip.create_model(
            architecture, pretrained=pretrained, require_pretrained=True, weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    check_weights(f"classifier {spec!r}", model)
    return model.eval(), tokenizer


def _names(open_clip: Any, name: str, spec: str) -> tuple[str, str | None]:
    """What open_clip calls the model and its weights."""
    if name.startswith("hf-hub:"):
        return name, None
    if Path(name).is_dir():
        return f"local-dir:{name}", None
    architecture, _, pretrained = name.partition("/")
    if architecture not in open_clip.list_models():
        owner, see = f"classifier {spec!r}", "open_clip.list_models()"
        raise unknown(owner, "open_clip", architecture, open_clip.list_models(), see)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained in tags or Path(pretrained).is_file():
        return architecture, pretrained
    raise UserError(
        f"classifier {spec!r}: {pretrained!r} is neither a file nor weights of {architecture}; "
        f"write open_clip:{architecture}/ and one of {', '.join(tags) or 'your files'}."
    )


def _repository(open_clip: Any, architecture: str, pretrained: str | None) -> str | None:
    """Where the weights come from; None for files of the user's own."""
    if pretrained is None:
        kind, _, source = architecture.partition(":")
        return source if kind == "hf-hub" else None
    if Path(pretrained).is_file():
        return None
    cfg = open_clip.get_pretrained_cfg(architecture, pretrained)
    return cfg.get("hf_hub", "").strip("/") or cfg.get("url", "")


@torch.no_grad()
def _text_weights(model: Any, tokenizer: Any, prompts: Sequence[str], templates: int) -> Tensor:
    """Unit vectors (K,F): per class the mean of its ``templates`` prompts' unit vectors."""
    tokens_pl = tokenizer(prompts)
    text_tower = [v for k, v in model.state_dict().items() if not k.startswith("visual.")]
    cache, key = TensorCache(cache_folder() / "text"), cache_key(*text_tower, tokens_pl, templates)

    def compute() -> dict[str, Tensor]:
        unit_pf = torch.cat(
            [model.encode_text(batch, normalize=True) for batch in tokens_pl.split(TEXT_BATCH)]
        )
        text_kf = unit_pf.unflatten(0, (-1, templates)).mean(dim=1)
        return {"text_kf": nn.functional.normalize(text_kf, dim=1)}

    return cached(cache, key, compute)["text_kf"]
