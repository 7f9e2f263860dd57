"""Whether a model's files hold every tensor, from their headers: no weight is read."""

import json
import os
import re
from importlib import import_module
from pathlib import Path

import torch
from safetensors import safe_open

from fastdigin.models.missing import loading
from fastdigin.models.model_files import ENDINGS, NETWORKS, ModelFiles
from fastdigin.models.weights import check_names

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How attention of a VAE was called when Stable Diffusion 1.x was saved."""


def check_headers(source: str, files: ModelFiles) -> None:
    """Raises UserError, naming some, where tensors are missing, of another shape or foreign."""
    for part, variant in files.variants.items():
        owner = f"the {part} of model {source!r}"
        with loading(owner, "safetensors files that are whole"):
            found = _shapes(files.folder / part, NETWORKS[part][2], variant)
            network = _without_weights(part, files.folder / part)
        wanted = {_name(name): tuple(t.shape) for name, t in network.state_dict().items()}
        numbers = {name: torch.Size(shape).numel() for name, shape in wanted.items()}
        missing = [
            name for name in wanted if torch.Size(found.get(name, (0,))).numel() != numbers[name]
        ]
        check_names(owner, network, missing, set(found).difference(wanted))


def _shapes(folder: Path, stem: str, variant: str | None) -> dict[str, tuple[int, ...]]:
    one, many = (folder / f"{stem}{ending}" for ending in ENDINGS[variant])
    files = [one]
    if not os.path.isfile(one):
        files = [folder / name for name in set(json.loads(many.read_text())["weight_map"].values())]
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                found[_name(name)] = tuple(tensors.get_slice(name).get_shape())
    return found


def _without_weights(part: str, folder: Path) -> torch.nn.Module:
    library, kind, _ = NETWORKS[part]
    kind = getattr(import_module(library), kind)
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder))


def _name(name: str) -> str:
    """What a tensor is called today, in either form of CLIP's names."""
    name = name.removeprefix("text_model.")
    old = re.fullmatch(r"(.*attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{old[1]}.{_OLD[old[2]]}.{old[3]}" if old else name
