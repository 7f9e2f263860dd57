"""A small random CLIP of open_clip, saved as its repositories are."""

import json

import open_clip
import torch
from safetensors.torch import save_file


def tiny_config(**options):
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **options}


def save_model(folder, preprocess=None, **options):
    config = tiny_config(**options)
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    saved = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(saved))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model
