"""Fixtures of the embedded world's tests."""

import pytest

from fastdigin.errors import UserError


@pytest.fixture(scope="session")
def world():
    """The raw garments and textures; skips where they are not installed."""
    from fastdigin.embedded.data import load_world

    try:
        return load_world()
    except UserError as error:
        pytest.skip(f"needs the raw data: {error}")
