"""The report's page and the console's tables."""

import io
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image
from records import CLASSES, EVIL, Page, filled

from fastdigin.errors import UserError
from fastdigin.report import print_results, results_table, write_report
from fastdigin.results import (
    CounterfactualRecord,
    DisagreementRecord,
    NeuronRecord,
    ResultStore,
    read_records,
)


def written(out) -> str:
    return write_report(out).read_text(encoding="utf-8")


def test_page_of_all_tasks_is_balanced_self_contained_and_described(tmp_path):
    for cls in CLASSES:
        for number in range(2):
            filled(cls, f"job-{number}").save(tmp_path)
    assert write_report(tmp_path) == tmp_path / "report.html"
    text = written(tmp_path)
    page = Page(text)
    assert page.elements.count("article") == 8
    assert all(value.startswith(("data:", "#")) for value in page.references)
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text, "only our script may run"
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", text)
    enlarged = page.alts.pop()
    assert enlarged == "" and all(page.alts)
    within = {value[1:] for value in page.references if value.startswith("#")}
    assert within == {cls.task for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES)
def test_all_text_is_escaped(tmp_path, cls):
    history = [{"total": 1.0, EVIL + "confidence": 0.5, "b confidence": 0.5}]
    settings = {EVIL: EVIL, "list": [EVIL]}
    record = filled(cls, EVIL, EVIL, history=history, extra={EVIL: EVIL}, settings=settings)
    store = ResultStore(tmp_path, cls.task, settings)
    record.save(store)
    cls.failure(EVIL + "2", 0, EVIL, settings).save(store)
    ResultStore(tmp_path, EVIL, {})
    text = written(tmp_path)
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert Page(text).elements.count("script") == 1


@pytest.mark.parametrize("cls", CLASSES)
def test_missing_values_and_pictures_do_not_break_the_page(tmp_path, cls):
    store = ResultStore(tmp_path, cls.task, {})
    cls(id="bare").save(store)
    store.append({"id": 7, "status": "done"})
    line = replace(filled(cls), history=[{"total": float("nan")}], best_iteration=5).save(store)
    (tmp_path / line["image"]).unlink()
    text = written(tmp_path)
    page = Page(text)
    assert page.elements.count("article") == 3 and ">missing<" in text
    assert not re.search(r"\b(nan|None)\b", page.words)
    assert "Images" in results_table(cls.task, read_records(tmp_path))


def test_a_run_without_results_has_a_page_and_no_run_has_none(tmp_path):
    with pytest.raises(UserError, match="no results"):
        write_report(tmp_path)
    ResultStore(tmp_path, "neurons", {"lr": 1})
    assert "No image is finished yet" in written(tmp_path)


def test_250_records_show_200_and_say_where_the_rest_is(tmp_path):
    store = ResultStore(tmp_path, "counterfactual", {})
    image = store.save_image("shared", torch.rand(3, 64, 64))
    for index in range(250):
        store.append({"id": str(index), "status": "done", "flipped": index < 100, "image": image,
                      "initial_image": image})  # fmt: skip
    text = " ".join(written(tmp_path).split())
    assert Page(text).elements.count("article") == 200
    assert "The first 200 of 250 images are shown" in text
    assert "other 50 are in <code>images/counterfactual</code>" in text
    assert "100 of 250" in text, "figures count all jobs, shown or not"
    assert "and 210 more" in results_table("counterfactual", read_records(tmp_path))


def test_large_pictures_are_reduced(tmp_path):
    smooth = torch.linspace(0, 1, 512).expand(3, 512, 512)
    DisagreementRecord(id="a", pictures={"image": smooth, "mask": smooth[0]}).save(tmp_path)
    text = written(tmp_path)
    assert "data:image/jpeg;base64," in text and "data:image/png;base64," in text
    assert len(text) < 100_000


@pytest.mark.parametrize(
    "photo, reconstruction, shown",
    [
        ("same", 0.1, [["before", "10%"], ["after", "90%"]]),
        ("same", 0.2, [["photo", "10%"], ["before", "20%"], ["after", "90%"]]),
        ("same", None, [["photo", "10%"], ["before"], ["after", "90%"]]),
        ("other", 0.1, [["photo", "10%"], ["before", "10%"], ["after", "90%"]]),
    ],
)
def test_the_photo_is_shown_where_it_or_its_figure_differs(tmp_path, photo, reconstruction, shown):
    start = torch.rand(3, 8, 8)
    photos = {"same": start, "other": 1 - start}
    CounterfactualRecord(
        id="a", target_confidence_before=0.1, target_confidence=0.9,
        target_confidence_reconstruction=reconstruction,
        pictures={"input_image": photos[photo], "initial_image": start, "image": start},
    ).save(tmp_path)  # fmt: skip
    assert Page(written(tmp_path)).figures == shown


@pytest.mark.parametrize("name", ["input_image", "initial_image", "image"])
def test_a_damaged_picture_is_shown_as_missing(tmp_path, name):
    """Its end is there and its middle is not: the page is written all the same."""
    pictures = {key: torch.rand(3, 8, 8) for key in ("input_image", "initial_image", "image")}
    CounterfactualRecord(id="a", pictures=pictures).save(tmp_path)
    (record,) = read_records(tmp_path)
    content = bytearray(record.file(name).read_bytes())
    start = content.index(b"IDAT") + 4
    content[start : start + 40] = bytes(40)
    record.file(name).write_bytes(content)
    assert written(tmp_path)


def test_pictures_outside_the_folder_are_not_embedded(tmp_path):
    out = tmp_path / "out"
    filled(NeuronRecord).save(out)
    (out / "folder").mkdir()
    path, text = out / "results.jsonl", (out / "results.jsonl").read_text()
    for name in ("../secret.png", "folder/secret.png", "images/../../secret.png"):
        Image.new("RGB", (4, 4)).save(out / name)
        path.write_text(re.sub(r'"image": "[^"]*"', f'"image": "{name}"', text))
        assert ">missing<" in written(out)


def test_failed_jobs_are_listed_with_their_error(tmp_path):
    NeuronRecord.failure("x", 0, "the loss became NaN", {}).save(tmp_path)
    text = written(tmp_path)
    assert "the loss became NaN" in text and 'id="failed"' in text
    assert "failed: x: the loss became NaN" in results_table("neurons", read_records(tmp_path))
    NeuronRecord(id="x").save(tmp_path)
    assert 'id="failed"' not in written(tmp_path)


def test_a_table_has_the_columns_that_the_record_declares():
    record = CounterfactualRecord(id="a", source="bag", target="boot", flipped=True,
                                  target_confidence_before=0.1, best_iteration=2)  # fmt: skip
    titles, rule, row, *_ = results_table("counterfactual", [record]).splitlines()
    cells = dict(zip(re.split("  +", titles), re.split("  +", row), strict=True))
    assert cells == {
        "id": "a", "source": "bag", "target": "boot", "target confidence": "10% → -",
        "flipped": "yes", "judge sees": "-", "background L1": "-", "foreground L1": "-",
        "best": "2",
    }  # fmt: skip
    assert set(rule) == {"-", " "}


def test_the_console_prints_what_the_terminal_can_show(monkeypatch):
    """No control characters, which could steer it; '?' for what its encoding lacks."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    record = DisagreementRecord(id="\x1b[2Jevil\n\udce9", class_="boot\x1b", f_confidence=0.5)
    print_results("disagreement", [record])
    stream.flush()
    text = stream.buffer.getvalue()
    assert b"\x1b" not in text and rb"\x1b[2Jevil \udce9" in text and b"- ? 50%" in text
