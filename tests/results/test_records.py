"""Records: their keys, reading them back, and what they show of themselves."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from records import CLASSES, EVIL, Page, filled

from fastdigin.errors import UserError
from fastdigin.results import (
    CounterfactualRecord,
    DisagreementRecord,
    NeuronCounterfactualRecord,
    NeuronRecord,
    Record,
    ResultStore,
    read_records,
    register,
)
from fastdigin.results.keys import key, keys_of
from fastdigin.results.schema import describe
from fastdigin.results.views import badge, below_pictures, summarise

# What people's programs read, written down once more: the keys are a promise.
COMMON = {
    "schema", "task", "id", "status", "seed", "iterations", "seconds", "caption", "history",
    "best_iteration", "image", "initial_image", "input_image", "difference", "mask",
}  # fmt: skip
OWN = {
    "counterfactual": {
        "source", "target", "prompt", "input", "edited_prompt", "injection_fraction",
        "blending_fraction", "target_confidence_before", "target_confidence_reconstruction",
        "target_confidence", "prediction", "flipped", "already_target", "judge_prediction",
        "judge_agrees", "background_l1",
        "foreground_l1", "variant",
    },
    "disagreement": {
        "class", "f_confidence_before", "g_confidence_before", "f_confidence", "g_confidence",
        "g_prediction",
    },
    "neurons": {
        "neuron", "word", "direction", "dataset_max_activation", "activation_before", "activation",
        "cross_activations", "max_other_activation",
    },
    "neuron-counterfactual": {
        "neuron", "direction", "prompt", "edited_prompt", "input", "class", "activation_before",
        "activation_reconstruction", "activation", "background_before", "background_after",
        "class_confidence_before", "class_confidence", "foreground_l1", "background_l1",
    },
}  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES)
def test_keys_are_those_that_were_promised(cls):
    assert filled(cls).to_dict().keys() == COMMON | OWN[cls.task]
    failed = cls.failure("a", 3, "no memory", {})
    assert failed.to_dict().keys() == COMMON | OWN[cls.task] | {"error"}
    assert (failed.status, failed.error, failed.seed) == ("failed", "no memory", 3)
    told = {key.name: key.doc for key in keys_of(cls).values()}
    table = describe()
    assert all(doc and f"| `{name}` | {doc} |" in table for name, doc in told.items())


@pytest.mark.parametrize("cls", CLASSES)
def test_what_was_saved_is_read(cls, tmp_path):
    record = filled(cls)
    line = record.save(tmp_path)
    (read,) = read_records(tmp_path)
    assert read == record and type(read) is cls and read.to_dict() == line
    for name, picture in record.pictures.items():
        assert torch.allclose(getattr(read, name), picture, atol=0.51 / 255)
    (tmp_path / line["mask"]).unlink()
    assert read.mask is None
    with pytest.warns(DeprecationWarning, match="to_dict"):
        assert read.record == line


def test_of_a_result():
    result = SimpleNamespace(
        id="a", status="done", error=None, job=SimpleNamespace(seed=3), iterations=2,
        seconds=1.23456, history=[{"total": 1.0}], best_iteration=0, image=torch.rand(3, 4, 4),
    )  # fmt: skip
    record = DisagreementRecord.of(result, settings={}, before=result.image, class_="boot")
    assert (record.seconds, record.seed, record.class_) == (1.235, 3, "boot")
    assert record.pictures.keys() == {"image", "initial_image", "difference"}
    assert record.difference.std(dim=(1, 2)).max() < 1e-6, "nothing changed, so all of one colour"


def test_lines_of_the_first_schema_are_read(tmp_path):
    """As written before lines told their schema; what is new is not known."""
    ResultStore(tmp_path, "counterfactual", {})
    line = {
        "task": "counterfactual", "id": "a-to-boot", "status": "done", "seed": 0, "iterations": 2,
        "seconds": 1.5, "history": [{"total": 1.0}], "best_iteration": 0, "source": "bag",
        "target": "boot", "target_confidence_before": 0.1, "target_confidence": 0.9,
        "flipped": True, "caption": "bag → boot", "image": None, "somebody's": "own",
    }  # fmt: skip
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    (record,) = read_records(tmp_path)
    assert record.target_confidence == 0.9 and record.target_confidence_reconstruction is None
    assert record.extra == {"somebody's": "own"} and record.to_dict()["somebody's"] == "own"


@pytest.mark.parametrize("schema", [3, "2"])
def test_a_later_schema_is_refused(tmp_path, schema):
    filled(NeuronRecord).save(tmp_path)
    with (tmp_path / "results.jsonl").open("a") as file:
        line = {"schema": schema, "task": "neurons", "id": "b", "status": "done"}
        file.write(json.dumps(line) + "\n")
    for use in (read_records, filled(NeuronRecord, "c").save):
        with pytest.raises(UserError, match="those up to 2; update fastdigin"):
            use(tmp_path)


def test_records_of_an_unknown_task_are_read_and_shown(tmp_path):
    store = ResultStore(tmp_path, "sixth", {})
    line = {"task": "sixth", "id": "a", "status": "done", "score": 0.5, "image": None, "list": [1]}
    store.append(line)
    (record,) = read_records(tmp_path)
    assert record.task == "sixth" and record.extra == {"score": 0.5, "list": [1]}
    assert line.items() <= record.to_dict().items()
    assert "<dt>score</dt><dd>0.5</dd>" in record._repr_html_()
    assert [figure.label for figure in summarise([record])] == ["Images"]
    with pytest.raises(ValueError, match="CounterfactualRecord"):
        register(type("Other", (Record,), {"task": "counterfactual"}))


@dataclass(frozen=True, kw_only=True)
class ToyRecord(Record):
    """Declares its fields and nothing more."""

    task = "toy"
    word: str | None = None
    size_confidence_before: float | None = None
    size_confidence: float | None = None
    good: bool | None = key("the toy is good")
    weight: float | None = None
    parts: tuple[str, ...] = ()


def test_a_class_that_only_declares_its_fields_is_shown():
    values = {"word": "car", "size_confidence_before": 0.2, "weight": 2.0, "parts": ("a", "b")}
    toys = [
        ToyRecord(id=str(n), good=n > 0, size_confidence=0.6 + 0.2 * n, **values) for n in (0, 1)
    ]
    cells = {view.title(ToyRecord): view.text(toys[1]) for view in ToyRecord.views()}
    assert cells == {
        "word": "car", "size confidence": "20% → 80%", "good": "yes", "weight": "2.00",
    }  # fmt: skip
    assert {f.label: (f.value, f.note.split(";")[0]) for f in summarise(toys)} == {
        "Images": ("2", "done, none failed"),
        "Size confidence": ("20% → 70%", "mean, before → after, n = 2"),
        "Good": ("50%", "1 of 2: the toy is good"),
        "Weight": ("2.00", "mean, n = 2"),
    }
    card = toys[1]._repr_html_()
    assert "<dt>weight</dt><dd>2.00</dd>" in card and "<dd>20% → 80%</dd>" in card


@pytest.mark.parametrize("cls", CLASSES)
def test_a_notebook_shows_the_card_and_escapes_all_text(cls):
    text = filled(cls, EVIL, EVIL, extra={EVIL: EVIL}, history=[{"total": 1.0, EVIL +
                  "confidence": 0.5, "b confidence": 0.5}])._repr_html_()  # fmt: skip
    page = Page(text)
    assert page.elements.count("article") == 1 and "script" not in page.elements
    assert "&lt;script&gt;alert(1)" in text and page.elements.count("img") == 5
    assert all(reference.startswith("data:") for reference in page.references)
    assert "button" not in page.elements, "nothing answers to it there"


CHANGED = {"target_confidence_before": 0.03, "target_confidence": 0.9}


@pytest.mark.parametrize(
    "cls, values, expected",
    [
        (
            CounterfactualRecord, CHANGED | {"target_confidence_reconstruction": 0.12},
            {"input_image": "3.0%", "initial_image": "12%", "image": "90%"},
        ),
        (CounterfactualRecord, CHANGED, {"input_image": "3.0%", "image": "90%"}),
        (
            NeuronRecord, {"activation_before": 1.0, "activation": 3.0},
            {"initial_image": "1.00", "image": "3.00"},
        ),
        (DisagreementRecord, {"f_confidence_before": 0.5, "f_confidence": 0.9}, {}),
    ],
)  # fmt: skip
def test_every_picture_has_its_own_figure(cls, values, expected):
    assert below_pictures(cls(id="a", **values)) == expected


def test_figures_against_counting_by_hand():
    records = [
        CounterfactualRecord(
            id=str(i), flipped=i < 3, target="boot",
            judge_prediction=(None, "boot", "bag", "boot")[i],
            target_confidence_before=0.1 * i, target_confidence=0.9,
        )
        for i in range(4)
    ]  # fmt: skip
    failed = CounterfactualRecord.failure("x", 0, "NaN", {})
    figures = {figure.label: figure for figure in summarise([*records, failed])}
    assert figures["Images"].note == "done, 1 failed"
    assert figures["Flipped"].value == "75%" and figures["Flipped"].note.startswith("3 of 4")
    assert figures["Judge agrees"].note.startswith("2 of 3")
    assert figures["Target confidence"].value == "15% → 90%"
    assert "Background L1" not in figures
    assert badge(records[3]) == (False, "not flipped") and badge(failed) is None


def test_means_of_raised_and_lowered_neurons_are_apart():
    records = [
        NeuronCounterfactualRecord(
            id=str(i), direction=("max", "min")[i % 2], activation_before=2.0,
            activation=(4.0, 1.0)[i % 2], background_before="grass",
            background_after=("grass", "brick")[i % 2],
        )
        for i in range(5)
    ]  # fmt: skip
    figures = {figure.label: figure for figure in summarise(records)}
    assert figures["Activation, max"].value == "2.00 → 4.00"
    assert figures["Activation, min"].note.endswith("n = 2")
    assert figures["Background changed"].note.startswith("2 of 5")


@pytest.mark.parametrize(
    "maximum, share, above",
    [(2.0, 1.5, True), (3.0, 1.0, False), (0.0, None, True), (-1.0, None, True), (None,) * 3],
)
def test_what_is_derived_is_known_where_its_parts_are(maximum, share, above):
    record = NeuronRecord(id="a", activation=3.0, dataset_max_activation=maximum)
    assert (record.share_of_maximum, record.above_dataset) == (share, above)
    record = DisagreementRecord(id="a", f_confidence=0.9, g_confidence=0.2, f_confidence_before=0.5)
    assert record.gap == pytest.approx(0.7) and record.gap_before is None
