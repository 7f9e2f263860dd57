"""Reading what users give: pictures of all kinds, masks, names, tables."""

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdigin import embedded
from fastdigin.errors import UserError
from fastdigin.photos import (
    ImageInput,
    as_inputs,
    collect,
    distinct,
    one_each,
    read_image,
    read_mask,
)

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
GREY = Image.fromarray((RAMP * 255).round().astype(np.uint8))


def assert_ramp(image, turned=0, tolerance=0.6 / 255):
    expected = torch.rot90(torch.from_numpy(RAMP).float(), turned).expand(3, 64, 64)
    torch.testing.assert_close(image, expected, rtol=0, atol=tolerance)


def saved(picture, folder, suffix="tiff", **more):
    path = folder / f"x.{suffix}"
    picture.save(path, **more)
    return ImageInput("x", path)


@pytest.mark.parametrize("mode", [*Image.MODES, "PA"])
def test_black_is_0_and_white_is_1_in_every_mode_of_pillow(mode):
    refused = {"I": "32 bits do not say what white is", "La": "conversion from La"}
    if mode in ("F", "I"):
        picture = Image.fromarray(RAMP.astype("f4" if mode == "F" else "i4"))
    elif mode.startswith("I;16"):
        values = (RAMP * 65535).round().astype(">u2" if mode == "I;16B" else "<u2")
        picture = Image.frombytes(mode, (64, 64), values.tobytes())
    elif mode == "1":
        picture = Image.fromarray(RAMP.round().astype(bool))
    else:
        picture = GREY.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert(mode)
    assert picture.mode == mode
    if mode in refused:
        with pytest.raises(UserError, match=refused[mode]):
            as_inputs(picture)
    else:  # LAB has rounded twice
        tolerance = {"1": 0.5, "LAB": 2.6 / 255}.get(mode, 0.6 / 255)
        assert_ramp(read_image(as_inputs(picture)[0], 64), tolerance=tolerance)


@pytest.mark.parametrize(
    "kind",
    ["grey.png", "16 bits.png", "16 bits.tiff", "16 bits.ppm", "float.tiff", "turned.png",
     "turned.jpeg", "turned.tiff", "turned.webp"],
)  # fmt: skip
def test_a_ramp_is_read_from_every_kind_of_file(tmp_path, kind):
    exif = Image.Exif()
    turned = kind.startswith("turned")
    if turned:
        exif[0x0112] = 6  # by 90 degrees clockwise to be looked at
    picture = GREY.convert("RGB")
    if kind.startswith(("16", "float")):
        deep = (RAMP * 65535).round().astype(np.uint16), RAMP.astype(np.float32)
        picture = Image.fromarray(deep[kind == "float.tiff"])
    item = saved(picture, tmp_path, kind.rpartition(".")[2], exif=exif, quality=100)
    lossy = kind in ("turned.jpeg", "turned.webp")
    assert_ramp(read_image(item, 64), -turned, tolerance=(3 if lossy else 0.6) / 255)
    if not turned:
        torch.testing.assert_close(
            read_mask(replace(item, mask=item.image), 64), read_image(item, 64)[0]
        )


@pytest.mark.parametrize(
    "picture, more, words",
    [
        (Image.fromarray((RAMP * 255).astype(np.int32)), {}, "32 bits do not say"),
        (Image.fromarray((RAMP * 255).astype(np.float32)), {}, "mode F are outside \\[0, 1\\]"),
        (Image.fromarray((RAMP - 0.5).astype(np.float32)), {}, "mode F are outside"),
        (Image.fromarray(np.where(RAMP > 0.5, np.nan, 1).astype(np.float32)), {}, "are outside"),
        (Image.fromarray((RAMP * 65535).astype(np.uint16)), {"tiffinfo": {262: 0}}, "white at 0"),
        (Image.fromarray((RAMP * 127).astype(np.uint8)), {"tiffinfo": {339: 2}}, "are signed"),
    ],
)
def test_depths_that_could_be_read_wrongly_are_refused(tmp_path, picture, more, words):
    item = saved(picture, tmp_path, **more)
    for read in (read_image, read_mask):
        with pytest.raises(UserError, match=f"x.tiff' cannot be read as an image .*{words}"):
            read(replace(item, mask=item.image), 64)


