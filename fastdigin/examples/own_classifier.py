"""A classifier of your own: any network from images to logits. This one sees only the mean colour.

What must change in the photo of a blue sneaker for the network to say "red"?
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import fastdigin as fd


class MeanColour(torch.nn.Module):
    """Two logits, for blue and for red, from images (B, 3, H, W)."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[-9.0, 0.0, 9.0], [9.0, 0.0, -9.0]])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean(dim=(2, 3)))


def main(
    out: str | Path, *, settings: fd.CounterfactualSettings | None = None
) -> list[fd.CounterfactualRecord]:
    """Explains the network by one photo, and writes the report."""
    classifier = fd.Classifier(
        MeanColour(), size=64, mean=[0.5] * 3, std=[0.5] * 3, classes=["blue", "red"],
        name="mean-colour",
    )  # fmt: skip
    photos = fd.collect(["embedded:photos"])
    photo = next(p for p in photos if p.prompt and "blue sneaker" in p.prompt)
    photo = replace(photo, source="blue", target="red")  # "blue" is the word that is replaced
    engine = fd.Engine(fd.LatentDiffusion.from_pretrained("embedded"))
    records = list(fd.counterfactuals(engine, [photo], classifier, settings=settings))
    for record in records:
        record.save(out)
    fd.write_report(out)
    return records


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="own-classifier", help="folder for the results")
    main(parser.parse_args().out)
