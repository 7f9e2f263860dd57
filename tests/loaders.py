"""Every kind of network that can be loaded, small and random, as its library saves it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from captioners import save_captioner
from families import save_family
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

from fastdigin.models.captioner import Captioner
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.segmenter import Segmenter, _registry


@dataclass(frozen=True)
class Loader:
    """A model, and what loads it.

    save: writes it into an empty folder, and returns the text that names it. load: what a user
    calls with that text. weights: the file that holds them, in the folder.
    """

    save: Callable[[Path], str]
    load: Callable[[str], Any]
    weights: str = "model.safetensors"


def read(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def write(file: Path, state: dict[str, torch.Tensor]) -> None:
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(state, file)


def networks(loaded: Any) -> tuple[nn.Module, ...]:
    return loaded.networks if isinstance(loaded, LatentDiffusion) else (loaded.network,)


def hub_snapshot(name: str) -> Path:
    """Where the hub's cache keeps the files of a repository, as if they had been fetched."""
    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("abc123")
    return repository / "snapshots" / "abc123"


def save_vit(folder: Path, **options) -> str:
    """options: of its configuration."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch_size=8, intermediate_size=16, **small, **options)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def save_timm(folder: Path, config: dict | None = None, **options) -> str:
    """config: what is told beside the architecture. options: of the network."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False, **options)
    timm.models.save_for_hf(
        model, folder, model_config=config, model_args=options, safe_serialization=True
    )
    return f"timm:local-dir:{folder}"


def save_torchvision(folder: Path) -> str:
    """Where torchvision keeps its downloads: TORCH_HOME must be the folder."""
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    _save_squeezenet(folder / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    return "torchvision:squeezenet1_1"


def _save_squeezenet(file: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), file)


def _save_file(folder: Path) -> str:
    _save_squeezenet(folder / "own.pth")
    return f"file:{folder / 'own.pth'}@torchvision:squeezenet1_1"


def _save_clip(folder: Path) -> str:
    from clip_model import save_model

    save_model(folder)
    return f"open_clip:{folder}"


def _load_clip(spec: str) -> Classifier:
    return Classifier.load(spec, classes=("cat", "dog"))


def _save_captioner(folder: Path) -> str:
    save_captioner("git", folder)
    return str(folder)


def _save_segmenter(folder: Path) -> str:
    """As published, without TinyViT's classification head."""
    torch.manual_seed(0)
    state = _registry()["vit_tiny"]().state_dict()
    torch.save(
        {k: v for k, v in state.items() if "image_encoder.head" not in k}, folder / "sam.pth"
    )
    return str(folder / "sam.pth")


def _load_segmenter(path: str) -> Segmenter:
    return Segmenter.load("hq-sam:vit_tiny", checkpoint=path)


def _diffusion(family: str, weights: str) -> Loader:
    return Loader(
        lambda folder: str(save_family(family, folder)),
        lambda source: LatentDiffusion.from_pretrained(source, device="cpu"),
        weights,
    )


LOADERS = {
    "unet": _diffusion("sd1", "unet/diffusion_pytorch_model.safetensors"),
    "vae": _diffusion("sd1", "vae/diffusion_pytorch_model.safetensors"),
    "text encoder": _diffusion("sd1", "text_encoder/model.safetensors"),
    "second text encoder": _diffusion("sdxl", "text_encoder_2/model.safetensors"),
    "timm": Loader(save_timm, Classifier.load),
    "torchvision": Loader(
        save_torchvision, Classifier.load, "hub/checkpoints/squeezenet1_1-b8a52dc0.pth"
    ),
    "hf": Loader(save_vit, Classifier.load),
    "open_clip": Loader(_save_clip, _load_clip, "open_clip_model.safetensors"),
    "file": Loader(_save_file, Classifier.load, "own.pth"),
    "captioner": Loader(_save_captioner, Captioner.load),
    "segmenter": Loader(_save_segmenter, _load_segmenter, "sam.pth"),
}

# What is not there: (files that the message names, the command).
ABSENT = {
    "timm:vit_base_patch16_384.augreg_in21k_ft_in1k": (
        "model.safetensors", "hf download timm/vit_base_patch16_384.augreg_in21k_ft_in1k"),
    "timm:gcvit_xxtiny.in1k": ("gcvit_xxtiny", "curl -L -o "),
    "timm:hf-hub:someone/net": ("model.safetensors", "hf download someone/net"),
    "torchvision:resnet50.IMAGENET1K_V1": (
        "hub/checkpoints/resnet50-0676ba61.pth",
        "curl -L -o "),
    "hf:someone/net": ("preprocessor_config.json", "hf download someone/net"),
    "open_clip:ViT-B-16/openai": (
        "open_clip_model.safetensors", "hf download timm/vit_base_patch16_clip_224.openai"),
    "open_clip:hf-hub:someone/clip": ("open_clip_model.safetensors", "hf download someone/clip"),
    "model someone/model": ("model_index.json", "hf download someone/model --include"),
    "captioner someone/captioner": ("preprocessor_config.json", "hf download someone/captioner"),
    "segmenter hq-sam:vit_b": ("sam_hq_vit_b.pth", "hf download lkeab/hq-sam sam_hq_vit_b.pth"),
    "embedding open_clip:ViT-B-16/openai": ("open_clip_model.safetensors", "hf download "),
}  # fmt: skip


def load_absent(name: str) -> Any:
    """Loads a key of ABSENT: a classifier, or what the word before the space says."""
    from fastdigin.retrieval import load_embedding

    kind, _, source = name.rpartition(" ")
    load = {
        "": Classifier.load, "model": LatentDiffusion.from_pretrained, "captioner": Captioner.load,
        "segmenter": Segmenter.load, "embedding": load_embedding,
    }  # fmt: skip
    return load[kind](source)
