"""The public names: complete, importable, the same for Python and for editors, and explained."""

import importlib.resources
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import fastdigin as fd

FUNCTIONS = [name for name in fd.__all__ if inspect.isfunction(getattr(fd, name))]
NEVER_RAISE = ("register",)

# ``python -m fastdigin.results`` explains the keys of records; nobody makes protocols and errors.
NOT_MADE = (fd.Record, fd.UserError)
CLASSES = [
    name
    for name in fd.__all__
    if name not in (*FUNCTIONS, "Stage") and not issubclass(getattr(fd, name), NOT_MADE)
]


@pytest.mark.parametrize("name", fd.__all__)
def test_every_public_name_is_that_of_its_module(name):
    found = getattr(fd, name)
    assert found is getattr(import_module(fd._HOME[name]), name)
    assert inspect.getdoc(found), f"fd.{name} has no docstring"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'counterfactual_'"):
        fd.counterfactual_  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_of_a_function_says_what_goes_in_and_what_comes_out(name):
    function = getattr(fd, name)
    text = inspect.getdoc(function)
    raises = () if name in NEVER_RAISE else ("Raises:",)
    for section in ("Args:", "Returns:", *raises, "Example:"):
        assert f"\n{section}\n" in text, f"help(fd.{name}) has no section {section}"
    heads = re.findall(r"^    (\w[\w, ]*):", text.split("\nArgs:\n")[1].split("\n\n")[0], re.M)
    explained = {argument for head in heads for argument in head.split(", ")}
    assert explained == set(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", CLASSES)
def test_help_of_a_class_says_what_it_takes(name):
    cls = getattr(fd, name)
    text = inspect.getdoc(cls)
    checks = ("Raises:",) if hasattr(cls, "__post_init__") else ()
    for section in ("Args:", *checks, "Example:"):
        assert f"\n{section}\n" in text, f"help(fd.{name}) has no section {section}"


def test_the_package_carries_its_types_examples_and_templates():
    package = Path(str(importlib.resources.files("fastdigin")))
    for name in (
        "py.typed", "__init__.pyi", "examples/tour.ipynb", "report/templates/report.html",
        "results/templates/card.html",
    ):  # fmt: skip
        assert (package / name).is_file(), f"{name} is missing from the package"
