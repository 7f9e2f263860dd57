"""Which room may import which, and that no modules import each other in a circle."""

from pathlib import Path

import pytest

from fastdigin_bench import lines

FORBIDDEN = {
    # Whoever reads results needs nothing of what makes them.
    ("report", "tasks"), ("report", "engine"), ("report", "models"), ("report", "kernels"),
    ("results", "kernels"), ("storage", "kernels"),
    # A loss is a function of an image.
    ("objectives", "engine"),
    # Photos, tables and presets are read without a model.
    ("datasets", "models"), ("datasets", "engine"), ("presets", "models"), ("presets", "engine"),
}  # fmt: skip
"""Beside all that point up (lines.ORDER)."""

EXCEPTIONS = {
    ("commands", "bench"),  # the door: `fastdigin bench`, where the benches are installed
    ("embedded", "models"),  # embedded/train_classifiers.py makes what the models load
}
"""Arrows that point up all the same."""


@pytest.fixture(scope="module")
def modules():
    return lines.imports(Path(__file__).parents[1])


def test_arrows_between_rooms(modules):
    found = lines.arrows(modules)
    assert ("tasks", "engine") in found and ("engine", "models") in found
    wrong = {arrow for arrow in found if lines.points_up(arrow) or arrow in FORBIDDEN}
    assert wrong == EXCEPTIONS, {arrow: found.get(arrow) for arrow in wrong ^ EXCEPTIONS}


def test_no_circles_of_imports(modules):
    assert lines.circles(modules) == []


def test_circles_by_hand():
    modules = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert lines.circles(modules) == [["a", "b", "c"], ["d", "e"]]


def test_imports_are_read_wherever_they_stand(tmp_path):
    files = {
        "fastdigin/__init__.py": "",
        "fastdigin/engine/__init__.py": "from fastdigin.models.diffusion import Model",
        "fastdigin/models/__init__.py": "",
        "fastdigin/models/diffusion.py": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from fastdigin import engine\n"
            "def late():\n    import fastdigin_kernels\n"
        ),
        "kernels/fastdigin_kernels/__init__.py": "import torch",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = lines.arrows(lines.imports(tmp_path))
    assert set(found) == {("engine", "models"), ("models", "kernels")}
    assert found["models", "kernels"] == ["fastdigin.models.diffusion -> fastdigin_kernels"]
    assert not any(map(lines.points_up, found))
    assert lines.points_up(("models", "engine")) and lines.points_up(("engine", "attic"))
