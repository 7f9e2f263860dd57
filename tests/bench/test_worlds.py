"""The bench of worlds: its figures by hand, and that it goes on where it stopped."""

import json

from fastdigin import embedded
from fastdigin.audit import Audit, Explanation
from fastdigin.embedded.scenes import Shortcut
from fastdigin.results.pictures import read_picture
from fastdigin_bench import worlds

GRASS = {"garment": "bag", "attribute": "background", "feature": "grass", "strength": 0.9}


def line(feature, confidence, attribute="background"):
    return {
        "kind": "shortcut", "class": "bag", "attribute": attribute, "feature": feature,
        "effect": 0.4, "evidence": {}, "confidence": confidence,
    }  # fmt: skip


ROWS = {
    "world-000": {
        "shortcuts": [GRASS], "candidates": [line("grass", 0.9), line("red", 0.4, "colour")],
        "correlations": [line("brick", 0.8)], "processor_seconds": 10.0,
        "faithful": [True, True, False, True],
    },
    "clean-000": {
        "shortcuts": [], "candidates": [], "correlations": [line("plain", 0.7)],
        "processor_seconds": 30.0, "faithful": [],
    },
}  # fmt: skip


def test_figures_by_hand():
    values = {f.name: f.value for f in worlds.figures_of(ROWS)}
    assert values == {
        "faithfulness": 0.75, "discovery": 1, "worlds recovered": 1, "false alarms": 0,
        "extra findings": 0,
        "correlations: discovery": 0, "correlations: worlds recovered": 0,
        "correlations: false alarms": 1, "correlations: extra findings": 1,
        "processor seconds of an audit": 20,
    }  # fmt: skip


def test_faithful_explanations_bring_the_planted_feature_alone():
    """Photos stand for explanations: bags of one colour, on other backgrounds."""
    photos = {(p.garment, p.colour, p.background): p for p in embedded.photos()}

    def made(before, after):
        images = (read_picture(photos[key].path) for key in (before, after))
        return Explanation("a", "bag", *images, before[2], after[2], 0.1, 0.9)

    red, blue = ("bag", "red"), ("bag", "blue")
    pairs = [
        ((*red, "plain"), (*red, "grass")),
        ((*red, "plain"), (*blue, "grass")),
        ((*red, "plain"), ("boot", "red", "grass")),
        ((*red, "plain"), (*red, "brick")),
        ((*red, "grass"), (*red, "grass")),  # there was nothing to bring
    ]
    told = {("bag", "background"): [made(*pair) for pair in pairs]}
    found = Audit("c", 9, ("bag",), told, (), (), {}, 1.0)
    planted = Shortcut("bag", "background", "grass", 0.9)
    assert worlds.faithful_of(found, planted) == [True, False, False, False]
    assert worlds.faithful_of(found, Shortcut("boot", "background", "grass", 0.9)) == []


def test_a_world_in_a_line():
    first, second = (worlds.line_of(*item) for item in ROWS.items())
    assert first == "world-000: planted bag grass 90%; found bag grass +40; 10.0 s"
    assert second == "clean-000: planted nothing; found nothing; 30.0 s"


def test_what_is_done_is_not_done_again(tmp_path, capsys):
    """Neither data nor engine is loaded where all worlds are trained and audited."""
    for name, row in ROWS.items():
        (tmp_path / name).mkdir()
        world = {"shortcuts": row["shortcuts"]}
        (tmp_path / name / "world.json").write_text(json.dumps(world))
        (tmp_path / name / worlds.ROW).write_text(json.dumps(row))
    results = tmp_path / "results"
    arguments = ["--planted", "1", "--clean", "1", "--data", "nowhere", "--out", str(tmp_path)]
    assert worlds.main([*arguments, "--results", str(results)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((results / "worlds.json").read_text())
    assert list(last["worlds"]) == ["world-000", "clean-000"]
    assert last["figures"][1]["value"] == 1
