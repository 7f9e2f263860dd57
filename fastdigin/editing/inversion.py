"""Inversion of real images: DDIM inversion, then null-text optimisation, for many at once.

DDIM inversion (Dhariwal & Nichol 2021) gives a noise latent whose unguided sample is the image.
With guidance the sample drifts; null-text optimisation (Mokady et al. 2023, algorithm 1) tunes
the null embedding of each step until the guided step lands on the inverted trajectory again.
Negative-prompt inversion (Miyake et al. 2023, arXiv 2305.16807) is its fast relative: with the
prompt's own embedding as the null text, guidance cancels and the sample is the unguided one.
Direct inversion (Ju et al. 2023, arXiv 2310.01506) optimises nothing: what the guided step lacks
to land on the inverted trajectory is kept and added whenever the step is taken.

Solvers that add noise have no DDIM inversion: the noise is found instead (noise_inversion).
Few-step models with a deterministic solver (SD-Turbo) are inverted with it like the others; steps
that large make rough reconstructions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fastdigin import hardware
from fastdigin.engine.progress import Told, ToldSteps
from fastdigin.engine.sampler import Step, StepFunctions, initial_state, latents_of, solver_step
from fastdigin.engine.steps import whole_blocks
from fastdigin.errors import UserError, check_choice
from fastdigin.models.ddim import DDIMTable
from fastdigin.models.diffusion import LatentDiffusion

Method = Literal["null-text", "direct", "negative-prompt"]
_SEED = 0  # the same noise for every image: an inversion depends on nothing beside it


@dataclass(frozen=True)
class InversionSettings:
    """How images are inverted.

    Args:
        steps, guidance_scale: those of the sampler that shall reproduce the image.
        null_text_steps: the most updates per timestep and image, at least 0.
        learning_rate: of Adam; it falls linearly to half over the timesteps.
        tolerance: an image goes on to its next timestep as soon as the mean squared distance to
            the inverted trajectory is below tolerance * (1 + 2 i) at step i.
        method: "null-text" optimises; "direct" keeps what each step lacks, by one more pass a
            step; "negative-prompt" takes the prompt as null text. What concerns updates has no
            meaning for the last two. Where there is no null branch, or the solver adds noise,
            nothing is optimised; where it adds noise all three are the same but for the null text.

    Raises:
        UserError: a negative null_text_steps, or an unknown method.

    Example:
        >>> fd.InversionSettings(steps=20, guidance_scale=3.0, method="negative-prompt")

    Source: Mokady et al. 2023, section 3 and its code's tolerance.
    """

    steps: int = 20
    guidance_scale: float = 3.0
    null_text_steps: int = 10
    learning_rate: float = 0.01
    tolerance: float = 1e-5
    method: Method = "null-text"

    def __post_init__(self) -> None:
        if self.null_text_steps < 0:
            raise UserError(f"null_text_steps must be at least 0, got {self.null_text_steps}")
        check_choice("method of inversion", self.method, get_args(Method))


@dataclass(frozen=True)
class Inversion:
    """What reproduces one image.

    Args:
        prompt: in words.
        trajectory: (T + 1, C, h, w), the reconstruction's latent at the input of each step, and the
            last z; trajectory[0] is z_T.
        conditioning: (L, D) of the prompt.
        null_text: (T, L, D), or None without a null branch.
        encoded: (C, h, w), the image's own latent, which the reconstruction aims at.
        vector: (E,), see ``LatentDiffusion.vector``, of the prompt; None for models that take none.
        null_pooled: (P,), the pooled embedding of the null text, or None likewise.
        noise: (T, C, h, w) for a Job, None where the solver adds none.
        offsets: (T, C, h, w) for a Job, None but for direct inversion.

    Example:
        >>> reconstruction = model.decode(inversion.trajectory[-1:])
    """

    prompt: str
    trajectory: Tensor
    conditioning: Tensor
    null_text: Tensor | None
    encoded: Tensor
    vector: Tensor | None = None
    null_pooled: Tensor | None = None
    noise: Tensor | None = None
    offsets: Tensor | None = None


def invert(
    model: LatentDiffusion,
    images: Sequence[Tensor],
    prompts: Sequence[str],
    settings: InversionSettings,
    *,
    batch: int,
    functions: StepFunctions | None = None,
    on_step: Callable[[float], None] | None = None,
) -> list[Inversion]:
    """Finds what reproduces each image.

    A last batch that is not full is padded, so that an image's inversion does not depend on how
    many others there are.

    Args:
        model: shall reproduce the images.
        images: (3, H, W) in [0, 1], at the model's size.
        prompts: what each image shows, in words.
        settings: how they are inverted.
        batch: images that are inverted side by side.
        functions: of the model's steps, compiled perhaps (Engine.functions).
        on_step: called with the number of images' worth of work just done.

    Returns:
        One inversion an image, in their order.

    Raises:
        UserError: more steps than the model was trained for, or a prompt that is too long.

    Example:
        >>> (found,) = invert(model, [photo], ["a photo of a cat"], InversionSettings(), batch=1)
        >>> job = Job("again", found.trajectory[0], found.conditioning, found.null_text, losses)
    """
    functions = functions or StepFunctions(model)
    inversions = []
    for start in range(0, len(images), batch):
        part = list(zip(images, prompts, strict=True))[start : start + batch]
        rows, words = zip(*whole_blocks(part, batch), strict=True)
        found = _invert_batch(functions, rows, words, settings, len(part), on_step)
        inversions += found[: len(part)]
    return inversions


def passes_per_image(model: LatentDiffusion, settings: InversionSettings) -> int:
    """How many passes of the U-Net an inversion takes for one image (engine/progress.py)."""
    branches = 2 if model.has_null_branch(settings.guidance_scale) else 1
    if model.ddim_table(settings.steps).noise is not None:
        return settings.steps * branches
    if settings.method == "null-text" and branches == 2:
        return settings.steps * (3 + 2 * settings.null_text_steps)
    return settings.steps * (1 + (branches if settings.method == "direct" else 1))


@dataclass(frozen=True)
class _Texts:
    """A batch's prompts and null texts as the U-Net reads them.

    cond: (B, L, D). null: (B, L, D) to start from, or None without a null branch. vector,
    null_vector: (B, E), or None. null_pooled: (B, P), or None. guidance: (B,).
    """

    cond: Tensor
    null: Tensor | None
    vector: Tensor | None
    null_vector: Tensor | None
    null_pooled: Tensor | None
    guidance: Tensor

    def step(self, table: DDIMTable, i: int, z: Tensor) -> Step:
        """Step i of all samples, guided where there is a null branch."""
        step = _step(table, i, z, table.step[i].to(z), self.vector)
        if self.null is None:
            return step
        vector = None if self.vector is None else torch.cat([self.null_vector, self.vector])
        return replace(step, guidance=self.guidance, vector=vector)


def _invert_batch(functions, images, prompts, settings, real, on_step) -> list[Inversion]:
    model = functions.model
    told = Told(on_step or (lambda _: None), real, passes_per_image(model, settings))
    functions = ToldSteps(functions, told.add)
    encoded = torch.stack([model.encode_image(image) for image in images]).to(model.state_dtype)
    texts = _encode_texts(model, prompts, settings)
    optimised = texts.null is not None and settings.method == "null-text"
    nulls, noise, offsets = _each_step(texts.null, settings.steps), None, None
    if model.ddim_table(settings.steps).noise is not None:
        trajectory, noise = noise_inversion(functions, encoded, texts, settings.steps)
    else:
        upward = ddim_inversion(functions, encoded, texts.cond, settings.steps, texts.vector)
        if optimised:
            trajectory, nulls = null_text_optimisation(functions, upward, texts, settings)
        elif settings.method == "direct":
            offsets = lacking_outputs(functions, upward, texts)
            trajectory = upward
        else:
            trajectory = _unguided_trajectory(functions, upward[:, 0], texts, settings.steps)
    told.end()
    return [
        Inversion(
            prompt=prompt,
            trajectory=trajectory[i],
            conditioning=texts.cond[i],
            null_text=_row(nulls, i),
            encoded=encoded[i],
            vector=_row(texts.vector, i),
            null_pooled=_row(texts.null_pooled, i),
            noise=_row(noise, i),
            offsets=_row(offsets, i),
        )
        for i, prompt in enumerate(prompts)
    ]


def _encode_texts(model, prompts: Sequence[str], settings: InversionSettings) -> _Texts:
    cond = model.encode_prompts(prompts).to(model.state_dtype)
    nulls = prompts if settings.method == "negative-prompt" else [""] * len(prompts)
    guidance = torch.full((len(prompts),), float(settings.guidance_scale)).to(cond)
    pooled, null_pooled = model.encode_pooled(prompts), model.encode_pooled(nulls)
    guided = model.has_null_branch(settings.guidance_scale)
    return _Texts(
        cond,
        model.encode_prompts(nulls).to(cond) if guided else None,
        model.vector(pooled, guidance),
        model.vector(null_pooled, guidance),
        None if null_pooled is None else null_pooled.to(cond),
        guidance,
    )


@torch.no_grad()
def noise_inversion(
    functions: StepFunctions, encoded_bchw: Tensor, texts: _Texts, steps: int
) -> tuple[Tensor, Tensor]:
    """Trajectories (B, T + 1, C, h, w) that end near clean latents, and the noise that leads there.

    Every step's latent is drawn on its own from the noised image, and the noise between two of them
    is whatever the model's step lacks. The last step adds none, so the reconstruction ends with the
    model's own prediction from the last latent. The noise (B, T, C, h, w) is what ``Job.noise``
    wants, unscaled.

    Source: Huberman-Spiegelglas et al. 2024 (edit-friendly inversion, arXiv 2304.06140), section 3;
    for few-step models TurboEdit, Deutch et al. 2024.
    """
    table = functions.model.ddim_table(steps)
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randn(steps, *encoded_bchw.shape[1:], generator=generator).to(encoded_bchw)
    signal, noise = table.levels.to(encoded_bchw).unbind(1)
    path = [s * encoded_bchw + n * eps for s, n, eps in zip(signal, noise, drawn, strict=True)]
    added, found = table.noise.to(encoded_bchw), []
    for i in range(steps):
        step = texts.step(table, i, encoded_bchw)
        z_prev, _ = functions.forward(path[i], texts.cond, texts.null, step)
        if i == steps - 1:
            path.append(z_prev)
            found.append(torch.zeros_like(z_prev))
        else:
            found.append((path[i + 1] - z_prev) / added[i])
    return torch.stack(path, dim=1), torch.stack(found, dim=1)


def ddim_inversion(
    functions: StepFunctions,
    encoded_bchw: Tensor,
    cond_bld: Tensor,
    steps: int,
    vector_be: Tensor | None = None,
) -> Tensor:
    """From clean latents up to noise, unguided: (B, T + 1, C, h, w), z_T first."""
    table = functions.model.ddim_table(steps)
    up, rest = table.inverse.to(encoded_bchw), encoded_bchw.new_zeros(2)
    z, path = encoded_bchw, [encoded_bchw]
    for i in reversed(range(steps)):
        step = _step(table, i, z, torch.cat([up[i], rest]), vector_be)
        z, _ = functions.forward(z, cond_bld, None, step)
        path.append(z)
    return torch.stack(path[::-1], dim=1)


def _unguided_trajectory(functions, z, texts: _Texts, steps) -> Tensor:
    table = functions.model.ddim_table(steps)
    path, rows = [z], table.step.to(z)
    state = initial_state(z, _step(table, 0, z, rows[0], texts.vector))
    for i in range(steps):
        step = _step(table, i, z, rows[i], texts.vector)
        state, _ = functions.forward(state, texts.cond, None, step)
        path.append(latents_of(state, step))
    return torch.stack(path, dim=1)


def _step(table: DDIMTable, i: int, z: Tensor, row: Tensor, vector: Tensor | None) -> Step:
    """Step i of all samples, unguided, with coefficients ``row``."""
    t = table.timesteps[i].to(z.device).expand(len(z))
    return Step(t, row.expand(len(z), -1), None, vector=vector)


def null_text_optimisation(
    functions: StepFunctions, upward: Tensor, texts: _Texts, settings: InversionSettings
) -> tuple[Tensor, Tensor]:
    """Guided trajectories (B, T + 1, C, h, w) and null texts (B, T, L, D) that follow ``upward``.

    An image that is close enough waits, unchanged, for the others of its timestep. A prediction
    that is close enough is accepted as it is, together with the null text that made it.
    """
    batch, table = len(upward), functions.model.ddim_table(settings.steps)
    timesteps, rows = table.timesteps.to(upward.device), table.step.to(upward)
    null, z, previous_x0 = texts.null, upward[:, 0], torch.zeros_like(upward[:, 0])
    trajectory, nulls = [z], []
    # A step whose z_prev is the U-Net's output: conditional and null rows are predicted apart.
    just_output = z.new_tensor([0.0, 1.0, 0.0, 0.0]).expand(batch, 4)
    for i in range(settings.steps):
        step = Step(timesteps[i].expand(batch), just_output, None, vector=texts.vector)
        null_step = replace(step, vector=texts.null_vector)
        cond_output, _ = functions.forward(z, texts.cond, None, step)
        adam = _Adam(settings.learning_rate * (1 - 0.5 * i / settings.steps))
        near = torch.zeros(batch, dtype=torch.bool, device=z.device)
        # The prediction after the last update is accepted whatever it is: it needs no gradient.
        for left in reversed(range(settings.null_text_steps + 1)):
            if left:
                graph = functions.forward_with_graph(z, null, None, null_step)
                null_output = graph.z_prev.detach().requires_grad_()
            else:
                null_output, _ = functions.forward(z, null, None, null_step)
            with torch.set_grad_enabled(left > 0):
                output = null_output + settings.guidance_scale * (cond_output - null_output)
                z_prev, x0 = solver_step(rows[i].expand(batch, -1), z, output, previous_x0)
                losses = (z_prev - upward[:, i + 1]).square().flatten(1).mean(1)
                total = losses.sum()
            near = near | (losses.detach().double() < settings.tolerance * (1 + 2 * i))
            # Elsewhere than on the CPU the host would wait for the answer.
            waits = near.device.type != "cpu" or hardware.of(near.device).is_gpu
            if not left or (not waits and near.all()):
                break
            (on_output,) = torch.autograd.grad(total, null_output)
            _, gradient = functions.vjp(graph, on_output, None)
            null = torch.where(near[:, None, None], null, adam.update(null, gradient))
        z, previous_x0 = z_prev.detach(), x0.detach()
        trajectory.append(z)
        nulls.append(null)
    return torch.stack(trajectory, dim=1), torch.stack(nulls, dim=1)


@torch.no_grad()
def lacking_outputs(functions: StepFunctions, upward: Tensor, texts: _Texts) -> Tensor:
    """What must be added to each guided output so that the sample follows ``upward``.

    Returns:
        (B, T, C, h, w), as ``Job.offsets`` wants it.

    Source: Ju et al. 2023 (direct inversion), algorithm 1. There it is added to the latent; as a
    part of the output it corrects x0 as well, which the pictures are made of.
    """
    steps, offsets = upward.shape[1] - 1, []
    table = functions.model.ddim_table(steps)
    state = None
    for i in range(steps):
        step = texts.step(table, i, upward)
        if i == 0:
            state = initial_state(upward[:, 0], step)
        z_prev, x0 = functions.forward(state, texts.cond, texts.null, step)
        _, b, _, d, *_ = table.step[i].to(upward)
        offsets.append((upward[:, i + 1] - latents_of(z_prev, step)) / b)
        state = upward[:, i + 1]
        if step.is_multistep:
            state = torch.cat([state, x0 + d * offsets[-1]], dim=1)
    return torch.stack(offsets, dim=1)


def _each_step(text_bld: Tensor | None, steps: int) -> Tensor | None:
    """(B, L, D) to (B, T, L, D)."""
    return None if text_bld is None else text_bld[:, None].repeat(1, steps, 1, 1)


def _row(tensor: Tensor | None, i: int) -> Tensor | None:
    return None if tensor is None else tensor[i]


class _Adam:
    """Adam on the rows of a batch, all of which are at the same update."""

    def __init__(self, rate: float):
        self.rate, self.count, self.mean, self.square = rate, 0, 0.0, 0.0

    def update(self, x: Tensor, gradient: Tensor) -> Tensor:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient.square()
        mean = self.mean / (1 - 0.9**self.count)
        root = (self.square / (1 - 0.999**self.count)).sqrt()
        return x - self.rate * mean / (root + 1e-8)
