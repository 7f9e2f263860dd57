"""The HTML page and the console tables."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from fastdigin.errors import UserError
from fastdigin.report import print_results, results_table, write_report
from fastdigin.report.curves import curve
from fastdigin.report.html import _share_out
from fastdigin.report.summary import number, percent, summarise, wilson_interval
from fastdigin.results import ResultStore, tasks

TASKS = tasks()
EVIL = "<script>alert(1)</script>\"'&"
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements are balanced and collects what the page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.references, self.text = [], [], []
        self.elements, self.alts = [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        if tag == "img":
            self.alts.append(dict(attributes).get("alt"))
        self.references += [value for name, value in attributes
                            if name in ("src", "href", "srcset", "xlink:href", "action")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(tag)

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def fill(out, task, n=2, **changes):
    store = ResultStore(out, task, {"classifier": "embedded:clean", "hub": "https://x.test/m"})
    for index in range(n):
        image = torch.rand(3, 8, 8)
        paths = {key: store.save_image(f"{index}-{key}", image) for key in
                 ("image", "initial_image", "difference", "mask")}
        store.append({
            "id": f"job-{index}", "status": "done", "seed": index, "iterations": 3, "seconds": 1.5,
            **paths, "input_image": None, "caption": f"Caption {index}.", "best_iteration": 1,
            "history": [{"total": 2.0, "target_confidence": 0.1, "activation": 1.0},
                        {"total": 0.5, "target_confidence": 0.9, "activation": None}],
            "source": "boot", "target": "sandal", "target_confidence_before": 0.1,
            "target_confidence": 0.9, "flipped": index % 2 == 0, "judge_prediction": "sandal",
            "background_l1": 0.01, "foreground_l1": 0.1, "class": "boot",
            "f_confidence_before": 0.5, "g_confidence_before": 0.5, "f_confidence": 0.9,
            "g_confidence": 0.1, "neuron": index, "word": "grass", "activation_before": 1.0,
            "activation": 3.0, "max_other_activation": 1.0, "dataset_max_activation": 2.0,
            "cross_activations": {str(j): 0.5 for j in range(n)}, "direction": "up",
            "background_before": "grass", "background_after": "brick",
            "class_confidence_before": 0.4, "class_confidence": 0.6, **changes,
        })
    return store


def test_page_of_all_tasks_is_balanced_self_contained_and_described(tmp_path):
    for task in TASKS:
        fill(tmp_path, task)
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.elements.count("article") == 8
    assert all(value.startswith(("data:", "#")) for value in page.references)
    assert "url(" not in path.read_text() and "@import" not in path.read_text()
    enlarged = page.alts.pop()
    assert enlarged == "" and all(page.alts)
    anchors = {value[1:] for value in page.references if value.startswith("#")}
    assert anchors == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_user_text_is_escaped(tmp_path, task):
    store = fill(tmp_path, task, n=1, id=EVIL, caption=EVIL, source=EVIL, target=EVIL, word=EVIL,
                 judge_prediction=EVIL, background_before=EVIL, background_after="x",
                 direction=EVIL, neuron=EVIL, cross_activations={EVIL: 1.0, "2": 0.1},
                 history=[{"total": 1.0, EVIL + "confidence": 0.5, "b confidence": 0.5}],
                 **{"class": EVIL})
    store.append({"id": EVIL + "2", "status": "failed", "error": EVIL})
    ResultStore(tmp_path, "disagreement" if task == "neurons" else "neurons",
                {EVIL: EVIL, "list": [EVIL]})
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert Page(text).elements.count("script") == 1


def test_only_our_script_may_run(tmp_path):
    fill(tmp_path, "neurons")
    text = write_report(tmp_path).read_text()
    assert "default-src 'none'" in text
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", text)


def test_missing_values_and_pictures_do_not_break_the_page(tmp_path):
    for task in TASKS:
        store = ResultStore(tmp_path, task, {})
        store.append({"id": 7, "status": "done"})
        store.append({"id": "nan", "status": "done", "activation": float("nan"),
                      "history": [{"total": float("nan")}], "best_iteration": 5,
                      "image": store.save_image("gone", torch.rand(3, 4, 4))})
        (tmp_path / store.lines()[-1]["image"]).unlink()
        assert "Images" in results_table(task, store.lines())
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert page.elements.count("article") == 8 and ">missing<" in text
    assert "nan" not in "".join(page.text).replace("nan</code>", "").split("Settings")[0].split()


def test_a_run_without_results_still_has_a_page(tmp_path):
    ResultStore(tmp_path, "neurons", {"lr": 1})
    assert "No image is finished yet" in write_report(tmp_path).read_text()


def test_report_of_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no results"):
        write_report(tmp_path)


def test_250_records_show_200_and_say_where_the_rest_is(tmp_path):
    store = ResultStore(tmp_path, "counterfactual", {})
    image = store.save_image("shared", torch.rand(3, 64, 64))
    for index in range(250):
        store.append({"id": index, "status": "done", "flipped": index < 100, "image": image,
                      "initial_image": image})
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert page.elements.count("article") == 200
    assert "The first 200 of 250 images are shown" in text
    assert "other 50 are in <code>images/counterfactual</code>" in text
    assert "100 of 250" in text, "figures count all jobs, shown or not"
    assert "and 210 more" in results_table("counterfactual", store.lines())


def test_cards_are_shared_fairly_among_tasks():
    assert _share_out(200, {"a": 1000, "b": 10, "c": 150}) == {"b": 10, "c": 95, "a": 95}
    assert _share_out(200, {"a": 3, "b": 0}) == {"a": 3, "b": 0}


def test_large_pictures_are_reduced(tmp_path):
    store = ResultStore(tmp_path, "disagreement", {})
    smooth = torch.linspace(0, 1, 512).expand(3, 512, 512)
    store.append({"id": "a", "status": "done", "image": store.save_image("a", smooth),
                  "mask": store.save_image("m", smooth[0])})
    text = write_report(tmp_path).read_text()
    assert "data:image/jpeg;base64," in text and "data:image/png;base64," in text
    assert len(text) < 100_000


def test_the_photo_is_shown_only_where_it_differs(tmp_path):
    store = fill(tmp_path, "counterfactual", n=1)
    record = store.lines()[0]
    store.append({**record, "input_image": record["initial_image"]})
    assert 'data-label="photo"' not in write_report(tmp_path).read_text()
    store.append({**record, "input_image": store.save_image("photo", torch.zeros(3, 8, 8))})
    assert 'data-label="photo"' in write_report(tmp_path).read_text()


def test_pictures_outside_the_folder_are_not_embedded(tmp_path):
    out = tmp_path / "out"
    fill(out, "neurons", n=1)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    path = out / "results.jsonl"
    path.write_text(re.sub(r'"image": "[^"]*"', '"image": "../secret.png"', path.read_text()))
    assert ">missing<" in write_report(out).read_text()


def test_failed_jobs_are_listed_with_their_error(tmp_path):
    store = fill(tmp_path, "neurons", n=1)
    store.append({"id": "x", "status": "failed", "error": "the loss became NaN"})
    text = write_report(tmp_path).read_text()
    assert "the loss became NaN" in text and 'id="failed"' in text
    assert "failed: x: the loss became NaN" in results_table("neurons", store.lines())
    assert 'id="failed"' not in write_report(_only_done(tmp_path, store)).read_text()


def _only_done(out, store):
    store.append({"id": "x", "status": "done"})
    return out


def test_counterfactual_figures_against_counting_by_hand():
    records = [{"task": "counterfactual", "id": i, "status": "done", "flipped": i < 3,
                "target": "boot", "judge_prediction": (None, "boot", "bag", "boot")[i],
                "target_confidence_before": 0.1 * i, "target_confidence": 0.9} for i in range(4)]
    figures = {figure.label: figure for figure in summarise("counterfactual", records)}
    assert figures["Flip rate"].value == "75%" and figures["Flip rate"].note.startswith("3 of 4")
    assert figures["Judge agrees"].note.startswith("2 of 3")
    assert figures["Target confidence"].value == "15% → 90%"
    assert "Background change" not in figures


def test_neuron_counterfactuals_are_summed_up_by_direction():
    records = [{"task": "neuron-counterfactual", "id": i, "status": "done",
                "direction": ("up", "down")[i % 2], "activation_before": 2.0,
                "activation": (4.0, 1.0)[i % 2]} for i in range(5)]
    figures = {figure.label: figure for figure in summarise("neuron-counterfactual", records)}
    assert figures["Activation, up"].value == "2.00 → 4.00"
    assert figures["Activation, down"].note.endswith("n = 2")


def test_wilson_interval_against_published_values():
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                    (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_numbers_for_people():
    assert [percent(v) for v in (0, 0.0001, 0.034, 0.5, 0.97, 0.9999, 1, None)] == [
        "0%", "<0.1%", "3.4%", "50%", "97%", ">99.9%", "100%", "n/a"]
    assert [number(v) for v in (0, 0.0123, 1.234, -12.34, 1234.5, 1e-7, None)] == [
        "0", "0.0123", "1.23", "-12.3", "1234", "1.0e-07", "n/a"]


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [None, 3.0, None], [1e9, -1e9],
                                    [1e-9, 2e-9], list(range(500))])
def test_curves_stay_inside_their_frame(values):
    svg = curve("loss", [("total", values)], 0)
    assert "nan" not in svg and "inf" not in svg
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg):
        assert 0 <= float(x) <= 300 and 0 <= float(y) <= 150


def test_a_curve_without_values_is_empty():
    assert curve("loss", [("total", [None, None])], 0) == ""
    assert curve("loss", [], None) == ""


def test_console_text_cannot_steer_the_terminal():
    record = {"task": "disagreement", "id": "\x1b[2Jevil\n", "status": "done", "class": "boot"}
    assert "\x1b" not in results_table("disagreement", [record])


def test_printing_survives_a_terminal_without_unicode(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    print_results("disagreement", [{"task": "disagreement", "id": "\udce9", "status": "done"}])
    stream.flush()
    assert b"- ? -" in stream.buffer.getvalue()
