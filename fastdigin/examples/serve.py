"""Counterfactuals as a service of Ray Serve: photos come as bytes, pictures go as bytes.

Needs pip install "ray[serve]". Requests share one engine's slots. Nothing of a request names a
file, here or anywhere.

    python -m fastdigin.examples.serve --port 8000 --token SECRET
    curl -H "Authorization: Bearer SECRET" --data-binary @shoe.png \\
        "localhost:8000/?target=boot" > answer.json
"""

import argparse
import asyncio
import base64
import contextlib
import hmac
import io
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue

from PIL import Image

import fastdigin as fd
from fastdigin.photos import as_inputs

LARGEST = 8 * 2**20  # bytes of a request
PIXELS = 16 * 2**20


class Refused(Exception):
    """A request that is not served. status: of HTTP."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class Explainer:
    """One engine in a thread of its own; requests of any number of threads share its slots.

    All that computes is done there, loading too: see fastdigin/scale/worker.py.
    """

    def __init__(self, classifier: str, token: str | None, settings=None):
        self._token = token
        self._settings = settings
        self._asked = SimpleQueue()  # (photo, target, where the record is waited for)
        self._answers = {}  # id of a job -> (its task, where the record is waited for)
        loaded = Future()
        threading.Thread(target=self._work, args=(classifier, loaded), daemon=True).start()
        loaded.result()

    async def explain(self, photo: bytes, target: str, authorization: str = "") -> dict:
        """The record of a photo's counterfactual, its picture as base64 PNG."""
        given = authorization.removeprefix("Bearer ")
        if self._token is not None and not hmac.compare_digest(
            given.encode(), self._token.encode()
        ):
            raise Refused(401, "the token is missing or wrong")
        answer = asyncio.get_running_loop().create_future()
        self._asked.put((read_photo(photo), target, answer))
        record = await answer
        picture = io.BytesIO()
        if record.image is not None:
            fd.to_pil(record.image).save(picture, "PNG")
        return record.to_dict() | {"picture": base64.b64encode(picture.getvalue()).decode()}

    def _work(self, classifier: str, loaded: Future) -> None:
        try:
            self._engine = fd.Engine(fd.LatentDiffusion.from_pretrained("embedded"))
            self._classifier = fd.Classifier.load(classifier)
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        while True:
            while not (self._engine.busy and self._asked.empty()):
                self._submit(*self._asked.get())
            for result in self._engine.step():
                task, answer = self._answers.pop(result.id)
                _tell(answer, answer.set_result, task.record(result))

    def _submit(self, picture: Image.Image, target: str, answer: asyncio.Future) -> None:
        try:
            (item,) = as_inputs([picture])
            item = replace(item, id=uuid.uuid4().hex, target=target)
            task = fd.Counterfactuals(
                engine=self._engine, classifier=self._classifier, photos=[item],
                settings=self._settings,
            )  # fmt: skip
            (request,) = task.requests
            stages = task.jobs([task.check(request)], self._engine.slots)
        except Exception as error:  # of this request alone
            known = isinstance(error, fd.UserError)
            _tell(answer, answer.set_exception, Refused(400, str(error)) if known else error)
            return
        self._answers[request.id] = task, answer
        self._engine.submit(stages)


def _tell(answer: asyncio.Future, how: Callable, what: fd.Record | Exception) -> None:
    """Answers whoever waits in another thread, unless they have gone."""

    def tell() -> None:
        if not answer.done():
            how(what)

    with contextlib.suppress(RuntimeError):  # their loop is closed
        answer.get_loop().call_soon_threadsafe(tell)


def read_photo(photo: bytes) -> Image.Image:
    """A photo of a request, in one of two formats and no larger than PIXELS."""
    if len(photo) > LARGEST:
        raise Refused(413, f"at most {LARGEST:,} bytes are read")
    try:
        image = Image.open(io.BytesIO(photo), formats=("PNG", "JPEG"))
        if image.width * image.height > PIXELS:
            raise Refused(413, f"at most {PIXELS:,} pixels are read")
        image.load()
    except Refused:
        raise
    except Exception:  # decoders of damaged files raise whatever they stumble over
        raise Refused(400, "the body is no PNG or JPEG picture") from None
    return image


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classifier", default="embedded:robust")
    parser.add_argument("--host", default="127.0.0.1", help="(default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--token", help="that requests must bring (default: none)")
    options = parser.parse_args()

    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    @serve.deployment(max_ongoing_requests=64, max_queued_requests=256)
    class Service(Explainer):
        async def __call__(self, request: Request) -> JSONResponse:
            try:
                body = b""
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > LARGEST:
                        raise Refused(413, f"at most {LARGEST:,} bytes are read")
                authorization = request.headers.get("authorization", "")
                target = request.query_params.get("target", "")
                return JSONResponse(await self.explain(body, target, authorization))
            except Refused as refused:
                return JSONResponse({"error": str(refused)}, refused.status)

    serve.start(http_options={"host": options.host, "port": options.port})
    serve.run(Service.bind(options.classifier, options.token), blocking=True)


if __name__ == "__main__":
    main()
