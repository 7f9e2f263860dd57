"""Photos that Python holds, as Pillow, numpy and torch have them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import fastdigin as fd
from fastdigin.photos import as_inputs, read_any_image

HOW = {
    "path": lambda path, image: path,
    "text": lambda path, image: str(path),
    "pillow": lambda path, image: Image.open(path),
    "8 bits": lambda path, image: np.asarray(image),
    "floats": lambda path, image: np.asarray(image) / np.float32(255),
    "doubles": lambda path, image: np.asarray(image) / 255.0,
    "tensor": lambda path, image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
    "input": lambda path, image: fd.ImageInput("x", np.asarray(image)),
    "input of pillow": lambda path, image: fd.ImageInput("x", Image.open(path)),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("turned", [None, 6, 5])
def test_a_photo_gives_the_same_bytes_however_it_is_given(tmp_path, how, turned):
    picture = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3)
    exif = picture.getexif()
    if turned:
        exif[0x0112] = turned  # as a camera that was held upright writes it
    picture.save(tmp_path / "a.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    assert upright.size == ((6, 4) if turned is None else (4, 6))
    expected = torch.from_numpy(np.asarray(upright) / np.float32(255)).permute(2, 0, 1)
    (item,) = as_inputs(HOW[how](tmp_path / "a.png", upright))
    assert torch.equal(read_any_image(item), expected)


def test_arrays_of_several_photos_and_of_gray_ones():
    photos = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), np.uint8)
    found = [read_any_image(item) for item in as_inputs(photos)]
    assert len(found) == 3 and all(
        np.array_equal(image.permute(1, 2, 0).numpy(), photo / np.float32(255))
        for image, photo in zip(found, photos, strict=True)
    )
    gray = photos[0, :, :, 0]
    for array in (gray, gray[:, :, None], gray / 255.0):
        (item,) = as_inputs(array)
        assert torch.equal(
            read_any_image(item), torch.from_numpy(gray / np.float32(255)).expand(3, 5, 5)
        )


@pytest.mark.parametrize("array", [np.zeros((3, 5, 5), np.uint8), np.zeros((5, 5, 3), np.int64)])
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(fd.UserError, match=r"is an array of .*: give \(H, W, 3\), of uint8"):
        as_inputs(array)
