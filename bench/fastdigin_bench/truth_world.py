"""The part "world" of ``fastdigin bench truth``: are the embedded networks good enough?

Samples of the diffusion model are judged by the embedded classifiers, the autoencoder reconstructs
the packaged photos, and the classifiers' figures are read from where their training left them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from fastdigin import embedded
from fastdigin.engine.engine import Engine
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.results.pictures import png, read_picture, to_pil
from fastdigin.storage import write_atomically
from fastdigin_bench.figures import Figure, at_least, mean, rate, share
from fastdigin_bench.output import make_folder
from fastdigin_bench.pictures import contact_sheet, predictions, round_trip
from fastdigin_bench.truth_part import Measured, Setup

SAMPLES = 480
STEPS, GUIDANCE_SCALE = 20, 3.0
BATCH = 24
SHEET_COLUMNS = 8

ACCURACY_TARGETS = {"clean": at_least(0.9), "judge": at_least(0.9), "robust": at_least(0.8)}
ATTACKED_SCENES = 1_000  # embedded/train_classifiers.py attacks the first so many composites


@dataclass(frozen=True)
class Sample:
    """What one image shall show. The number is its place in the walk and its seed."""

    number: int
    garment: str
    colour: str
    background: str

    @property
    def name(self) -> str:
        return f"{self.number:03d}-{self.colour}-{self.garment}-{self.background}"


def measure(setup: Setup, out: Path) -> Measured:
    """Draws the samples that ``out`` does not hold yet and measures everything."""
    wanted = walk(setup.at_most(SAMPLES))
    images = draw(partial(sample_images, setup.engine), wanted, out)
    write_sheet(wanted, images, out / "contact-sheet.png")
    seen = {
        name: predictions(setup.classifiers[name], images)
        for name in ("judge", "clean", "background", "colour")
    }
    photos = embedded.photos()[: setup.limit]
    model = setup.engine.model
    decibels = [
        psnr(model, read_picture(photo.path))
        for photo in tqdm(photos, desc="autoencoder", unit="image")
    ]
    figures = [
        *sample_figures(wanted, seen),
        *autoencoder_figures(photos, decibels),
        *classifier_figures({name: training_figures(name) for name in embedded.classifier_names()}),
    ]
    return Measured(len(wanted), 0, figures)


def walk(count: int) -> list[Sample]:
    """The first ``count`` samples: 192 combinations in turn, every beginning of them a good mix."""
    garments, colours, backgrounds = embedded.GARMENTS, embedded.COLOURS, embedded.BACKGROUNDS
    samples = []
    for number in range(count):
        rest, garment = divmod(number, len(garments))
        lap, colour = divmod(rest, len(colours))
        # The shifts are one to one, and spare a colour from meeting one background only.
        samples.append(
            Sample(
                number,
                garments[garment],
                colours[(colour + garment) % len(colours)],
                backgrounds[(lap + colour + garment) % len(backgrounds)],
            )
        )
    return samples


def draw(
    sample: Callable[[Sequence[Sample]], Tensor],
    wanted: Sequence[Sample],
    out: Path,
    batch: int = BATCH,
) -> list[Tensor]:
    """The images (3, H, W), as written to ``out``; batches found there are not repeated.

    sample: draws the (B, 3, H, W) of some. The settings are in the folder's name, so that images
    of other ones are never taken for these. Raises UserError where ``out`` cannot be written.
    """
    folder = make_folder(out / f"steps-{STEPS}-guidance-{GUIDANCE_SCALE:g}", "--out")
    paths = [folder / f"{each.name}.png" for each in wanted]
    with tqdm(total=len(wanted), desc="samples", unit="image") as bar:
        for start in range(0, len(wanted), batch):
            rows = slice(start, start + batch)
            if not all(path.exists() for path in paths[rows]):
                for path, image in zip(paths[rows], sample(wanted[rows]), strict=True):
                    write_atomically(path, png(to_pil(image)))
            bar.update(len(paths[rows]))
    return [read_picture(path) for path in paths]


@torch.no_grad()
def sample_images(engine: Engine, samples: Sequence[Sample]) -> Tensor:
    """(B, 3, H, W) in [0, 1], each drawn from its own seed."""
    model = engine.model
    latents = [
        torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(sample.number))
        for sample in samples
    ]
    prompts = [embedded.prompt(s.garment, s.colour, s.background) for s in samples]
    x0 = engine.sample(
        torch.stack(latents).to(model.device),
        model.encode_prompts(prompts),
        steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
    )
    return model.decode(x0)


def write_sheet(samples: Sequence[Sample], images: Sequence[Tensor], path: Path) -> None:
    """A picture to look at: the first samples of each garment, a garment a row."""
    rows: dict[str, list[Tensor]] = {}
    for sample, image in zip(samples, images, strict=True):
        rows.setdefault(sample.garment, []).append(image)
    sheet = contact_sheet([row[:SHEET_COLUMNS] for row in rows.values()], list(rows), side=96)
    write_atomically(path, png(sheet))


def psnr(model: LatentDiffusion, image_3hw: Tensor) -> float:
    """Peak signal-to-noise ratio of the autoencoder's round trip of an image in [0, 1], in dB."""
    error = round_trip(model, image_3hw) - image_3hw
    return -10 * error.square().mean().log10().item()


