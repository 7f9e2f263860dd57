"""Many photos: each is opened when its turn comes, and fails alone."""

import shutil
from dataclasses import replace

import pytest
import torch

import fastdigin as fd
from fastdigin import embedded
from fastdigin.photos import ImageInput, collect, pixels
from fastdigin.tasks import neuron_counterfactual, photo_task, sources

PHOTOS = [p for p in embedded.photos() if p.garment == "boot"]


@pytest.fixture
def opened(monkeypatch):
    """The files that were opened as pictures, in order."""
    names = []
    original = pixels._read
    monkeypatch.setattr(
        pixels, "_read", lambda path, *how: names.append(path.name) or original(path, *how)
    )
    return names


@pytest.fixture
def data_set(tmp_path):
    """A hundred boots, of which only the first five can be read."""
    folder = tmp_path / "set" / "boot"
    folder.mkdir(parents=True)
    for n in range(100):
        shutil.copy(PHOTOS[n % len(PHOTOS)].path, folder / f"{n:03}.png") if n < 5 else (
            folder / f"{n:03}.png"
        ).write_bytes(b"broken")
    return collect([f"imagefolder:{tmp_path / 'set'}"])


@pytest.fixture
def unchanged(quick):
    """Settings: nothing is optimised."""
    return {"optimisation": replace(quick, iterations=0)}


def test_photos_are_opened_a_batch_at_a_time(call, engine, data_set, opened, unchanged):
    run = call(fd.counterfactuals, images=data_set, set=unchanged)
    assert len(opened) == 1  # is there anything to do at all?
    first = next(run)
    assert first.status == "done" and first.prompt == "a photograph of a boot"
    assert set(opened) <= {f"{n:03}.png" for n in range(2 * engine.slots + 2)}
    rest = list(run)
    assert len(rest) == 99 and sum(e.status == "done" for e in rest) == 4


def test_the_scale_of_a_neuron_is_read_off_some_photos(
    call, data_set, opened, unchanged, monkeypatch
):
    """Off as many as are asked for, the broken ones left out, and the same when a run resumes."""
    monkeypatch.setattr(neuron_counterfactual, "SCALING_IMAGES", 10)
    given = {"images": data_set, "neurons": 3, "dataset": (), "set": unchanged}
    whole = call(fd.neuron_counterfactuals, **given)
    assert set(opened) == {f"{n:03}.png" for n in range(10)}
    results = {e.id: e.history for e in (next(whole), next(whole))}
    again = next(call(fd.neuron_counterfactuals, skip={min(results)}, **given))
    assert again.history == results[again.id]


def test_questions_about_one_photo_share_its_inversion(call, unchanged, monkeypatch):
    """Each gets what it gets alone; other words are another inversion."""
    images, asked = [], []
    original = sources.invert

    def counted(model, photos, prompts, *arguments, **options):
        images.extend(photos)
        return original(model, photos, prompts, *arguments, **options)

    monkeypatch.setattr(sources, "invert", counted)
    for n, (photo, target, prompt) in enumerate(
        [(0, "bag", None), (0, "tshirt", None), (1, "bag", None), (0, "bag", "a {} on grass")]
    ):
        path = PHOTOS[photo].path
        asked.append(ImageInput(str(n), path, prompt, source="boot", target=target))
    given = {"targets": None, "set": unchanged}
    together = list(call(fd.counterfactuals, images=asked, **given))
    assert len(images) == 3
    assert [record.status for record in together] == ["done"] * len(asked)
    second = next(record for record in together if record.id.startswith("1"))
    (alone,) = call(fd.counterfactuals, images=asked[1:2], **given)
    # A batch of one rounds otherwise, and the seed of crops follows from the place in the run.
    assert second.history[0] == pytest.approx(alone.history[0], rel=1e-4)
    assert len(images) == 4


GUILTY = "a photo of a boot on the moon"


def not_finite(monkeypatch):
    """The automatic mask of the one photo that has none of its own."""
    monkeypatch.setattr(sources, "attention_mask", lambda *_: torch.full((64, 64), torch.nan))


def inversion(monkeypatch):
    original = sources.invert

    def refusing(model, images, prompts, *arguments, **options):
        if GUILTY in prompts:
            raise RuntimeError("singular")
        return original(model, images, prompts, *arguments, **options)

    monkeypatch.setattr(sources, "invert", refusing)


def words(monkeypatch):
    """What makes the jobs, after the batch was inverted."""
    original = photo_task.token_mapping

    def refusing(model, source, target):
        if source == GUILTY:
            raise IndexError("no such token")
        return original(model, source, target)

    monkeypatch.setattr(photo_task, "token_mapping", refusing)


@pytest.mark.parametrize("fault", [not_finite, inversion, words])
def test_what_cannot_be_prepared_fails_alone(call, quick, monkeypatch, fault):
    """One batch of questions; the others get the bits that they get beside a good one."""
    mask = torch.ones(64, 64)
    mask[:16] = 0
    asked = [
        ImageInput(f"{n}", photo.path, source="boot", target="bag", mask=mask)
        for n, photo in enumerate(PHOTOS[:3])
    ]
    asked[1] = replace(asked[1], prompt=GUILTY, mask=None)
    once = {"optimisation": replace(quick, iterations=1)}

    def run():
        return {record.id[0]: record for record in call(fd.counterfactuals, images=asked, set=once)}

    expected = run()
    assert {record.status for record in expected.values()} == {"done"}
    fault(monkeypatch)
    found = run()
    assert {id: record.status for id, record in found.items()} == {
        "0": "done", "1": "failed", "2": "done",
    }  # fmt: skip
    for id in ("0", "2"):
        assert found[id].history == expected[id].history
