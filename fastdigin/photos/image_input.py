"""One photo and what its user says of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from fastdigin.storage import fingerprint


@dataclass(frozen=True)
class ImageInput:
    """One image and what is known of it.

    Args:
        id: names its results.
        image: a file, or a tensor (3, H, W) in [0, 1].
        prompt: describes the image; "{}" in it stands for the word of the source.
        source, target: class names.
        mask: the user's own foreground mask, a file or a tensor (H, W) in [0, 1].
        background: the phrase of the prompt that names the background (for neuron counterfactuals).
        crop: takes the middle of an image that is not square, which is refused otherwise.
        caption: what else the image shows; it is added to the prompt, as far as the text encoder
            has room for it.

    Example:
        >>> fd.ImageInput("tom", Path("tom.png"), prompt="a photo of a {}", source="tabby")
    """

    id: str
    image: Path | Tensor
    prompt: str | None = None
    source: str | None = None
    target: str | None = None
    mask: Path | Tensor | None = None
    background: str | None = None
    crop: bool = False
    caption: str | None = None

    def fingerprint(self) -> str | None:
        """Tells whether an id still means the same input; None where a file cannot be read."""
        try:
            image, mask = (
                Path(x).read_bytes() if isinstance(x, (str, Path)) else x
                for x in (self.image, self.mask)
            )
        except OSError:
            return None
        also = [part for part in ("crop" if self.crop else None, self.caption) if part]
        return fingerprint(image, self.prompt, self.source, self.background, mask, *also)


Images = Iterable[ImageInput | str | Path | Tensor | Image.Image]
