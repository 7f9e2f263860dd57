"""Reading what users give: pictures of all kinds, masks, names, tables."""

import json
import sys
from dataclasses import replace

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


def read(path, size=64):
    return read_image(ImageInput("x", path), size)


def test_modes_of_png(tmp_path):
    """Grey, palette, alpha and 16-bit pictures all show the same ramp."""
    grey = (RAMP * 255).round().astype(np.uint8)
    picture = Image.fromarray(grey)
    picture.save(tmp_path / "L.png")
    for mode in ("RGB", "RGBA", "P", "LA"):
        picture.convert(mode).save(tmp_path / f"{mode}.png")
    Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray((RAMP * 65535).round().astype(np.int32)).save(tmp_path / "32.tiff")
    expected = torch.from_numpy(RAMP).float().expand(3, 64, 64)
    for name in ("L.png", "RGB.png", "RGBA.png", "P.png", "LA.png", "16.png", "32.tiff"):
        image = read(tmp_path / name)
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32
        torch.testing.assert_close(image, expected, rtol=0, atol=0.6 / 255, msg=name)


def test_pil_images_are_read_like_files():
    picture = Image.fromarray((RAMP * 65535).round().astype(np.uint16))
    image = read_image(as_inputs([picture])[0], 64)
    torch.testing.assert_close(image[0], torch.from_numpy(RAMP).float(), rtol=0, atol=0.6 / 255)


def test_exif_rotation(tmp_path):
    picture = Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert("RGB")
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise to be looked at
    picture.save(tmp_path / "turned.png", exif=exif)
    expected = torch.rot90(torch.from_numpy(RAMP).float(), -1)
    torch.testing.assert_close(read(tmp_path / "turned.png")[0], expected, rtol=0, atol=0.6 / 255)


@pytest.mark.parametrize("side", [32, 48, 128, 640])
def test_other_sizes_are_resampled(tmp_path, side):
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, : side // 2, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = read(tmp_path / "x.png")
    assert image.shape == (3, 64, 64)
    assert image[0, :, :30].min() > 0.99 and image[0, :, 34:].max() < 0.01
    assert image[1:].max() == 0


