"""open_clip:MODEL/PRETRAINED, zero-shot classifiers (Radford et al. 2021, section 3.1)."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.classifiers.loaded import LoadedNetwork, square
from fastdigin.models.missing import fetching, loading, require, unknown
from fastdigin.models.preprocessing import Resizing
from fastdigin.models.weights import check_weights
from fastdigin.storage import TensorCache, cache_key, cached
from fastdigin_kernels.common.choices import cache_folder

log = logging.getLogger(__name__)

TEMPLATES = ("a photo of a {}.",)
"""Prompts around a class name, where the user gives none."""

TEXT_BATCH = 256


class ImageTower(nn.Module):
    """CLIP's image tower and a head; what goes into the head is the layer of neurons.

    forward: normalised pixels (B,3,size,size) to the head's output. unit: whether the head takes
    unit vectors.
    """

    def __init__(self, visual: nn.Module, head: nn.Module, unit: bool):
        super().__init__()
        self.visual, self.head, self._unit = visual, head, unit

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        features = self.visual(pixels_b3hw)
        if isinstance(features, tuple):  # CoCa gives its tokens as well
            features = features[0]
        return self.head(nn.functional.normalize(features, dim=1) if self._unit else features)


def load(
    name: str, classes: Sequence[str] | None, templates: Sequence[str] | None
) -> LoadedNetwork:
    """A zero-shot classifier of ``classes`` (default: ImageNet's).

    Its logits are cosine similarities times the model's learned scale, plus its bias where it has
    one (SigLIP, whose probabilities are sigmoids).

    name: MODEL/PRETRAINED, a FOLDER with open_clip_config.json and weights, or hf-hub:ID.
    templates: prompts with ``{}`` for the class; their normalised embeddings are averaged. The
    text weights are kept in the user's cache.
    Raises UserError for an unknown name, for templates without ``{}`` and where the weights cannot
    be had.
    """
    owner = f"classifier 'open_clip:{name}'"
    open_clip = require("open_clip", "clip", owner)
    templates = tuple(TEMPLATES if templates is None else templates)
    for template in templates or ("",):
        if "{}" not in template:
            raise UserError(f"template {template!r} must contain {{}}, where the class name goes")
    imagenet = tuple(open_clip.IMAGENET_CLASSNAMES)
    classes = imagenet if classes is None else tuple(classes)
    if len(classes) < 2:
        raise UserError(f"{owner} is zero-shot: give at least two classes")
    model, tokenizer = _load(open_clip, name, owner)
    # "robin, American robin" lists synonyms; the first is what people say.
    words = [c.split(",")[0].replace("_", " ").strip() for c in classes]
    prompts = [template.replace("{}", word) for word in words for template in templates]
    text_kf = _text_weights(model, tokenizer, prompts, len(templates))
    bias = getattr(model, "logit_bias", None)
    head = nn.Linear(text_kf.shape[1], text_kf.shape[0], bias=bias is not None)
    head.weight.data = model.logit_scale.detach().exp() * text_kf
    if bias is not None:
        head.bias.data = bias.detach().expand(len(text_kf)).clone()
    loaded = _described(model, ImageTower(model.visual, head, unit=True), classes, owner)
    # Trained with a sigmoid of each pair of image and text (SigLIP), or a softmax over the texts.
    return loaded if bias is None else replace(loaded, activation="sigmoid")


def load_features(name: str) -> LoadedNetwork:
    """The image features (B,F), not normalised, with the model's preprocessing; without classes.

    Raises UserError as :func:`load`.
    """
    owner = f"classifier 'open_clip:{name}'"
    model, _ = _load(require("open_clip", "clip", owner), name, owner)
    return _described(model, ImageTower(model.visual, nn.Identity(), unit=False), (), owner)


def _described(
    model: Any, network: nn.Module, classes: tuple[str, ...], owner: str
) -> LoadedNetwork:
    """``network`` with the preprocessing of the model."""
    cfg = model.visual.preprocess_cfg
    edges = cfg["size"] if isinstance(cfg["size"], (tuple, list)) else (cfg["size"],) * 2
    fill = cfg.get("fill_color", 0)
    return LoadedNetwork(
        network=network,
        size=square(*edges, owner),
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


def _load(open_clip: Any, name: str, owner: str) -> tuple[Any, Any]:
    """The model in fp32 and its tokenizer."""
    architecture, pretrained, repository = _find(open_clip, name, owner)
    files = "open_clip_model.safetensors (or open_clip_pytorch_model.bin) of "
    where = (f"{files}{repository}", repository and fetching(repository))
    if repository is None:
        files = "a file with the weights of the model, or a folder with open_clip_config.json and"
        where = (f"{files} weights", None)
    with loading(owner, *where):
        if os.path.isfile(pretrained or ""):
            told = _told_beside(pretrained, owner)
        else:  # open_clip only warns where weights by their tag want another activation
            tag = open_clip.get_pretrained_cfg(architecture, pretrained) if pretrained else {}
            told = {"force_quick_gelu": tag.get("quick_gelu", False)}
        model = open_clip.create_model(
            architecture, pretrained=pretrained, require_pretrained=True, weights_only=True, **told
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    check_weights(owner, model)
    return model.eval(), tokenizer


def _told_beside(weights: str, owner: str) -> dict[str, Any]:
    """What a configuration beside a file of weights says that the architecture leaves open."""
    config = Path(weights).with_name("open_clip_config.json")
    if not config.is_file():
        log.warning(
            "%s: there is no %s, so nothing says how its images are prepared or whether its "
            "activation is QuickGELU: OpenAI's preprocessing and the architecture's activation are "
            "assumed. OpenAI's own weights need an architecture that ends in -quickgelu.",
            owner, config,
        )  # fmt: skip
        return {}
    told = json.loads(config.read_text(encoding="utf-8"))
    return {
        "force_quick_gelu": told.get("model_cfg", {}).get("quick_gelu", False),
        "force_preprocess_cfg": told.get("preprocess_cfg", {}),
    }


def _find(open_clip: Any, name: str, owner: str) -> tuple[str, str | None, str | None]:
    """What open_clip calls the model and its weights, and the repository that they come from."""
    if name.startswith("hf-hub:"):
        return name, None, name.removeprefix("hf-hub:")
    if os.path.isdir(name):
        return f"local-dir:{name}", None, None
    architecture, _, pretrained = name.partition("/")
    if architecture not in open_clip.list_models():
        see = "open_clip.list_models()"
        raise unknown(owner, "open_clip", architecture, open_clip.list_models(), see)
    if os.path.isfile(pretrained):
        return architecture, pretrained, None
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained not in tags:
        raise UserError(
            f"{owner}: {pretrained!r} is neither a file nor weights of {architecture}; write "
            f"open_clip:{architecture}/ and one of {', '.join(tags) or 'your files'}."
        )
    cfg = open_clip.get_pretrained_cfg(architecture, pretrained)
    return architecture, pretrained, cfg.get("hf_hub", "").strip("/") or cfg.get("url", "")


@torch.no_grad()
def _text_weights(model: Any, tokenizer: Any, prompts: Sequence[str], templates: int) -> Tensor:
    """Unit vectors (K,F): per class the mean of its ``templates`` prompts' unit vectors."""
    tokens_pl = tokenizer(prompts)
    text_tower = [v for k, v in model.state_dict().items() if not k.startswith("visual.")]
    # An activation has no weights: only what the network says of itself tells it.
    key = cache_key(*text_tower, repr(model), tokens_pl, templates)

    def compute() -> dict[str, Tensor]:
        unit_pf = torch.cat(
            [model.encode_text(batch, normalize=True) for batch in tokens_pl.split(TEXT_BATCH)]
        )
        text_kf = unit_pf.unflatten(0, (-1, templates)).mean(dim=1)
        return {"text_kf": nn.functional.normalize(text_kf, dim=1)}

    return cached(TensorCache(cache_folder() / "text"), key, compute)["text_kf"]