def png(*chunks, size=(64, 64), bits=8, colour=2, pixels=b""):
    """A file of chunks with right checksums, whatever they hold."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


@pytest.mark.parametrize(
    "bits, colour, pixel", [(1, 0, 1), (8, 0, 77), (8, 2, 77), (2, 0, 1), (4, 0, 1), (16, 0, 4660),
                            (16, 2, 4660)],
)  # fmt: skip
def test_a_transparent_colour_is_white_or_refused(tmp_path, bits, colour, pixel):
    """Pillow compares it with pixels that it has brought to 8 bits; of 16 it takes no notice."""
    samples = 3 if colour == 2 else 1
    row = b"".join(pixel.to_bytes(bits // 8, "big") for _ in range(64 * samples)) if bits > 7 else (
        bytes([sum(pixel << k for k in range(0, 8, bits))]) * (64 * bits // 8)
    )  # fmt: skip
    key = (b"tRNS", struct.pack(">H", pixel) * samples)
    item = ImageInput("x", tmp_path / "x.png")
    item.image.write_bytes(png(key, bits=bits, colour=colour, pixels=(b"\0" + row) * 64))
    if bits in (1, 8):
        assert (read_image(item, 64) == 1).all()
    else:
        with pytest.raises(UserError, match="transparent colour is of the depth"):
            read_image(item, 64)


EXIF = {
    "letters": b"letters", "header": b"Exif\0\0II+\0\x08\0\0\0", "half": b"Exif\0\0MM\0*\0"
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("kind", EXIF)
def test_damaged_exif_data_fail_alone(tmp_path, suffix, kind):
    """Pillow reads them when it is asked how the picture is turned."""
    item = saved(GREY.convert("RGB"), tmp_path, suffix, exif=EXIF[kind])
    with pytest.raises(UserError, match="Exif data are damaged"):
        read_image(item, 64)
    with pytest.raises(UserError, match="picture 0 of images cannot be read"):
        as_inputs([Image.open(item.image)])


def test_an_open_picture_that_is_cut_short_is_refused_by_its_place(tmp_path):
    path = tmp_path / "x.png"
    content = saved(GREY, tmp_path, "png").image.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="picture 1 of images cannot be read"):
        as_inputs([GREY, Image.open(path)])


TEXT_BOMB = png((b"zTXt", b"Comment\0\0" + zlib.compress(b"0" * 2**26)))
BROKEN = {
    "text bomb": TEXT_BOMB,
    "pixel bomb": png(size=(60_000, 60_000)),
    "cut short": png()[:-30],
    "header only": png()[:33],
    "half a header": png()[:20],
    "JPEG without end": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "TIFF of nothing": b"II*\x00\xff\xff\xff\xff",
    "GIF of nothing": b"GIF89a",
    "WebP of nothing": b"RIFF\x1a\x00\x00\x00WEBPVP8L" + b"\xff" * 14,
    "BMP of 17 bits": b"BM" + struct.pack("<IIIIiiHH24x", 99, 0, 54, 40, 9, 9, 1, 17),
    "PPM of letters": b"P6 x y z",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage",
    "PDF": b"%PDF-1.4\n",
    "text": b"not a picture",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_fails_alone(tmp_path, kind):
    """Whatever the decoder raises; and what another program would open is not given to it."""
    path = tmp_path / "x.png"
    path.write_bytes(BROKEN[kind])
    for read in (read_image, read_mask):
        with pytest.raises(UserError, match="x.png' cannot be read as an image") as error:
            read(ImageInput("x", path, mask=path), 64)
    if kind in ("EPS", "PDF"):
        assert "none of BMP, GIF, JPEG" in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "NUL", "surrogate", "long", "loop"])
def test_what_is_no_file_fails_alone_and_at_once(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    names = {"device": "/dev/zero", "NUL": "a\0.png", "surrogate": "\ud800.png", "long": "a" * 999}
    item = ImageInput("x", Path(names.get(kind, path)))
    with pytest.raises(UserError, match="cannot be read as an image|does not exist"):
        read_image(item, 64)
    assert item.fingerprint() is None


@pytest.mark.parametrize("side", [32, 48, 128, 640])
def test_other_sizes_are_resampled(tmp_path, side):
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, : side // 2, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = read_image(ImageInput("x", tmp_path / "x.png"), 64)
    assert image.shape == (3, 64, 64) and image[1:].max() == 0
    assert image[0, :, :30].min() > 0.99 and image[0, :, 34:].max() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tensors_of_other_types(dtype):
    image = torch.rand(3, 64, 64)
    result = read_image(ImageInput("x", image.to(dtype).requires_grad_()), 64)
    assert result.dtype in (torch.float32, torch.float64) and not result.requires_grad
    torch.testing.assert_close(result.float(), image, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "image, words",
    [
        (torch.rand(64, 64), "wanted \\(3, H, W\\)"),
        (torch.rand(1, 3, 64, 64), "wanted \\(3, H, W\\)"),
        (torch.rand(64, 64, 3), "wanted \\(3, H, W\\)"),
        (torch.full((3, 64, 64), 255, dtype=torch.uint8), "divide 8-bit values by 255"),
        (torch.rand(3, 64, 64) - 0.5, "outside \\[0, 1\\]"),
        (torch.full((3, 64, 64), torch.nan), "outside \\[0, 1\\]"),
        (torch.rand(3, 64, 32), "32 x 64 pixels, not square"),
        (torch.rand(3, 16, 16), "too small"),
        (torch.rand(3, 0, 0), "too small"),
    ],
)
def test_bad_tensors(image, words):
    with pytest.raises(UserError, match=f"'the id'.*{words}"):
        read_image(ImageInput("the id", image), 64)


def test_masks(tmp_path):
    truth = (RAMP > 0.5).astype(np.uint8)
    white = Image.fromarray(truth * 255)
    for name, picture in {
        "L": white,
        "1": white.convert("1"),
        "RGB": white.convert("RGB"),
        "16": Image.fromarray(truth.astype(np.uint16) * 65535),
        "large": white.resize((256, 256), Image.Resampling.NEAREST),
    }.items():
        picture.save(tmp_path / f"{name}.png")
        mask = read_mask(ImageInput("x", tmp_path / "any", mask=tmp_path / f"{name}.png"), 64)
        torch.testing.assert_close(mask, torch.from_numpy(truth).float(), msg=name)
    soft = torch.rand(64, 64)
    torch.testing.assert_close(read_mask(ImageInput("x", soft, mask=soft), 64), soft)
    assert read_mask(ImageInput("x", soft), 64) is None


@pytest.mark.parametrize(
    "mask, words",
    [
        (Image.fromarray((RAMP > 0.5).astype(np.uint8)), "is empty: it must be white \\(255"),
        (Image.new("L", (64, 48), 255), "is 64 x 48 pixels, not square"),
        (None, "does not exist"),
        (torch.rand(3, 64, 64), "of 'the id' must be"),
        (torch.rand(64, 64) * 255, "of 'the id' must be"),
        (torch.full((64, 64), torch.nan), "of 'the id' must be"),
    ],
)
def test_bad_masks(tmp_path, mask, words):
    if isinstance(mask, Image.Image):
        mask.save(tmp_path / "mask.png")
    mask = mask if isinstance(mask, torch.Tensor) else tmp_path / "mask.png"
    with pytest.raises(UserError, match=f"mask ('.*mask.png' )?{words}"):
        read_mask(ImageInput("the id", tmp_path / "any", mask=mask), 64)


def test_what_a_caller_may_pass():
    path = embedded.photos()[0].path
    picture, tensor = Image.open(path), torch.rand(3, 64, 64)
    item = ImageInput("mine", path)
    assert [i.id for i in as_inputs([path, str(path), picture, tensor, item])] == [
        path.stem, path.stem, "image-002", "image-003", "mine",
    ]  # fmt: skip
    assert all(len(as_inputs(one)) == 1 for one in (path, str(path), picture, tensor, item))
    assert len(as_inputs(torch.rand(4, 3, 64, 64))) == 4
    assert len(as_inputs("embedded:photos")) == len(embedded.photos())
    assert as_inputs(i for i in [item]) == [item]
    with pytest.raises(UserError, match="images is empty"):
        as_inputs([])


def test_distinct():
    assert distinct(["a", "b", "a", "a", "a-2"]) == ["a", "b", "a-2", "a-3", "a-2-2"]
    ids = ["x-2", "x", "x", "x"]
    assert len(set(distinct(ids))) == 4
    # What follows does not change a name: --limit 2 and then --limit 4 continue.
    assert distinct(ids)[:2] == distinct(ids[:2])


def test_collect_takes_texts_and_paths():
    photo = embedded.photos()[0]
    (expected,) = collect([str(photo.path)])
    for one in ([photo.path], photo.path, str(photo.path)):
        assert collect(one) == [expected]
    with pytest.raises(UserError, match="7 is no name of images"):
        collect([7])


def test_one_each():
    assert one_each("max", "directions", 2) == ["max", "max"]
    assert one_each(3, "neurons", 2) == one_each([3], "neurons", 2) == [3, 3]
    assert one_each(np.int64(3), "neurons", 1) == [3]
    assert one_each(np.array([3, 4]), "neurons", 2) == [3, 4]
    with pytest.raises(UserError, match="3 targets for 2 images"):
        one_each(["abc"] * 3, "targets", 2)


def test_fingerprint_tells_inputs_apart(tmp_path):
    photo = embedded.photos()[0]
    item = ImageInput("x", photo.path, photo.prompt, photo.garment)
    assert item.fingerprint() == replace(item, id="y", target="bag").fingerprint()
    image = torch.rand(3, 64, 64)
    changes = (
        {"image": embedded.photos()[1].path}, {"prompt": "other"}, {"source": None},
        {"mask": photo.mask_path}, {"crop": True}, {"image": image}, {"image": 1 - image},
        {"source_word": "shoe"}, {"target_word": "shoe"},
    )  # fmt: skip
    others = [replace(item, **change).fingerprint() for change in changes]
    assert len({item.fingerprint(), *others}) == 10
    assert ImageInput("x", tmp_path / "nowhere.png").fingerprint() is None


def test_the_middle_of_a_photo_that_is_not_square(tmp_path):
    wide = np.zeros((20, 50, 3), np.uint8)
    wide[:, 15:35] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide[:, :, 0]).save(tmp_path / "mask.png")
    item = ImageInput("x", tmp_path / "wide.png", mask=tmp_path / "mask.png")
    with pytest.raises(UserError, match="50 x 20 pixels, not square.*--crop"):
        read_image(item, 20)
    cropped = replace(item, crop=True)
    assert (read_image(cropped, 20) == 1).all() and (read_mask(cropped, 20) == 1).all()
    tall = torch.from_numpy(wide).permute(2, 1, 0) / 255
    assert (read_image(ImageInput("x", tall, crop=True), 20) == 1).all()
