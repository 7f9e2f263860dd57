"""Photos to invert, and what their inversion calls."""

import pytest
from tiny import IMAGE_SHAPE, uniform


@pytest.fixture
def images():
    return [uniform(*IMAGE_SHAPE, seed=s) for s in range(3)]


@pytest.fixture
def calls(tiny, monkeypatch):
    """One entry for every call of the U-Net."""
    counted, original = [], tiny.model.predict
    monkeypatch.setattr(tiny.model, "predict", lambda *args: counted.append(1) or original(*args))
    return counted
