"""All figures of a method: by hand with a classifier of mean colours, from folders, by command."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from cli_commands import run
from torch import nn

from fastdigin.errors import MissingFiles, MissingPackage, UserError
from fastdigin.metrics import (
    Case,
    Extractor,
    Networks,
    cases_of,
    load_extractor,
    read_ace,
    read_cases,
    score,
    write_ace,
)
from fastdigin.models.classifier import Classifier
from fastdigin.results import CounterfactualRecord, DisagreementRecord, read_records

RED, GREEN, BLUE = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)


class MeanColour(nn.Module):
    """Logits that are 10 times the mean colour."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        return self.scale * images.mean(dim=(2, 3))


class L1(nn.Module):
    """Stands in for LPIPS."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, a, b, normalize):
        assert normalize
        return (self.weight * (a - b)).abs().mean(dim=(1, 2, 3), keepdim=True)


def colours(classes=("red", "green", "blue"), order=(0, 1, 2)):
    network = nn.Sequential(MeanColour())
    given = {"size": 4, "mean": (0,) * 3, "std": (1,) * 3, "layer": "0", "name": "colours"}
    return Classifier(network, classes=[classes[k] for k in order], **given)


def by_name(scores):
    return {one.figure.name: one for one in scores}


def cases():
    """Red photos that shall become green: two do, one becomes blue, one was green already."""
    half = torch.zeros(4, 4)
    half[:, 2:] = 1
    known = {"source": "red", "target": "green", "mask": half}
    return [
        Case(id="a", before=RED, after=GREEN, photo="p", correct=True, **known),
        Case(id="b", before=RED, after=torch.where(half > 0, GREEN, RED) + 0.01 * GREEN,
             photo="p", correct=True, **known),
        Case(id="c", before=RED, after=BLUE, photo="q", correct=True, **known),
        Case(id="d", before=GREEN, after=GREEN, photo="r", correct=False, **known),
    ]  # fmt: skip


def test_figures_by_hand():
    network = colours()
    pixels = Extractor("pixels", lambda x: x.flatten(1))
    means = Extractor("means", lambda x: x.mean(dim=(2, 3)))
    networks = Networks(
        classifier=network, judge=colours(), extractor=pixels, faces=means, attributes=[network],
        lpips=L1(),
    )  # fmt: skip
    found = by_name(score(cases(), networks))
    figures = {name: (one.figure.value, one.figure.n, one.cohort) for name, one in found.items()}
    assert figures["flip rate"] == (pytest.approx(2 / 3), 3, "all")  # d was green before
    assert figures["judge agreement"] == (0.75, 4, "all")
    assert figures["transfer"] == (1.0, 2, "flipped")
    changes = torch.tensor([2 / 3, 0.35, 2 / 3, 0]).mean()
    assert figures["L1"][0] == pytest.approx(float(changes), abs=0.02)
    assert figures["L1, background"][0] == pytest.approx((4 / 3 / 2 + 0 + 2 / 3) / 4, abs=2e-3)
    assert figures["LPIPS, foreground"][0] == pytest.approx(figures["L1, foreground"][0] / 2)
    assert figures["COUT"][1:] == (3, "correct") and -1 < figures["COUT"][0] < 1
    # The mean colours of flipped pairs: red to green, and to half of each.
    assert figures["FS"] == (pytest.approx(0.5**0.5 / 2, abs=0.01), 2, "flipped")
    assert figures["FVA"] == (0.5, 2, "flipped")
    assert figures["S3"][1:] == (3, "correct")
    assert figures["MNAC"][1:] == (2, "flipped")
    assert figures["diversity"] == (pytest.approx(0.5, abs=0.01), 1, "all")  # half of them differs
    assert figures["diversity, LPIPS"][0] == pytest.approx(1 / 3, abs=0.01)
    assert "FID" not in figures  # of two explanations there is none
    assert found["transfer"].network == "colours" and found["FS"].network == "means"


def test_a_share_has_wilsons_interval_and_plain_values_are_json():
    plain = by_name(score(cases(), Networks(classifier=colours())))["flip rate"].plain()
    assert plain["interval"] == pytest.approx([0.2077, 0.9385], abs=1e-4)  # 2 of 3
    assert json.loads(json.dumps(plain)) == plain


def test_a_judge_with_classes_in_another_order_is_asked_by_name():
    judge = colours(order=(1, 2, 0))
    with torch.no_grad():
        judge.network[0].scale.fill_(-1)  # it sees the darkest colour
    found = by_name(score(cases(), Networks(judge=judge)))
    names = judge.classes
    sees = [judge.probabilities(case.after[None]).argmax() for case in cases()]
    assert found["judge agreement"].figure.value == sum(names[k] == "green" for k in sees) / 4
    with pytest.raises(UserError, match="violet"):
        score([Case(id="a", before=RED, after=RED, target="violet")], Networks(judge=judge))


def test_sets_and_correlations_of_a_cohort():
    noise = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    many = [
        Case(id=str(k), before=0.6 * RED + 0.4 * x, after=0.6 * GREEN + 0.4 * x, target="green",
             flipped=k % 4 > 0)
        for k, x in enumerate(noise)
    ]  # fmt: skip
    network = colours()
    pixels = Extractor("pixels", lambda x: x.mean(dim=(2, 3)))
    found = by_name(score(many, Networks(extractor=pixels, attributes=[network]), query="green"))
    for name in ("FID", "KID", "sFID", "CD"):
        figure = found[name].figure
        assert found[name].cohort == "flipped" and figure.n == 18
        assert figure.interval[0] <= figure.value <= figure.interval[1]
    # Shifts by 0.6 in two channels; the sixth that is left out makes a small difference.
    assert found["FID"].figure.value == pytest.approx(0.72, abs=0.05)
    # The photos are all red, so that nothing goes with green; red goes whenever green comes.
    assert found["MNAC"].figure.value == 2
    with pytest.raises(UserError, match="query 'violet'.*red, green, blue"):
        score(many, Networks(attributes=[network]), query="violet")


def test_bad_cases_are_refused(tmp_path):
    with pytest.raises(UserError, match="cases is empty"):
        score([], Networks())
    with pytest.raises(UserError, match="'a' differ in size"):
        score([Case(id="a", before=RED, after=RED[:, :2])], Networks())
    with pytest.raises(UserError, match="of 'a'.*cannot be read"):
        score([Case(id="a", before=RED, after=tmp_path / "no.png")], Networks())


def record(number, flipped):
    return CounterfactualRecord(
        id=f"photo-{number}", source="sneaker", target="boot", input="same", flipped=flipped,
        target_confidence_before=0.1, target_confidence=0.7, judge_prediction="bag",
        pictures={"input_image": RED, "image": GREEN if flipped else BLUE,
                  "initial_image": RED, "mask": torch.ones(4, 4)},
        settings={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    for number, flipped in enumerate([True, True, False]):
        record(number, flipped).save(out)
    return out


def test_records_in_memory_and_in_a_folder_score_the_same(folder):
    kept = score(read_cases(folder)["counterfactual"], Networks())
    fresh = score(cases_of([record(n, f) for n, f in enumerate([True, True, False])]), Networks())
    assert [one.plain() for one in kept] == [one.plain() for one in fresh]
    values = {name: one.figure.value for name, one in by_name(kept).items()}
    assert values["confidence change"] == pytest.approx(0.6) and values["judge agreement"] == 0
    with pytest.raises(UserError, match="holds no results"):
        read_cases(folder / "images")


def test_the_layout_of_the_ace_scripts_there_and_back(folder, tmp_path):
    cases = read_cases(folder)["counterfactual"]
    write_ace(cases, tmp_path, "ours")
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert "Original/Correct/0000002.png" in files
    assert "Results/ours/CC/ICF/CF/0000002.png" in files and len(files) == 12
    back = read_ace(tmp_path)
    assert [(c.flipped, c.correct, c.target) for c in back] == [
        (True, True, "boot"), (True, True, "boot"), (False, True, "boot"),
    ]  # fmt: skip
    for one, other in zip(cases, back, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.read()[:2], other.read()[:2], strict=True))


def test_what_the_ace_scripts_write_is_read(tmp_path):
    """As their ImageSaver leaves it, with numbers for classes."""
    place = tmp_path / "Results/exp/explanation/IC/CCF"
    write_ace([Case(id="a", before=RED, after=GREEN, flipped=True, correct=False)], tmp_path,
              "exp/explanation")  # fmt: skip
    (place / "Info/0000000.txt").write_text(
        "label: 1.0\npred: 0.0\ntarget: 0.0\ncf pred: 0.0\nl_inf: 0.5\nl_1: 0.1"
    )
    (case,) = read_ace(tmp_path)
    assert (case.source, case.target, case.flipped, case.correct) == (1, 0, True, False)
    write_ace([case], tmp_path, "exp/pre-explanation")
    with pytest.raises(UserError, match="several.*--experiment exp/explanation"):
        read_ace(tmp_path)
    assert len(read_ace(tmp_path, "exp/pre-explanation")) == 1
    (tmp_path / "Original/Incorrect/0000000.png").unlink()
    with pytest.raises(UserError, match="no photo"):
        read_ace(tmp_path, "exp/explanation")
    with pytest.raises(UserError, match="not in the layout"):
        read_ace(tmp_path / "Original")


def test_exports_never_take_each_others_place(folder, tmp_path):
    cases = read_cases(folder)["counterfactual"]
    write_ace(cases, tmp_path, "ours")
    with pytest.raises(UserError, match="holds results already"):
        write_ace(cases, tmp_path, "ours")
    with pytest.raises(UserError, match="is another photo than"):
        write_ace([replace(cases[0], before=1 - cases[0].read()[0])], tmp_path, "others")
    again = [replace(case, flipped=None if n else case.flipped) for n, case in enumerate(cases)]
    write_ace(again, tmp_path / "known", "ours")
    assert len(read_ace(tmp_path / "known")) == 1, "what showed the target is no failure"
    write_ace([replace(case, flipped=None) for case in cases], tmp_path / "unknown", "ours")
    assert len(read_ace(tmp_path / "unknown")) == 3


@pytest.mark.parametrize("lost", ["input_image", "initial_image", "both"])
def test_what_lost_its_photo_is_no_case(tmp_path, lost):
    saved = record(0, True)
    saved.save(tmp_path)
    (before,) = read_records(tmp_path)
    for name in ("input_image", "initial_image"):
        if lost in (name, "both") and before.file(name) is not None:
            before.file(name).unlink()
    found = cases_of(read_records(tmp_path))
    compared = "input_image" if "input_image" in before.paths else "initial_image"
    assert len(found) == (lost not in (compared, "both"))


def test_several_tasks_are_exported_apart(folder, tmp_path, capsys):
    both = tmp_path / "both"
    shutil.copytree(folder, both)
    other = DisagreementRecord(id="d", pictures={"initial_image": RED, "image": GREEN})
    other.save(both)
    assert run("score", both, "--export-ace", tmp_path / "ace") == 0
    assert {p.name for p in (tmp_path / "ace").iterdir()} == {"counterfactual", "disagreement"}
    assert len(read_ace(tmp_path / "ace" / "counterfactual")) == 3


def test_the_command_scores_and_exports(folder, tmp_path, capsys):
    options = ["--judge", "embedded:judge", "--attributes", "embedded:background"]
    assert run("score", folder, *options, "--export-ace", tmp_path, "--json") == 0
    ours = json.loads(capsys.readouterr().out)
    assert (ours["task"], ours["n"]) == ("counterfactual", 3)
    assert run("score", tmp_path, "--layout", "ace", *options, "--json") == 0
    theirs = {one["name"]: one for one in json.loads(capsys.readouterr().out)["figures"]}
    for one in ours["figures"]:
        if one["name"] in theirs:
            assert one == theirs[one["name"]]
    assert theirs.keys() >= {"flip rate", "judge agreement", "L1", "S3", "MNAC"}
    assert run("score", folder) == 0
    assert "66.7% (20.8% to 93.9%, n = 3)" in capsys.readouterr().out
    assert run("score", tmp_path) == 2
    assert "holds no results" in capsys.readouterr().err


def test_inception_says_what_it_lacks(monkeypatch, no_network, tmp_path):
    with pytest.raises(MissingFiles, match="weights-inception.*inception:FILE"):
        load_extractor("inception")
    (tmp_path / "wrong.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="wrong.pth' does not hold its weights"):
        load_extractor(f"inception:{tmp_path / 'wrong.pth'}")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", False)
    with pytest.raises(MissingPackage, match=r"fastdigin\[metrics\]"):
        load_extractor("inception")


def test_inception_is_torch_fidelitys(monkeypatch, tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file, images = tmp_path / "weights.pth", torch.rand(1, 3, 32, 32)
    with monkeypatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url",
                      lambda *args, **options: {})  # fmt: skip
        patch.setattr(nn.Module, "load_state_dict", lambda *args, **options: None)
        theirs = FeatureExtractorInceptionV3("any", ["2048"])
    torch.save(theirs.state_dict(), file)
    name, features = load_extractor(f"inception:{file}")
    assert name == f"inception:{file}"
    assert torch.equal(features(images), theirs((255 * images).round().byte())[0])
