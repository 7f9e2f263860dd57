"""What the autoencoder makes of pictures, and sheets of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.results.pictures import to_pil


@torch.no_grad()
def round_trip(model: LatentDiffusion, image_3hw: Tensor) -> Tensor:
    """What the autoencoder makes of an image, on the CPU."""
    return model.decode(model.encode_image(image_3hw)[None])[0].float().cpu()


def contact_sheet(
    rows: Sequence[Sequence[Tensor]],
    row_captions: Sequence[str] = (),
    column_captions: Sequence[str] = (),
    side: int = 144,
    gap: int = 8,
) -> Image.Image:
    """Images of any sizes as one picture: a row a job, captions above the columns and on the left.

    ``rows`` may differ in length; every image (3,H,W) or mask (H,W) is fitted into ``side``
    pixels. Raises ValueError when there is nothing to show.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("contact_sheet needs at least one image")
    font = ImageFont.load_default(max(11, side // 11))
    line = font.getbbox("Ág")[3] + 4
    left = max((round(font.getlength(text)) for text in row_captions), default=-gap) + gap
    top = line if column_captions else 0
    width = gap + left + columns * (side + gap)
    sheet = Image.new("RGB", (width, gap + top + len(rows) * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(column_captions):
        draw.text(
            (gap + left + column * (side + gap) + side / 2, gap),
            text,
            fill="#333",
            font=font,
            anchor="ma",
        )
    for index, row in enumerate(rows):
        y = gap + top + index * (side + gap)
        if index < len(row_captions):
            draw.text((gap, y + side / 2), row_captions[index], fill="#333", font=font, anchor="lm")
        for column, image in enumerate(row):
            picture = ImageOps.contain(to_pil(image), (side, side), Image.Resampling.LANCZOS)
            x = gap + left + column * (side + gap)
            margins = (side - picture.width) // 2, (side - picture.height) // 2
            sheet.paste(picture, (x + margins[0], y + margins[1]))
    return sheet