def sample_figures(samples: Sequence[Sample], seen: dict[str, Sequence[str]]) -> list[Figure]:
    """How often the classifiers see what was asked for. seen: classifier -> class per sample."""
    garments = [sample.garment for sample in samples]
    by_judge = _agreement(seen["judge"], garments)
    return [
        rate("samples: judge sees the garment", by_judge, at_least(0.96)),
        rate("samples: clean sees the garment", _agreement(seen["clean"], garments)),
        rate(
            "samples: background is right",
            _agreement(seen["background"], [sample.background for sample in samples]),
            at_least(0.98),
        ),
        rate(
            "samples: colour is right",
            _agreement(seen["colour"], [sample.colour for sample in samples]),
            at_least(0.98),
        ),
        *(
            rate(
                f"samples: judge sees the {garment}",
                [hit for hit, asked in zip(by_judge, garments, strict=True) if asked == garment],
            )
            for garment in embedded.GARMENTS
        ),
    ]


def autoencoder_figures(
    photos: Sequence[embedded.Photo], decibels: Sequence[float]
) -> list[Figure]:
    """PSNR of the round trip, over all photos and by their background."""
    figures = [mean("autoencoder, photos", decibels, at_least(27.0), "dB")]
    for background in embedded.BACKGROUNDS:
        pairs = zip(photos, decibels, strict=True)
        some = [value for photo, value in pairs if photo.background == background]
        figures.append(mean(f"autoencoder, photos on {background}", some, unit="dB"))
    return figures


def training_figures(name: str) -> dict:
    """What the training of an embedded classifier measured on held-out composites."""
    config = embedded.classifier_folder(name) / "config.json"
    return json.loads(config.read_text(encoding="utf-8"))["figures"]


def classifier_figures(trained: dict[str, dict]) -> list[Figure]:
    """Accuracies, clean and under attack, and the planted fault. trained: as training left them."""
    figures = [
        share(
            f"classifier {name}, held-out accuracy",
            found["accuracy"],
            found["held_out_composites"],
            ACCURACY_TARGETS.get(name),
        )
        for name, found in trained.items()
    ]
    attacked = trained["robust"]["accuracy_under_pgd10_l2_1"]
    fall = planted_fall(trained["spurious"]["planted"])
    return [
        *figures,
        share("classifier robust, accuracy under PGD", attacked, ATTACKED_SCENES, at_least(0.6)),
        Figure(
            "classifier spurious, fall off the planted background",
            100 * fall,
            len(embedded.PLANTED),
            None,
            at_least(30.0),
            "points",
        ),
    ]


def planted_fall(accuracies: dict[str, dict[str, float]]) -> float:
    """Accuracy on the planted background minus that on the others, mean over planted garments."""
    return fmean(
        on[home] - fmean(value for background, value in on.items() if background != home)
        for on, home in ((accuracies[garment], home) for garment, home in embedded.PLANTED.items())
    )


def _agreement(seen: Sequence[str], asked: Sequence[str]) -> list[bool]:
    return [a == b for a, b in zip(seen, asked, strict=True)]
