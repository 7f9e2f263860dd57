"""What several tests of the benches share."""

import pytest
from tiny import build_classifier, make_injection, make_job, make_source

from fastdigin.objectives import ClassConfidence, Cutouts


@pytest.fixture
def edited_jobs(tiny):
    """Two jobs of one update whose source's attention is injected."""
    source = make_source(tiny.model, "a photo of a red sneaker", 4)
    injection = make_injection(tiny.model, source, "a photo of a cat", (1.0, 0.5, 0.0, 0.0))
    loss = ClassConfidence(build_classifier(), 1, cutouts=Cutouts(2))
    return [
        make_job(tiny.model, f"{n}", seed=n, losses=[loss], prompt="a photo of a cat",
                 injection=injection, iterations=1)
        for n in range(2)
    ]  # fmt: skip
