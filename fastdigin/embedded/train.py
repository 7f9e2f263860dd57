"""Makes the embedded world again: ``python -m fastdigin.embedded.train --out DIR``.

Four stages, each from what the earlier ones left in DIR:

autoencoder   DIR/model/vae: pixels to latents and back                          20 minutes
diffusion     DIR/model: text encoder and U-Net in diffusers' layout             90 minutes
classifiers   DIR/classifiers: six of them, with the planted shortcut            40 minutes
photos        DIR/photos: held-out composites with masks, and the pairs           3 minutes

on two CPU cores. After an interruption name the ``--stages`` that are left.
``--out fastdigin/embedded`` in a checkout replaces the packaged world.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from fastdigin.embedded.data import World, load_world
from fastdigin.embedded.make_photos import make_photos
from fastdigin.embedded.scenes import make_scenes
from fastdigin.embedded.train_autoencoder import psnr, train_autoencoder
from fastdigin.embedded.train_classifiers import RECIPES, train_classifiers
from fastdigin.embedded.train_diffusion import (
    assemble,
    cache_latents,
    make_tokenizer,
    train_diffusion,
)
from fastdigin.errors import UserError, exits_with_code

AUTOENCODER_SCENES = 24_000
DIFFUSION_SCENES = 40_000
HELD_OUT_SCENES = 1_000


def autoencoder_stage(world: World, out: Path, seed: int) -> None:
    """Writes ``out/model/vae``, in fp16."""
    images = make_scenes(world, AUTOENCODER_SCENES, "train", seed).images
    autoencoder = train_autoencoder(images, seed)
    autoencoder.to(torch.float16).save_pretrained(out / "model" / "vae")
    held_out = make_scenes(world, HELD_OUT_SCENES, "test", seed + 100).images
    print(f"autoencoder: {psnr(_autoencoder(out), held_out):.2f} dB on held-out scenes")


def diffusion_stage(world: World, out: Path, seed: int) -> None:
    """Writes the whole pipeline into ``out/model``, in fp16."""
    autoencoder = _autoencoder(out)
    tokenizer = make_tokenizer(out / "model" / "tokenizer")
    scenes = make_scenes(world, DIFFUSION_SCENES, "train", seed + 10)
    networks = train_diffusion(cache_latents(autoencoder, tokenizer, scenes), tokenizer, seed)
    pipeline = assemble(autoencoder, tokenizer, networks)
    pipeline.to(dtype=torch.float16).save_pretrained(out / "model")


def classifier_stage(world: World, out: Path, seed: int) -> None:
    """Writes ``out/classifiers``, those that are not there."""
    folder = out / "classifiers"
    missing = [name for name in RECIPES if not (folder / name).is_dir()]
    figures = train_classifiers(world, _autoencoder(out), folder, seed, missing)
    print(json.dumps({name: row["accuracy"] for name, row in figures.items()}))


def photo_stage(world: World, out: Path, seed: int) -> None:
    """Writes ``out/photos``; the photos are the first that suit, so no seed is needed."""
    make_photos(world, out / "classifiers", out / "photos")


STAGES = {
    "autoencoder": autoencoder_stage,
    "diffusion": diffusion_stage,
    "classifiers": classifier_stage,
    "photos": photo_stage,
}


@exits_with_code
def main(arguments: list[str] | None = None) -> int | None:
    """Runs the stages; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the world is written")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's four files")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="(default all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    world = load_world(options.data)
    for name, stage in STAGES.items():
        if name in options.stages:
            stage(world, options.out, options.seed)


def _autoencoder(out: Path) -> AutoencoderKL:
    folder = out / "model" / "vae"
    if not folder.is_dir():
        raise UserError(f"--out {out} has no model/vae: run the stage autoencoder first.")
    model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    sys.exit(main())