def test_tensors_of_other_types():
    image = torch.rand(3, 64, 64)
    for dtype in (torch.float16, torch.float32, torch.float64):
        item = ImageInput("x", image.to(dtype).requires_grad_())
        result = read_image(item, 64)
        assert result.dtype in (torch.float32, torch.float64) and not result.requires_grad
        torch.testing.assert_close(result.float(), image, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "image, words",
    [
        (torch.rand(64, 64), "wanted \\(3, H, W\\)"),
        (torch.rand(1, 3, 64, 64), "wanted \\(3, H, W\\)"),
        (torch.rand(4, 64, 64), "wanted \\(3, H, W\\)"),
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
    for name, picture in {
        "L": Image.fromarray(truth * 255),
        "1": Image.fromarray(truth * 255).convert("1"),
        "RGB": Image.fromarray(truth * 255).convert("RGB"),
        "16": Image.fromarray(truth.astype(np.uint16) * 65535),
        "large": Image.fromarray(truth * 255).resize((256, 256), Image.Resampling.NEAREST),
    }.items():
        picture.save(tmp_path / f"{name}.png")
        mask = read_mask(ImageInput("x", tmp_path / "any", mask=tmp_path / f"{name}.png"), 64)
        torch.testing.assert_close(mask, torch.from_numpy(truth).float(), msg=name)
    soft = torch.rand(64, 64)
    torch.testing.assert_close(read_mask(ImageInput("x", soft, mask=soft), 64), soft)
    assert read_mask(ImageInput("x", soft), 64) is None


def test_bad_masks(tmp_path):
    Image.fromarray((RAMP > 0.5).astype(np.uint8)).save(tmp_path / "labels.png")  # 0 and 1
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    Image.new("L", (64, 48), 255).save(tmp_path / "wide.png")
    for name, words in {
        "labels.png": "is empty: it must be white \\(255",
        "black.png": "is empty",
        "wide.png": "is 64 x 48 pixels, not square",
        "nowhere.png": "does not exist",
    }.items():
        with pytest.raises(UserError, match=f"mask '.*{name}' {words}"):
            read_mask(ImageInput("x", tmp_path / "any", mask=tmp_path / name), 64)
    for mask in (torch.rand(3, 64, 64), torch.rand(64, 64) * 255, torch.full((64, 64), torch.nan)):
        with pytest.raises(UserError, match="mask of 'the id' must be"):
            read_mask(ImageInput("the id", tmp_path / "any", mask=mask), 64)


def test_what_a_caller_may_pass(tmp_path):
    path = embedded.photos()[0].path
    picture, tensor = Image.open(path), torch.rand(3, 64, 64)
    item = ImageInput("mine", path)
    assert [i.id for i in as_inputs([path, str(path), picture, tensor, item])] == [
        path.stem, path.stem, "image-002", "image-003", "mine",
    ]  # fmt: skip
    for single in (path, str(path), picture, tensor, item):
        assert len(as_inputs(single)) == 1
    assert len(as_inputs(torch.rand(4, 3, 64, 64))) == 4
    assert len(as_inputs("embedded:photos")) == len(embedded.photos())
    assert as_inputs(i for i in [item]) == [item]
    with pytest.raises(UserError, match="images is empty"):
        as_inputs([])


def test_folders_and_limits(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.webp", "notes.txt"):
        (tmp_path / name).touch()
    assert [i.id for i in collect([str(tmp_path)])] == ["a", "b", "c"]
    assert [i.id for i in collect([str(tmp_path)], 2)] == ["a", "b"]
    pairs = collect(["embedded:pairs"], 3)
    assert [i.target for i in pairs] == [p.target for p in embedded.pairs()[:3]]
    with pytest.raises(UserError, match="no images were given"):
        collect([])


def test_table_values(tmp_path):
    """Numbers are texts, also zero; line separators within a prompt do not end a row."""
    table = tmp_path / "table.jsonl"
    rows = [
        {"image": "a.png", "id": 0, "target": 0, "source": 5, "prompt": "one\u2028two"},
        {"image": "/abs/b.png", "prompt": None},
    ]
    table.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    first, second = collect([str(table)])
    assert first == ImageInput("0", tmp_path / "a.png", "one\u2028two", "5", "0")
    assert str(second.image) == "/abs/b.png" and second.prompt is None and second.id == "b"
    table = tmp_path / "table.csv"
    table.write_text('image,prompt\nü.png,"two\nlines, ""quoted"""\n', encoding="utf-8")
    assert collect([str(table)])[0].prompt == 'two\nlines, "quoted"'


def test_distinct():
    assert distinct(["a", "b", "a", "a", "a-2"]) == ["a", "b", "a-2", "a-3", "a-2-2"]
    ids = ["x-2", "x", "x", "x"]
    assert len(set(distinct(ids))) == 4
    # What follows does not change a name: --limit 2 and then --limit 4 continue.
    assert distinct(ids)[:2] == distinct(ids[:2])


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
    others = [
        ImageInput("x", embedded.photos()[1].path, item.prompt, item.source),
        ImageInput("x", photo.path, "other", item.source),
        ImageInput("x", photo.path, item.prompt),
        ImageInput("x", photo.path, item.prompt, item.source, mask=photo.mask_path),
        ImageInput("x", image),
        ImageInput("x", 1 - image),
    ]
    assert len({i.fingerprint() for i in [item, *others]}) == 7
    assert ImageInput("x", tmp_path / "nowhere.png").fingerprint() is None


def test_the_middle_of_a_photo_that_is_not_square(tmp_path):
    wide = np.zeros((20, 50, 3), np.uint8)
    wide[:, 15:35] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    mask = Image.fromarray(wide[:, :, 0])
    mask.save(tmp_path / "mask.png")
    item = ImageInput("x", tmp_path / "wide.png", mask=tmp_path / "mask.png")
    with pytest.raises(UserError, match="50 x 20 pixels, not square.*--crop"):
        read_image(item, 20)
    with pytest.raises(UserError, match="not square"):
        read_mask(item, 20)
    cropped = replace(item, crop=True)
    assert (read_image(cropped, 20) == 1).all() and (read_mask(cropped, 20) == 1).all()
    assert cropped.fingerprint() != item.fingerprint()
    tall = torch.zeros(3, 51, 20)
    tall[:, 15:35] = 1
    assert (read_image(ImageInput("x", tall, crop=True), 20) == 1).all()


def test_a_data_set(tmp_path):
    for name in ("red_boot", "bag"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    boot = collect([f"imagefolder:{tmp_path}"])[1]
    assert boot == ImageInput(
        "red_boot-1", tmp_path / "red_boot" / "1.png", "a photograph of a {}", "red boot", crop=True
    )
    assert len(collect([f"imagefolder:{tmp_path}"], limit=1)) == 1


def test_a_parquet_table_needs_pyarrow(tmp_path, monkeypatch):
    for module in ("pyarrow.parquet", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="needs the package pyarrow: pip install 'fastdigin.datas"):
        collect([str(tmp_path / "t.parquet")])


def test_a_parquet_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"image": ["a.png", "b.png"], "source": ["boot", None], "target": ["bag", "7"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    assert collect([str(tmp_path / "t.parquet")]) == [
        ImageInput("a", tmp_path / "a.png", source="boot", target="bag"),
        ImageInput("b", tmp_path / "b.png", target="7"),
    ]
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"1"}]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="row 1: image is not a text"):
        collect([str(tmp_path / "t.parquet")])
    (tmp_path / "t.parquet").write_text("image\na.png\n")
    with pytest.raises(UserError, match="cannot be read"):
        collect([str(tmp_path / "t.parquet")])
    with pytest.raises(UserError, match="cannot be read"):
        collect([str(tmp_path / "none.parquet")])
