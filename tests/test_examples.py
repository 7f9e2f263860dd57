"""The examples do what they say, on the packaged model with few steps."""

import json
import runpy
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch
from PIL import Image

import fastdigin as fd
from fastdigin.examples import folder_of_photos, from_pipeline, own_classifier, own_loss
from fastdigin.results import read_records

EXAMPLES = Path(str(files("fastdigin") / "examples"))


def _short(task: type[fd.Task], **own):
    settings = task.embedded_settings
    optimisation = replace(settings.optimisation, iterations=2, steps=4)
    return replace(settings, optimisation=optimisation, **own)


def _short_counterfactuals():
    return _short(
        fd.Counterfactuals, null_text_steps=1, injection_fractions=(0.3,), blending_fractions=(0.0,)
    )


def test_own_loss_makes_the_picture_redder(tmp_path):
    own_loss.main(tmp_path, iterations=3, steps=4)
    before, after = (
        Image.open(tmp_path / f"{name}.png").resize((1, 1)).getpixel((0, 0))
        for name in ("before", "after")
    )
    red_lead = [2 * r - g - b for r, g, b in (before, after)]
    assert red_lead[1] > red_lead[0]


def test_own_classifier_is_asked_about_red(tmp_path):
    (record,) = own_classifier.main(tmp_path, settings=_short_counterfactuals())
    assert (record.status, record.source, record.target) == ("done", "blue", "red")
    assert record.edited_prompt == record.prompt.replace("blue", "red")
    red, _, blue = record.image.mean(dim=(1, 2))
    # The network's answer from its definition: logits of 9 (blue - red) / std and the opposite.
    expected = torch.sigmoid(2 * 9 * (red - blue) / 0.5)
    assert record.target_confidence == pytest.approx(float(expected), abs=1e-3)
    assert (tmp_path / "report.html").is_file()


def test_a_pipeline_gives_what_the_packaged_model_gives(tmp_path):
    settings = _short(fd.Disagreements, draws=1)
    (record,) = from_pipeline.main(tmp_path, settings=settings)
    engine = fd.Engine(fd.LatentDiffusion.from_pretrained("embedded"))
    f, g = (fd.Classifier.load(f"embedded:{name}") for name in ("robust", "spurious"))
    (other,) = fd.disagreements(engine, f, g, ["sneaker"], settings=settings)
    assert torch.allclose(record.image, other.image, atol=1e-4)
    assert record.f_confidence == pytest.approx(other.f_confidence, abs=1e-4)


def test_a_folder_of_photos_is_explained_and_continued(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in fd.collect(["embedded:photos"])[:2]:
        (photos / f"{photo.id}.png").write_bytes(Path(photo.image).read_bytes())
    out, settings = tmp_path / "out", _short_counterfactuals()
    folder_of_photos.main(out, [str(photos)], limit=1, settings=settings)
    folder_of_photos.main(out, [str(photos)], limit=2, settings=settings)
    assert [record.status for record in read_records(out)] == ["done", "done"]
    assert len((out / "results.jsonl").read_text().splitlines()) == 2  # none was done twice
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXAMPLES.glob("[a-z]*.py"))])
def test_every_example_has_a_help_text(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert stopped.value.code == 0
    assert ("--port" if name == "serve" else "--out") in capsys.readouterr().out


def test_the_notebook_stores_no_outputs():
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_records(tmp_path):
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "ITERATIONS, STEPS = 20, 20" in first.source
    first.source = first.source.replace("ITERATIONS, STEPS = 20, 20", "ITERATIONS, STEPS = 1, 4")
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    pages = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert len(pages) == 2  # a counterfactual and a disagreement
    assert all("data:image/" in page for page in pages)
    assert [record.status for record in read_records(tmp_path / "tour")] == ["done"] * 3
    assert (tmp_path / "tour" / "report.html").is_file()
