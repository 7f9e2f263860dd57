import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Text weights are kept in a folder of the test's own."""
    monkeypatch.setenv("FASTDIGIN_CACHE", str(tmp_path / "cache"))
