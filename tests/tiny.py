"""A tiny random Stable Diffusion in fp64: large enough to be wrong, small enough to be fast.

Weights are drawn anew and made large, so that attention is far from uniform and every gradient is
far from zero. Each ``Tiny`` holds two copies of the networks: ``model`` with fastdigin's attention
processors, ``pipe`` with diffusers' own, for tests/reference.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import fastdigin as fd
from fastdigin.editing.attention_store import store_attention
from fastdigin.editing.prompts import token_mapping
from fastdigin.embedded import model_folder
from fastdigin.engine.architectures import Architecture
from fastdigin.models.attention import SourceAttention, attention_map

LATENT_SHAPE = (4, 8, 8)
IMAGE_SHAPE = (3, 16, 16)
CLASSES = ("sneaker", "boot", "bag")
SMALL_ARCHITECTURE = Architecture(
    name="small",
    unet={
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
    },
    vae={
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
    },
    text_parameters=1000,
    text_length=5,
)
SD_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Tiny:
    """model: what is tested. pipe: unet, vae, text_encoder, tokenizer and scheduler, untouched."""

    model: fd.LatentDiffusion
    pipe: SimpleNamespace


def build_tiny(prediction_type: str = "epsilon", levels: int = 2) -> Tiny:
    """Both copies have the same weights.

    levels: of the U-Net. With 1 it has a single transformer, for what takes long to compile.
    """
    model, pipe = _networks(prediction_type, levels), _networks(prediction_type, levels)
    return Tiny(fd.LatentDiffusion(**vars(model), name="tiny"), pipe)


def with_scheduler(tiny: Tiny, scheduler: SchedulerMixin) -> Tiny:
    """The same networks with another scheduler."""
    names = ("unet", "vae", "text_encoder", "tokenizer")
    networks = {name: getattr(tiny.model, name) for name in names}
    pipe = SimpleNamespace(**vars(tiny.pipe) | {"scheduler": scheduler})
    return Tiny(fd.LatentDiffusion(**networks, scheduler=scheduler, name="tiny"), pipe)


def multistep_scheduler(**options) -> DPMSolverMultistepScheduler:
    """DPM-Solver++(2M) of second order up to its last step, with Stable Diffusion's noise."""
    return DPMSolverMultistepScheduler(**SD_NOISE | {
        "final_sigmas_type": "sigma_min", "lower_order_final": False, **options,
    })  # fmt: skip


def _networks(prediction_type: str, levels: int) -> SimpleNamespace:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16)[:levels],
        down_block_types=("CrossAttnDownBlock2D",) * levels if levels > 1 else ("DownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) * levels if levels > 1 else ("UpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.7,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=604,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=602,
            eos_token_id=603,
            pad_token_id=603,
        )
    )
    for seed, network in enumerate((unet, vae, text_encoder)):
        network.double().eval().requires_grad_(False)
        draw_weights(network, seed)
    vae.decoder.conv_out.weight *= 0.8  # few pixels leave [0, 1] and are clamped
    scheduler = DDIMScheduler(
        **SD_NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type
    )
    tokenizer = CLIPTokenizer.from_pretrained(model_folder() / "tokenizer")
    return SimpleNamespace(
        unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
    )


