"""Photos to invert."""

import pytest
from tiny import IMAGE_SHAPE, uniform


@pytest.fixture
def images():
    return [uniform(*IMAGE_SHAPE, seed=s) for s in range(3)]
