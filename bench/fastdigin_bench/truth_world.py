"""The part "world" of ``fastdigin bench truth``: are the embedded networks good enough?

Samples of the diffusion model are judged by the embedded classifiers, the autoencoder reconstructs
the packaged photos, and the classifiers' figures are read from where their training left them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from fastdigin import embedded
from fastdigin.engine.engine import Engine
from fastdigin.metrics.figures import Figure, at_least, figure, share
from fastdigin.metrics.truth import seen
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.results.pictures import png, read_picture, to_pil
from fastdigin.storage import write_atomically
from fastdigin_bench.output import make_folder
from fastdigin_bench.pictures import contact_sheet, round_trip

SAMPLES = 480
STEPS, GUIDANCE_SCALE = 20, 3.0
BATCH = 24
SHEET_COLUMNS = 8

ACCURACY_TARGETS = {"clean": at_least(0.9), "judge": at_least(0.9), "robust": at_least(0.8)}
ATTACKED_SCENES = 1_000  # embedded/train_classifiers.py attacks the first so many composites
ASKED = {  # name of a figure -> (classifier, what it shall see of a sample, target)
    "judge sees the garment": ("judge", "garment", at_least(0.96)),
    "clean sees the garment": ("clean", "garment", None),
    "background is right": ("background", "background", at_least(0.98)),
    "colour is right": ("colour", "colour", at_least(0.98)),
}


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


def measure(engine: Engine, limit: int | None, out: Path) -> tuple[int, list[Figure]]:
    """Draws the samples that ``out`` does not hold yet; (their number, all figures)."""
    wanted = walk(SAMPLES if limit is None else min(SAMPLES, limit))
    images = draw(partial(sample_images, engine), wanted, out)
    rows = [
        [image for sample, image in zip(wanted, images, strict=True) if sample.garment == garment]
        for garment in embedded.GARMENTS
    ]
    named = {g: row[:SHEET_COLUMNS] for g, row in zip(embedded.GARMENTS, rows, strict=True) if row}
    sheet = contact_sheet(list(named.values()), list(named), side=96)
    write_atomically(out / "contact-sheet.png", png(sheet))
    readers = {name: Classifier.load(f"embedded:{name}") for name, _, _ in ASKED.values()}
    shown = seen(readers, images)
    photos = embedded.photos()[:limit]
    decibels = [
        psnr(engine.model, read_picture(photo.path))
        for photo in tqdm(photos, desc="autoencoder", unit="image")
    ]
    trained = {name: training_figures(name) for name in embedded.classifier_names()}
    return len(wanted), [
        *sample_figures(wanted, {n: [one[n] for one in shown] for n in readers}),
        *autoencoder_figures([photo.background for photo in photos], decibels),
        *classifier_figures(trained),
    ]


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
    sample: Callable[[Sequence[Sample]], Tensor], wanted: Sequence[Sample], out: Path,
    batch: int = BATCH,
) -> list[Tensor]:  # fmt: skip
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


def psnr(model: LatentDiffusion, image_3hw: Tensor) -> float:
    """Peak signal-to-noise ratio of the autoencoder's round trip of an image in [0, 1], in dB."""
    error = round_trip(model, image_3hw) - image_3hw
    return -10 * error.square().mean().log10().item()


def sample_figures(samples: Sequence[Sample], shown: Mapping[str, Sequence[str]]) -> list[Figure]:
    """How often the classifiers see what was asked for. shown: classifier -> class per sample."""

    def hits(classifier: str, what: str) -> list[bool]:
        pairs = zip(samples, shown[classifier], strict=True)
        return [getattr(sample, what) == found for sample, found in pairs]

    by_judge = list(zip(samples, hits("judge", "garment"), strict=True))
    return [
        *(
            figure(f"samples: {name}", hits(classifier, what), target)
            for name, (classifier, what, target) in ASKED.items()
        ),
        *(
            figure(
                f"samples: judge sees the {garment}",
                [hit for sample, hit in by_judge if sample.garment == garment],
            )
            for garment in embedded.GARMENTS
        ),
    ]


def autoencoder_figures(backgrounds: Sequence[str], decibels: Sequence[float]) -> list[Figure]:
    """PSNR of the round trip, over all photos and by their background."""
    pairs = list(zip(backgrounds, decibels, strict=True))
    return [
        figure("autoencoder, photos", decibels, at_least(27.0), "dB"),
        *(
            figure(f"autoencoder, photos on {name}", [d for b, d in pairs if b == name], unit="dB")
            for name in embedded.BACKGROUNDS
        ),
    ]


def training_figures(name: str) -> dict:
    """What the training of an embedded classifier measured on held-out composites."""
    config = embedded.classifier_folder(name) / "config.json"
    return json.loads(config.read_text(encoding="utf-8"))["figures"]


def classifier_figures(trained: Mapping[str, dict]) -> list[Figure]:
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
    return [
        *figures,
        share("classifier robust, accuracy under PGD", attacked, ATTACKED_SCENES, at_least(0.6)),
        Figure(
            "classifier spurious, fall off the planted background",
            100 * planted_fall(trained["spurious"]["planted"]),
            len(embedded.PLANTED),
            None,
            at_least(30.0),
            "points",
        ),
    ]


def planted_fall(accuracies: Mapping[str, Mapping[str, float]]) -> float:
    """Accuracy on the planted background minus that on the others, mean over planted garments."""
    return fmean(
        on[home] - fmean(value for background, value in on.items() if background != home)
        for on, home in ((accuracies[garment], home) for garment, home in embedded.PLANTED.items())
    )
