"""fastdigin bench truth: what it reads off records, what it prints, keeps and continues."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import fastdigin as fd
from fastdigin import cli, embedded
from fastdigin_bench import truth, truth_rows
from fastdigin_bench.command import TRUTH_PARTS

SIZE = 64
GREY, STEP = 128 / 255, 51 / 255  # of an 8-bit picture: no rounding
WHOLE, UPPER, LEFT = (0, 0, SIZE, SIZE), (0, 0, SIZE, SIZE // 2), (0, 0, SIZE // 2, SIZE)
RIGHT_BELOW = (SIZE // 2, SIZE // 2, SIZE, SIZE)
MODEL = SimpleNamespace(image_size=SIZE, encode_image=lambda x: x, decode=lambda z: z + 0.1)
"""An autoencoder that is 0.1 too bright."""


@pytest.fixture
def photo(tmp_path):
    """A grey photo; its object is the left half."""
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, LEFT)
    mask.save(tmp_path / "photo-mask.png")
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(tmp_path / "photo.png")
    return embedded.Photo(
        "photo", tmp_path / "photo.png", tmp_path / "photo-mask.png", "boot", "red", "brick", ""
    )


def brighter(*boxes):
    """A grey picture that is brighter in some boxes."""
    picture = torch.full((3, SIZE, SIZE), GREY)
    for left, top, right, bottom in boxes:
        picture[:, top:bottom, left:right] = GREY + STEP
    return picture


def assert_row(row, expected):
    for name, value in expected.items():
        assert row[name] == (value if value is None else pytest.approx(value, abs=1e-6)), name


@pytest.mark.parametrize(("flipped", "judge"), [(True, "boot"), (False, "bag")])
def test_a_counterfactual(photo, flipped, judge):
    """The edit may change the left half, and the upper half, which the automatic mask holds."""
    pictures = {"image": brighter(RIGHT_BELOW, LEFT), "mask": torch.zeros(SIZE, SIZE)}
    pictures["mask"][: SIZE // 2] = 1
    record = fd.CounterfactualRecord(
        id="x", target="boot", flipped=flipped, judge_prediction=judge,
        target_confidence_before=0.1, target_confidence=0.9, pictures=pictures,
    )  # fmt: skip
    assert_row(truth_rows.counterfactual_row(MODEL, record, photo), {
        "flips to the target": flipped, "judge sees the target": judge == "boot",
        "target confidence after": 0.9, "L1 outside both masks": STEP,
        "L1 outside both masks, ratio": (STEP, 0.1), "L1 outside the true mask alone": STEP / 2,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("f", "g", "parted", "leads"),
    [(0.9, 0.1, True, True), (0.89, 0.1, False, True), (0.95, 0.46, False, False)],
)
def test_a_disagreement(f, g, parted, leads):
    record = fd.DisagreementRecord(
        id="x", class_="sneaker", f_confidence=f, g_confidence=g, f_confidence_before=0.6,
        g_confidence_before=0.8,
    )  # fmt: skip
    assert_row(truth_rows.disagreement_row(record, "grass", "brick"), {
        "f at least 0.9, g at most 0.1": parted, "f leads g by at least 0.5": leads,
        "g before": 0.8, "g after": g, "planted background before": True,
        "planted background after": False,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("activation", "most", "above", "multiple"),
    [(3.0, 2.0, True, 1.5), (1.0, 2.0, False, 0.5), (0.5, 0.0, True, None)],
)
def test_a_neuron(activation, most, above, multiple):
    record = fd.NeuronRecord(id="x", activation=activation, dataset_max_activation=most)
    assert list(truth_rows.neuron_row(record).values()) == [above, multiple]


@pytest.mark.parametrize(
    ("direction", "after", "background", "moved", "appears", "vanishes"),
    [
        ("max", 5.0, "grass", True, True, None),
        ("max", 3.0, "brick", False, False, None),
        ("min", 1.0, "brick", True, None, True),
        ("min", 5.0, "grass", False, None, False),
    ],
)
def test_a_neuron_counterfactual(
    photo, direction, after, background, moved, appears, vanishes
):  # fmt: skip
    record = fd.NeuronCounterfactualRecord(
        id="x", neuron=embedded.planted_neurons()["grass"][0], direction=direction,
        activation_before=4.0, activation=after, background_after=background,
        pictures={"image": brighter(UPPER), "initial_image": brighter(WHOLE)},
    )  # fmt: skip
    assert_row(truth_rows.neuron_counterfactual_row(MODEL, record, photo), {
        "activation moves as asked": moved, "raised: planted background appears": appears,
        "lowered: planted background vanishes": vanishes, "L1 inside the true mask": STEP / 2,
        "L1 inside the true mask, ratio": (STEP / 2, STEP),
        "L1 inside the true mask, autoencoder alone": 0.1,
    })  # fmt: skip


def test_results_of_another_world_are_not_continued(tmp_path):
    """A world is its weights and pictures, by name and content."""
    weights, out = tmp_path / "world" / "unet.safetensors", tmp_path / "out"
    for folder in (weights.parent, out):
        folder.mkdir()
    weights.write_bytes(b"weights")
    seen = [truth.fingerprint_of(weights.parent)]
    (weights.parent / "MODEL_CARD.md").write_text("about it")
    assert truth.fingerprint_of(weights.parent) == seen[0]
    for name, content in (("unet", b"others"), ("vae", b"weights")):
        weights = weights.rename(weights.with_stem(name))
        weights.write_bytes(content)
        seen.append(truth.fingerprint_of(weights.parent))
    assert len(set(seen)) == 3
    truth.check_same_world(out, {"embedded": seen[0]})
    truth.check_same_world(out, {"embedded": seen[0]})
    with pytest.raises(fd.UserError, match="name another --out"):
        truth.check_same_world(out, {"embedded": seen[1]})


def test_a_file_for_a_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    assert cli.main(["bench", "truth", "--out", str(file), "--results", str(tmp_path)]) == 2
    assert f"--out '{file}'" in capsys.readouterr().err


def truth_command(tmp_path, capsys, *more):
    """The exit code, what was printed, and the file, of one job a part."""
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    code = cli.main(["bench", "truth", "--jobs", "1", *folders, *more])
    kept = json.loads((tmp_path / "results" / "truth.json").read_text())
    return code, capsys.readouterr().out, kept


def test_tables_then_one_line_of_json_that_other_parts_join(tmp_path, capsys):
    """By the part that takes seconds."""
    code, printed, kept = truth_command(tmp_path, capsys, "--only", "world")
    assert code == 0 and json.loads(printed.splitlines()[-1]) == kept
    assert list(kept["parts"]) == ["world"] and "world: 1 jobs" in printed
    assert (tmp_path / "out" / "world" / "contact-sheet.png").exists()
    samples = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("000-*.png")}
    code, again, kept_again = truth_command(tmp_path, capsys, "--only", "world")
    assert (again, kept_again) == (printed, kept)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("000-*.png")} == samples != {}
    file = tmp_path / "results" / "truth.json"
    file.write_text(json.dumps(kept | {"conditions": {"jobs": 2}}))  # never in one file
    assert truth_command(tmp_path, capsys, "--only", "world")[2] == kept


@pytest.mark.slow
def test_one_job_of_each_part(tmp_path, capsys):
    code, first, kept = truth_command(tmp_path, capsys)
    assert code == 0 and tuple(kept["parts"]) == TRUTH_PARTS
    assert all(part["jobs"] == 1 and part["failed"] == 0 for part in kept["parts"].values())
    for name, targets in truth_rows.TARGETS.items():
        assert set(targets) <= {figure["name"] for figure in kept["parts"][name]["figures"]}
    records = {f: f.read_bytes() for f in tmp_path.rglob("results.jsonl")}
    assert len(records) == len(TRUTH_PARTS) - 1
    assert truth_command(tmp_path, capsys) == (0, first, kept)  # all is there: only read again
    assert {f: f.read_bytes() for f in tmp_path.rglob("results.jsonl")} == records
