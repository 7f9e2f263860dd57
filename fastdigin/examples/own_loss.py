"""A loss of your own: make a picture redder. Writes before.png and after.png."""

import argparse
from pathlib import Path

import torch

import fastdigin as fd


class Redness:
    """How much more green and blue than red the image is; the engine minimises it."""

    name, weight = "redness", 1.0

    def __call__(self, candidate: fd.Candidate) -> torch.Tensor:
        red, green, blue = candidate.image.mean(dim=(1, 2))
        return (green + blue) / 2 - red


def main(out: str | Path, *, iterations: int = 20, steps: int = 20) -> fd.Result:
    """Optimises one image, and returns what the engine found."""
    model = fd.LatentDiffusion.from_pretrained("embedded")
    text, empty = model.encode_prompts(["a photo of a white boot on brick", ""])
    latents = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(0))
    settings = fd.Settings(iterations=iterations, steps=steps)
    job = fd.Job("boot", latents, text, empty, [Redness()], settings)
    (result,) = fd.Engine(model).run([job])
    Path(out).mkdir(parents=True, exist_ok=True)
    fd.to_pil(result.initial_image).save(Path(out) / "before.png")
    fd.to_pil(result.image).save(Path(out) / "after.png")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="own-loss", help="folder for the pictures")
    main(parser.parse_args().out)
