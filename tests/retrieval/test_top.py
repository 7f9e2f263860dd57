"""The streaming top against sorting everything."""

import pytest
import torch

from fastdigin.retrieval.top import Top


@pytest.mark.parametrize("size", [1, 7, 100])
def test_equals_sorting_with_the_earlier_of_equals_first(size):
    values = torch.randint(0, 20, (60,), generator=torch.Generator().manual_seed(0)).float()
    top = Top(size)
    for start in range(0, 60, 13):
        top.add(range(start, min(start + 13, 60)), values[start : start + 13])
    order = values.argsort(descending=True, stable=True)[:size]
    assert top.items() == [(float(values[i]), int(i)) for i in order]
    assert top.seen == 60
