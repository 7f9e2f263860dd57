"""The service of the examples, without HTTP: requests share slots, and bad ones are refused."""

from __future__ import annotations

import asyncio
import base64
import io
from dataclasses import replace

import pytest
from PIL import Image

import fastdigin as fd
from fastdigin import embedded
from fastdigin.examples.serve import LARGEST, Explainer, Refused
from fastdigin.tasks import photo_task

PHOTO = embedded.photos()[5]


@pytest.fixture(scope="module")
def explainer():
    whole = fd.Counterfactuals.embedded_settings
    settings = replace(
        whole, optimisation=replace(whole.optimisation, steps=2, iterations=1), null_text_steps=1,
        injection_fractions=(0.3,), blending_fractions=(0.0,),
    )  # fmt: skip
    return Explainer("embedded:robust", "secret", settings)


def photo_bytes(format="PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.open(PHOTO.path).convert("RGB").save(stream, format, **options)
    return stream.getvalue()


def ask(explainer):
    call = explainer.explain(photo_bytes(), "bag", "Bearer secret")
    return asyncio.run(asyncio.wait_for(call, 300))


def test_requests_at_once_each_get_their_own_answer(explainer):
    async def both():
        calls = [
            explainer.explain(photo_bytes(), target, "Bearer secret") for target in ("boot", "bag")
        ]
        return await asyncio.gather(*calls)

    boot, bag = asyncio.run(both())
    assert (boot["status"], boot["target"], bag["target"]) == ("done", "boot", "bag")
    for answer in (boot, bag):
        picture = Image.open(io.BytesIO(base64.b64decode(answer["picture"])))
        assert picture.size == Image.open(PHOTO.path).size
    assert boot["picture"] != bag["picture"]


@pytest.mark.parametrize(
    ("photo", "target", "token", "status"),
    [
        (b"no picture", "boot", "secret", 400),
        (photo_bytes("GIF"), "boot", "secret", 400),
        (photo_bytes()[:200], "boot", "secret", 400),
        (photo_bytes(exif=b"letters"), "boot", "secret", 400),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x01IHDR\0\0\0\0\0", "boot", "secret", 400),
        (photo_bytes("JPEG")[:300], "boot", "secret", 400),
        (b"x" * (LARGEST + 1), "boot", "secret", 413),
        (photo_bytes(), "no such class", "secret", 400),
        (photo_bytes(), "", "secret", 400),
        (photo_bytes(), "boot", "", 401),
        (photo_bytes(), "boot", "Secret", 401),
        (b"/etc/hostname", "boot", "secret", 400),
    ],
)
def test_what_is_refused(explainer, photo, target, token, status):
    with pytest.raises(Refused) as refused:
        asyncio.run(explainer.explain(photo, target, f"Bearer {token}"))
    assert refused.value.status == status


@pytest.mark.parametrize("broken", ["make_sources", "edited_start", "explain"])
def test_a_request_that_cannot_be_done_is_answered_and_the_next_one_is_done(
    explainer, monkeypatch, broken
):
    """The thread of the engine goes on: it once died where a photo could not be prepared."""

    def refuse(*arguments, **options):
        raise RuntimeError("no luck")

    place = fd.Counterfactuals if broken == "explain" else photo_task
    with monkeypatch.context() as patch:
        patch.setattr(place, broken, refuse)
        answer = ask(explainer)
    assert (answer["status"], answer["picture"]) == ("failed", "") and "no luck" in answer["error"]
    assert ask(explainer)["status"] == "done"


def test_a_request_that_never_becomes_a_job_ends_alone(explainer, monkeypatch):
    def refuse(self, checked, width):
        raise RuntimeError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(fd.Counterfactuals, "jobs", refuse)
        with pytest.raises(RuntimeError, match="no luck"):
            ask(explainer)
    assert ask(explainer)["status"] == "done"
