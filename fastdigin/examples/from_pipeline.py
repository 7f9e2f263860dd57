"""A pipeline of diffusers as the model: what does one classifier recognise and the other not?

Replace the pipeline by yours: Stable Diffusion 1.x, 2.x or XL, or their Turbo and LCM forms.
"""

import argparse
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import fastdigin as fd

MODEL = files("fastdigin") / "embedded" / "model"  # or "CompVis/stable-diffusion-v1-4"


def main(
    out: str | Path, *, settings: fd.DisagreementSettings | None = None
) -> list[fd.DisagreementRecord]:
    """Explains two classifiers by generated images, and writes the report."""
    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL)).to(torch.float32)
    engine = fd.Engine(fd.LatentDiffusion.from_pipe(pipe))
    f, g = (fd.Classifier.load(f"embedded:{name}") for name in ("robust", "spurious"))
    records = list(fd.disagreements(engine, f, g, ["sneaker"], settings=settings))
    for record in records:
        record.save(out)
    fd.write_report(out)
    return records


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="from-pipeline", help="folder for the results")
    main(parser.parse_args().out)
