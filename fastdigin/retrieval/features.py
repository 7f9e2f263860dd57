"""Features of many photos, kept on disk block by block, so that what is cut off goes on."""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastdigin.datasets.layout import is_image
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput, collect, distinct, read_any_image
from fastdigin.storage import TensorCache, cache_key, cached, weights_fingerprint

BLOCK = 64  # photos of a file on disk, on average
LARGEST_BLOCK = 4 * BLOCK
BATCH = 16  # photos that go through the network at once


@dataclass(frozen=True)
class Block:
    """A few photos with their features (N,F), on the CPU, and those that cannot be read."""

    photos: tuple[ImageInput, ...]
    features_nf: Tensor
    unreadable: dict[str, str]


def load_embedding(spec: str) -> Classifier:
    """The network whose features say what resembles what: their cosine is the similarity.

    Args:
        spec: as for ``Classifier.load``. open_clip:MODEL/PRETRAINED gives CLIP's image features,
            every other kind of classifier those before its head.

    Returns:
        A classifier whose ``activations`` are the features.

    Raises:
        UserError: as ``Classifier.load``.

    Example:
        >>> features = fd.load_embedding("embedded:judge").activations(images)  # (B, D)
    """
    from fastdigin.models.classifiers import load_features

    return Classifier(**load_features(spec).arguments, name=spec)


def photo_files(arguments: Sequence[str]) -> list[ImageInput]:
    """Photos from command-line arguments: as ``collect``, but folders with all their subfolders.

    Args:
        arguments: files, folders, tables, data sets.

    Returns:
        The photos; one of a folder is called by its path within it.

    Raises:
        UserError: a folder without images, or what ``collect`` refuses.

    Example:
        >>> photos = fd.photo_files(["photos/"])
    """
    photos: list[ImageInput] = []
    for argument in arguments:
        root = Path(argument)
        if not os.path.isdir(root):
            photos += collect([argument])
            continue
        files = sorted(
            path
            for folder, _, names in os.walk(root, onerror=_unreadable)
            for path in (Path(folder, name) for name in names)
            if is_image(path.relative_to(root)) and path.is_file()
        )
        if not files:
            raise UserError(f"folder '{root}' and its subfolders hold no images")
        photos += [ImageInput(str(file.relative_to(root)), file) for file in files]
    ids = distinct(photo.id for photo in photos)
    return [replace(photo, id=id) for id, photo in zip(ids, photos, strict=True)]


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"folder '{error.filename}' cannot be read ({error.strerror}): allow it, or name another "
        "one"
    )


def best_of(
    size: int,
    best: Sequence[tuple[float, ImageInput]],
    photos: Sequence[ImageInput],
    values_n: Tensor,
) -> list[tuple[float, ImageInput]]:
    """The ``size`` largest of ``best`` and of more photos; of equal values the earlier stays."""
    more = zip(values_n.tolist(), photos, strict=True)
    return sorted([*best, *more], key=lambda pair: -pair[0])[:size]


@torch.no_grad()
def embed(network: Classifier, prepared: Sequence[Tensor]) -> Tensor:
    """Features (N,F), on the CPU, of images (3,size,size) that the network has prepared."""
    features = [
        network.activations(torch.stack(prepared[start : start + BATCH]), prepared=True)
        for start in range(0, len(prepared), BATCH)
    ]
    if not features:
        return torch.zeros(0, network.num_neurons)
    return torch.cat(features).float().cpu()


def feature_blocks(
    network: Classifier,
    photos: Sequence[ImageInput],
    cache: TensorCache | None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Block]:
    """The photos in order, with the activations of the network's layer, from the cache or anew.

    A file counts as the same as long as its path, size and time do. on_progress: called with the
    number of photos that were just done.
    """
    how = repr(network.network), *network.view_key, *network.pass_key[1:]
    model = cache and cache_key(weights_fingerprint([network.network]), *how)
    for photos_n in _blocks(photos):
        states = [_state(photo) for photo in photos_n]
        key = cache_key(model, states) if cache and None not in states else None
        reasons: dict[int, str] = {}
        kept = cached(cache, key, partial(_embed, network, photos_n, reasons))
        yield _block(photos_n, kept, reasons)
        if on_progress:
            on_progress(len(photos_n))


def _blocks(photos: Sequence[ImageInput]) -> Iterator[tuple[ImageInput, ...]]:
    """Cut where names say so: a photo that is added or gone changes its own block only."""
    block: list[ImageInput] = []
    for photo in photos:
        block.append(photo)
        if (
            zlib.crc32(photo.id.encode("utf-8", "surrogatepass")) % BLOCK == 0
            or len(block) == LARGEST_BLOCK
        ):
            yield tuple(block)
            block = []
    if block:
        yield tuple(block)


def _state(photo: ImageInput) -> tuple | None:
    """What tells whether a file is still the same; None where there is no file."""
    if isinstance(photo.image, Tensor):
        return None
    try:
        status = photo.image.stat()
    except OSError:
        return None
    return str(os.path.realpath(photo.image)), status.st_size, status.st_mtime_ns, photo.crop


def _embed(
    network: Classifier, photos: Sequence[ImageInput], reasons: dict[int, str]
) -> dict[str, Tensor]:
    """The features of a block, and which of its photos cannot be read; why goes to ``reasons``."""
    prepared = []
    for index, photo in enumerate(photos):
        try:
            # Prepared at once, so that a block of large photos does not lie in memory as they are.
            image = read_any_image(photo)
            prepared.append(network.prepare(image[None].to(network.device))[0])
        except UserError as error:
            reasons[index] = str(error)
    unreadable = torch.tensor(list(reasons), dtype=torch.long)
    return {"features_nf": embed(network, prepared), "unreadable": unreadable}


def _block(
    photos: Sequence[ImageInput], kept: Mapping[str, Tensor], reasons: Mapping[int, str]
) -> Block:
    """``reasons``: why photos were unreadable just now; the cache knows only that they were."""
    unreadable = {
        photos[n].id: reasons.get(n, f"image '{photos[n].image}' could not be read")
        for n in kept["unreadable"].tolist()
    }
    readable = tuple(photo for photo in photos if photo.id not in unreadable)
    return Block(readable, kept["features_nf"], unreadable)
