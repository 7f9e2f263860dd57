"""Sheets of pictures."""

from __future__ import annotations

import pytest
import torch

from fastdigin_bench.pictures import contact_sheet


def test_contact_sheet_places_every_image():
    red, mask = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8), torch.ones(8, 8)
    sheet = contact_sheet([[red, mask], [red]], side=40, gap=4)
    assert sheet.size == (4 + 2 * 44, 4 + 2 * 44)
    assert sheet.getpixel((24, 24)) == (255, 0, 0) and sheet.getpixel((24, 68)) == (255, 0, 0)
    assert sheet.getpixel((68, 68)) == (255, 255, 255), "the shorter row ends in white"
    captioned = contact_sheet([[red]], ["a job"], ["before"], side=40, gap=4)
    assert captioned.width > 48 and captioned.height > 48
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