def draw_weights(network: nn.Module, seed: int, scale: float = 1.0) -> None:
    """Large random weights: attention far from uniform, gradients far from zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1:  # biases and the affine parts of norms
            parameter.copy_((1 if "norm" in name and "weight" in name else 0) + 0.2 * noise)
        elif "embedding" in name and "time" not in name:
            parameter.copy_(noise)
        else:
            fan_in = parameter[0].numel()
            gain = scale * (2.0 if "to_q" in name or "to_k" in name else 1.0)
            parameter.copy_(gain * noise / fan_in**0.5)


class _Network(nn.Module):
    def __init__(self, classes: int, width: int):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.SiLU())
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))


def build_classifier(seed: int = 0, name: str = "tiny") -> fd.Classifier:
    """A random smooth classifier of CLASSES with six neurons that looks at 12 px, in fp64."""
    network = _Network(len(CLASSES), width=6).double().requires_grad_(False)
    draw_weights(network, 100 + seed)
    network.head.weight *= 3
    half = (0.5, 0.5, 0.5)
    return fd.Classifier(network, size=12, mean=half, std=half, classes=CLASSES, name=name)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_job(
    model: fd.LatentDiffusion,
    id: str = "job",
    *,
    seed: int = 0,
    prompt: str = "a photo of a boot",
    losses: Sequence | None = None,
    injection: fd.Injection | None = None,
    self_injection: fd.SelfInjection | None = None,
    blending: fd.Blending | None = None,
    monitors: dict | None = None,
    **settings,
) -> fd.Job:
    """A job of 4 steps and 2 iterations towards a random image, unless told otherwise."""
    conditioning, null_text = model.encode_prompts([prompt, ""])
    if losses is None:
        losses = [fd.Distance(uniform(*IMAGE_SHAPE, seed=1000 + seed))]
    return fd.Job(
        id=id,
        latents=normal(*LATENT_SHAPE, seed=seed),
        conditioning=conditioning,
        null_text=null_text,
        losses=losses,
        settings=fd.Settings(**{"steps": 4, "iterations": 2, **settings}),
        seed=seed,
        injection=injection,
        self_injection=self_injection,
        blending=blending,
        monitors=monitors or {},
    )


def make_source(model: fd.LatentDiffusion, prompt: str, steps: int, seed: int = 0) -> fd.Inversion:
    """Some trajectory to take attention and latents from; no image was inverted."""
    conditioning, null_text = model.encode_prompts([prompt, ""])
    latents = normal(steps + 2, *LATENT_SHAPE, seed=2000 + seed).to(model.device)
    return fd.Inversion(
        prompt, latents[:-1], conditioning, null_text.expand(steps, -1, -1), latents[-1]
    )


def make_injection(
    model: fd.LatentDiffusion,
    source: fd.Inversion,
    prompt: str,
    weights: Sequence[float],
    form: str = "queries",
) -> fd.Injection:
    """Injects ``source`` into ``prompt``, from stored "queries" or a stored "map"."""
    (store,) = store_attention(model, [source], [_reach(weights)], batch=1)
    mapping = token_mapping(model, source.prompt, prompt).double()
    return fd.Injection(_in_form(store.layers, form), mapping, tuple(weights))


def make_self_injection(
    model: fd.LatentDiffusion,
    source: fd.Inversion,
    weights: Sequence[float],
    form: str = "queries",
    self_queries: int = 16,
) -> fd.SelfInjection:
    """The same for self-attention layers of at most ``self_queries`` positions."""
    (store,) = store_attention(
        model, [source], [], [_reach(weights)], batch=1, self_queries=self_queries
    )
    injection = store.self_injection(1.0, len(weights))
    return fd.SelfInjection(_in_form(injection.layers, form), tuple(weights))


def _reach(weights: Sequence[float]) -> float:
    return max((i + 1 for i, w in enumerate(weights) if w), default=0) / len(weights)


def _in_form(layers: dict[str, SourceAttention], form: str) -> dict[str, SourceAttention]:
    if form == "queries":  # unless a model's head size makes its maps smaller
        return layers
    return {
        name: SourceAttention(attention_map(kept.tensor, kept.keys), None)
        for name, kept in layers.items()
    }


def make_blending(source: fd.Inversion, weights: Sequence[float], seed: int = 0) -> fd.Blending:
    """Blends towards ``source`` under a random soft mask."""
    mask = uniform(*LATENT_SHAPE[1:], seed=3000 + seed)
    return fd.Blending(mask, source.trajectory[:-1], tuple(weights))


def make_mixed_jobs(
    model: fd.LatentDiffusion, classifier: fd.Classifier, crops: int, **settings
) -> list[fd.Job]:
    """Six plain and edited jobs of 4 steps, with random crops and without."""
    prompt = "a photo of a red boot"
    source = make_source(model, "a photo of a red sneaker", steps=4)
    edits = {
        "injection": make_injection(model, source, prompt, (1.0, 0.5, 0.0, 0.0)),
        "blending": make_blending(source, (1.0, 0.0, 0.0, 0.0)),
    }
    losses = (
        [fd.ClassConfidence(classifier, 1, cutouts=fd.Cutouts(crops))],
        [fd.NeuronActivation(classifier, 2)],
    )
    return [
        make_job(
            model, str(n), seed=n, prompt=prompt, losses=losses[n % 2],
            **(edits if n % 3 else {}), **settings,
        )
        for n in range(6)
    ]  # fmt: skip


def reference_editing(job: fd.Job, source: fd.Inversion | None) -> dict:
    """The editing arguments of reference.sample for a job that edits ``source``."""
    editing, injections = {}, {}
    if job.injection is not None:
        injections["injection"] = job.injection.weights, job.injection.mapping
    if job.self_injection is not None:
        queries = max(kept.tensor.shape[-2] for kept in job.self_injection.layers.values())
        injections["self_injection"] = job.self_injection.weights, queries
    for name, (weights, how) in injections.items():
        latents = [z[None] for z in source.trajectory[:-1]]
        editing[name] = (weights, source.conditioning[None], latents, how)
    if job.blending is not None:
        latents = [z[None] for z in job.blending.source_latents]
        editing["blend"] = (job.blending.weights, job.blending.mask, latents)
    if job.offsets is not None:
        editing["offsets"] = job.offsets[:, None]
    return editing


def assert_near(actual: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    """The largest error is at most ``relative`` of the largest expected value, which is not 0."""
    largest = expected.abs().max()
    assert largest > 1e-6, f"nothing to compare with: all values are below {largest:.1e}"
    error = (actual - expected).abs().max()
    assert error <= relative * largest, f"relative error {error / largest:.2e}"
