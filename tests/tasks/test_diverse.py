"""Different counterfactuals of one photo."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
import torch
from cli_commands import CF, QUICK, SNEAKER, records, run

import fastdigin as fd
from fastdigin.engine.job import Candidate, Job
from fastdigin.errors import UserError
from fastdigin.metrics import Networks, cases_of, load_extractor, score
from fastdigin.tasks.diverse import NOISE, Repulsion, other_start


def test_repulsion_is_the_mean_cosine_of_changes_within_the_mask():
    photo, mask = torch.full((3, 2, 2), 0.5), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    up, left = photo.clone(), photo.clone()
    up[:, 0] += 0.2
    left[:, :, 0] -= 0.1
    loss = Repulsion(photo, torch.stack([up, left]), mask)
    # Up changes two pixels of the mask, left one of them, the other way.
    assert loss(Candidate(up, None)) == pytest.approx((1 - 0.5**0.5) / 2, abs=1e-6)
    below = photo.clone()
    below[:, 1] += 0.3
    assert loss(Candidate(below, None)) == 0, "what lies outside of the mask does not count"


def test_other_starts_have_other_noise_within_the_mask_alone():
    generator = torch.Generator().manual_seed(0)
    latents, mask = torch.randn(4, 64, 64, generator=generator), torch.zeros(64, 64)
    mask[:, :32] = 1
    job = Job("a", latents, torch.zeros(1, 1), None, [], seed=5)
    assert other_start(job, mask, 0) is job
    first, second = (other_start(job, mask, n) for n in (1, 2))
    assert len({job.seed, first.seed, second.seed}) == 3
    for other in (first, second):
        assert torch.equal(other.latents[..., 32:], latents[..., 32:])
        inside, before = other.latents[..., :32].flatten(), latents[..., :32].flatten()
        assert float(inside.std()) == pytest.approx(1, abs=0.03)
        correlation = torch.corrcoef(torch.stack([inside, before]))[0, 1]
        assert float(correlation) == pytest.approx((1 - NOISE**2) ** 0.5, abs=0.03)
        assert not torch.equal(inside, before)
    assert torch.equal(first.latents, other_start(job, mask, 1).latents)


def test_variants_differ_and_do_not_depend_on_their_number(call):
    three = sorted(call(fd.counterfactuals, diverse=3), key=lambda record: record.variant)
    assert [record.id for record in three] == [
        f"{SNEAKER.id}-to-bag", f"{SNEAKER.id}-to-bag-variant-2", f"{SNEAKER.id}-to-bag-variant-3",
    ]  # fmt: skip
    assert "repulsion" in three[1].history[0] and "repulsion" not in three[0].history[0]
    for a, b in combinations(three, 2):
        assert float((a.image - b.image).abs().mean()) > 0.002
    two = sorted(call(fd.counterfactuals, diverse=2), key=lambda record: record.variant)
    for before, now in zip(two, three, strict=False):
        assert torch.equal(before.image, now.image)
    scores = score(cases_of(three), Networks(extractor=load_extractor("embedded:judge")))
    (diversity,) = (one.figure for one in scores if one.figure.name == "diversity")
    assert diversity.n == 1 and 0 < diversity.value < 2
    with pytest.raises(UserError, match="diverse must be at least 1 and at most 1000000, got 0"):
        call(fd.counterfactuals, diverse=0)


def test_the_command_shows_them_in_a_row(tmp_path, capsys):
    asked = [SNEAKER.path, "--target", "bag", "--diverse", "2", "--out", tmp_path]
    assert run(*CF, *asked, *QUICK, "--null-text-steps", "1", "--slots", "2") == 0
    assert sorted(record["variant"] for record in records(tmp_path)) == [1, 2]
    page = (tmp_path / "report.html").read_text()
    row = page.split('class="pictures row"')[1]
    assert row.split("</div>")[0].count("<figure>") == 3
    assert "<span>Diversity</span>" in page
    assert re.search(r"^Diversity +0\.0\d+ ", capsys.readouterr().out, re.MULTILINE)
