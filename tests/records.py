"""Records without a run: what the tests of results and of the report share."""

from html.parser import HTMLParser

import torch

import fastdigin as fd
from fastdigin.results.keys import keys_of

CLASSES = [
    fd.CounterfactualRecord,
    fd.DisagreementRecord,
    fd.NeuronRecord,
    fd.NeuronCounterfactualRecord,
]
EVIL = "<script>alert(1)</script>\"'&"
VALUES = {str: "grass", bool: True, int: 3, float: 0.25}
HISTORY = [
    {"total": 2.0, "target_confidence": 0.1, "activation": 1.0},
    {"total": 0.5, "target_confidence": 0.9, "activation": None},
]


def filled(cls: type[fd.Record], id: str = "job-0", text: str = "grass", **changes) -> fd.Record:
    """A record with a value for every key and with all pictures; ``text`` wherever there is any."""
    common = keys_of(fd.Record)
    own = {
        name: text if key.kind is str else VALUES.get(key.kind)
        for name, key in keys_of(cls).items()
        if name not in common
    }
    if "cross_activations" in own:
        own["cross_activations"] = {text: 0.5, "7": None}
    generator = torch.Generator().manual_seed(0)
    pictures = {
        name: torch.rand(3, 8, 8, generator=generator)
        for name in ("image", "initial_image", "input_image", "difference")
    }
    pictures["mask"] = torch.ones(8, 8)
    values = {
        "caption": text, "history": HISTORY, "best_iteration": 1, "pictures": pictures,
        "iterations": 1, "settings": {"lr": 0.01}, **own, **changes,
    }  # fmt: skip
    return cls(id=id, **values)


class Page(HTMLParser):
    """Checks that elements are balanced and collects what a page holds."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.references, self.elements, self.alts = [], [], [], []
        self.figures: list[list[str]] = []  # a figure's words
        self.words = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        given = dict(attributes)
        if tag == "img":
            self.alts.append(given.get("alt"))
        if tag == "figure":
            self.figures.append([])
        names = ("src", "href", "srcset", "xlink:href", "action")
        self.references += [value for name, value in attributes if name in names]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(tag)

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.stack):
            self.words += f"{data} "
        if "figcaption" in self.stack and data.strip():
            self.figures[-1].append(data.strip())
