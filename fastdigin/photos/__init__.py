"""The user's photos: what is known of each, where they come from, and their pixels."""

from fastdigin.photos.collect import as_inputs, collect, distinct, one_each
from fastdigin.photos.pixels import (
    ImageInput,
    Images,
    read_any_image,
    read_image,
    read_images,
    read_mask,
    readable_images,
)

__all__ = [
    "ImageInput",
    "Images",
    "as_inputs",
    "collect",
    "distinct",
    "one_each",
    "read_any_image",
    "read_image",
    "read_images",
    "read_mask",
    "readable_images",
]
