"""Losses on images and latents: what a job asks of its image.

A loss is called with a candidate, which has ``image`` (3,H,W) in [0,1], ``latents`` (C,h,w) and
``key``, and returns an unweighted scalar to be minimised; it carries a ``name`` and a ``weight``.
A ``key`` (job seed, iteration, loss step) asks for the random crops of that moment, None for the
plain image. Anything that does so is a loss: a function of your own needs no class of ours.
"""

from fastdigin.objectives.augmentation import Cutouts
from fastdigin.objectives.classification import ClassConfidence, NeuronActivation
from fastdigin.objectives.distances import Distance
from fastdigin.objectives.perceptual import FeatureDistance, LpipsDistance, load_lpips

__all__ = [
    "ClassConfidence",
    "Cutouts",
    "Distance",
    "FeatureDistance",
    "LpipsDistance",
    "NeuronActivation",
    "load_lpips",
]
