"""What the tasks that edit photos share: their settings, and the stage that prepares a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

from torch import Tensor

from fastdigin.configuration import setting
from fastdigin.editing.inversion import InversionSettings, Method, passes_per_image
from fastdigin.editing.masks import blending
from fastdigin.editing.prompts import token_mapping
from fastdigin.editing.schedules import Schedule, parse_schedule, schedule_weights
from fastdigin.engine.job import Job, Settings
from fastdigin.engine.progress import EVALUATION, iteration_passes
from fastdigin.engine.queue import Search, Stage
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput
from fastdigin.tasks.regularisers import check_regularisers, losses_of
from fastdigin.tasks.sources import (
    NO_TOOLS,
    MaskEdge,
    PhotoTools,
    Source,
    SourcePhoto,
    edited_start,
    make_sources,
    read_photo,
)
from fastdigin.tasks.task import Preparation, Request, Task, given

MOST_QUESTIONS = 4
"""For each slot, in one preparation: what is prepared is held until it is optimised."""


@dataclass(frozen=True)
class PhotoSettings:
    """Settings of all tasks that start from a photo.

    optimisation: of the engine; its steps and guidance serve inversion as well. inversion_method,
    null_text_steps: as in :class:`fastdigin.editing.inversion.InversionSettings`; the paper has
    null-text optimisation, and direct inversion is as good in less time (bench/NOTES.md).
    """

    optimisation: Settings = setting(Settings, "the engine's settings", flat=True)
    inversion_method: Method = setting(
        "direct",
        "how photos are inverted: direct, which keeps what each step lacks, or null-text "
        "optimisation, the paper's, or negative-prompt, which reproduces photos less well",
        flag="inversion",
    )
    null_text_steps: int = setting(10, "updates of null-text optimisation per step", least=0)
    self_injection: Schedule | None = setting(
        None,
        "fraction of the steps whose small self-attention layers are the photo's, which keeps its "
        "layout, or a schedule (default: none)",
        least=0, most=1, parse=parse_schedule,
    )  # fmt: skip

    def inversion(self) -> InversionSettings:
        return InversionSettings(
            steps=self.optimisation.steps,
            guidance_scale=self.optimisation.guidance_scale,
            null_text_steps=self.null_text_steps,
            method=self.inversion_method,
        )


@dataclass(frozen=True)
class PhotoRequest(Request):
    """A photo that shall be edited."""

    item: ImageInput

    @cached_property
    def fingerprint(self) -> str | None:
        """Tells whether an id still means the same photo; None where its file cannot be read."""
        return self.item.fingerprint()


@dataclass(frozen=True)
class CheckedPhoto:
    """A request whose photo was read and found to be good."""

    request: PhotoRequest
    photo: SourcePhoto


@dataclass(frozen=True)
class Edit:
    """What a job of a photo was made from: its ``info``. prompt: the edited one.

    injected, blended: for which steps, and how strongly.
    """

    request: PhotoRequest
    source: Source
    prompt: str
    injected: Schedule
    blended: Schedule


@dataclass(kw_only=True)
class PhotoTask(Task):
    """A task that edits photos."""

    search_by: ClassVar[str] = "total"
    """The loss that decides which candidate is the start."""

    photos: list[ImageInput] = given("the photos", kind="photos", affects=False)
    classifier: Classifier = given("whose answer is explained", kind="classifier", metavar="C")
    embedding: Classifier | None = given(
        "whose features the regularisers features-cosine and features-l2 compare",
        kind="embedding", default=None, metavar="E", optimised="activations",
    )  # fmt: skip
    tools: PhotoTools = given("what helps to prepare photos", kind="tools", default=NO_TOOLS)

    def prepare(self) -> None:
        check_regularisers(self.settings.regularisers, self.model.device, self.embedding)

    def check(self, request: PhotoRequest) -> CheckedPhoto:
        return CheckedPhoto(request, read_photo(self.model, self.classifier, request.item))

    def fills(self, checked: Sequence[CheckedPhoto], width: int) -> bool:
        """As many photos as slots: questions about one photo share its inversion."""
        photos = {one.photo.content for one in checked}
        return len(photos) == width or len(checked) == MOST_QUESTIONS * width

    def jobs(self, checked: Sequence[CheckedPhoto], width: int) -> list[Stage]:
        """A stage that prepares ``width`` photos at a time."""
        ids, work = [one.request.id for one in checked], (checked, width)
        parts = partial(self._parts, *work)
        return [Preparation(ids, partial(self._searches, *work), parts)]

    def _parts(
        self, checked: Sequence[CheckedPhoto], width: int, out_of_memory: bool
    ) -> list[Stage]:
        if (width if out_of_memory else len(checked)) == 1:
            return []
        if not out_of_memory:
            return [stage for one in checked for stage in self.jobs([one], width)]
        half = (width + 1) // 2
        parts = [checked[start : start + half] for start in range(0, len(checked), half)]
        return [stage for part in parts for stage in self.jobs(part, half)]

    def preparation(self, requests: Sequence[Request]) -> float:
        return len(requests) * (self._inversion_work + self.tries * EVALUATION)

    @property
    def tries(self) -> int:
        """How many candidates the search will probably evaluate for a photo."""
        return 0

    @property
    def _inversion_work(self) -> float:
        """Of a photo, in iterations; for progress only."""
        settings = self.settings.inversion()
        return passes_per_image(self.model, settings) / iteration_passes(self.model, settings)

    def _searches(
        self, checked: Sequence[CheckedPhoto], width: int, advance: Callable[[float], None]
    ) -> list[Search]:
        """Inverts the photos of a batch; of each one's candidates the search keeps the best."""
        sources = make_sources(
            self.engine,
            [one.photo for one in checked],
            self.settings.inversion(),
            self.injected,
            self._self_injected,
            tools=self.tools,
            batch=width,
            mask_edge=self.mask_edge,
            on_step=lambda photos: advance(self._inversion_work * photos),
        )
        pairs = zip(checked, sources, strict=True)
        groups = [self.candidates(one.request, source) for one, source in pairs]
        return [Search(groups, by=self.search_by, tries=self.tries)]

    @property
    @abstractmethod
    def injected(self) -> Sequence[Schedule]:
        """By which the source's cross-attention may be injected."""

    @property
    def _self_injected(self) -> Sequence[Schedule]:
        chosen = self.settings.self_injection
        return () if chosen is None else (chosen,)

    def fraction(self, schedule: Schedule) -> float:
        """A schedule as a share of the steps, those of partial weight in part; for records."""
        if isinstance(schedule, (int, float)):
            return schedule
        weights = schedule_weights(schedule, self.settings.optimisation.steps)
        return sum(weights) / len(weights)

    @property
    def mask_edge(self) -> MaskEdge:
        """What becomes of automatic masks."""
        return "soften"

    def edited_job(
        self, edit: Edit, kept_mask: Tensor, loss: Any, settings: Settings, monitors: dict[str, Any]
    ) -> Job:
        """A job that starts from a photo's inversion with another prompt.

        kept_mask: (h, w), 1 where blending takes the photo. loss: joined by the regularisers.
        """
        model, source = self.model, edit.source
        injection = blend = self_injection = None
        if self.fraction(edit.injected):
            mapping = token_mapping(model, source.photo.prompt, edit.prompt)
            mapping = mapping.to(model.device, model.dtype)
            injection = source.attention.injection(mapping, edit.injected, settings.steps)
        for schedule in filter(self.fraction, self._self_injected):
            self_injection = source.attention.self_injection(schedule, settings.steps)
        if self.fraction(edit.blended):
            blend = blending(kept_mask, source.inversion.trajectory, edit.blended)
        return Job(
            id=edit.request.id,
            **edited_start(model, edit.prompt, source.inversion),
            losses=[loss, *losses_of(self.settings.regularisers, source, self.embedding)],
            settings=settings,
            seed=self.seed,
            injection=injection,
            self_injection=self_injection,
            blending=blend,
            monitors=monitors,
            info=edit,
        )

    @abstractmethod
    def candidates(self, request: PhotoRequest, source: Source) -> list[Job]:
        """The jobs of which the best one before any optimisation is the start."""
