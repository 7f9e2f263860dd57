"""Trains the embedded text encoder and U-Net together, on the autoencoder's latents.

The recipe is Stable Diffusion 1.x's (epsilon prediction, scaled-linear betas, prompts dropped for
classifier-free guidance) with a loss that gives the noisy end its share: the plain mean square of
epsilon hardly sees the global shape, which is decided there.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fastdigin.embedded import BACKGROUNDS, COLOURS, GARMENTS, prompt
from fastdigin.embedded.scenes import Scenes, batches, to_signed
from fastdigin.embedded.training import Schedule, train

SCHEDULE = Schedule(steps=4_500, rate=1.2e-3, flat=0.5, average=0.998)
BATCH = 48
DROPPED_PROMPTS = 0.1
LARGEST_WEIGHT = 8.0
WIDTH = 64
MAX_LENGTH = 16
"""Tokens of a prompt, with start, end and padding."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = ("a", "photo", "of", "on", *GARMENTS, *COLOURS, *BACKGROUNDS)


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes the four files of a CLIP tokenizer into ``folder`` and reads them back.

    Every word of the world's prompts is one token, everything else falls apart into shorter
    pieces, as rare words do in CLIP's own vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _vocabulary_and_merges()
    special = {"bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": _END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    for name, content in (
        ("vocab.json", {token: number for number, token in enumerate(vocabulary)}),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


@dataclass(frozen=True)
class CachedLatents:
    """Posterior ``mean`` and ``deviation`` (n, 4, 16, 16) and the prompts' ``tokens`` (n, 16)."""

    mean: Tensor
    deviation: Tensor
    tokens: Tensor
    empty: Tensor
    """(16,) tokens of the empty prompt."""


class TextAndUNet(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_LENGTH,
                projection_dim=WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        # Attention at 16x16 on the way up only: there the maps are sharp enough for foreground
        # masks, while on the way down it cost 10% more time a step for less than the 8x8 gives.
        self.unet = UNet2DConditionModel(
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(48, 96, 128),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=WIDTH,
            # Stable Diffusion 1.x's name for the number of heads: 24, 24 and 32 channels each.
            attention_head_dim=(2, 4, 4),
        )

    def forward(self, latents_b4hw: Tensor, timesteps_b: Tensor, tokens_bl: Tensor) -> Tensor:
        text = self.text_encoder(tokens_bl).last_hidden_state
        return self.unet(latents_b4hw, timesteps_b, text).sample


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.x's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def cache_latents(
    autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, scenes: Scenes
) -> CachedLatents:
    """Encodes every scene once; training draws from the posteriors."""
    posteriors = [
        autoencoder.encode(to_signed(images)).latent_dist for images in batches(scenes.images)
    ]
    words = zip(
        scenes.garments.tolist(), scenes.colours.tolist(), scenes.backgrounds.tolist(), strict=True
    )
    prompts = [prompt(GARMENTS[g], COLOURS[c], BACKGROUNDS[b]) for g, c, b in words]
    tokens = tokenizer([*prompts, ""], padding="max_length", max_length=MAX_LENGTH)["input_ids"]
    return CachedLatents(
        mean=torch.cat([p.mean for p in posteriors]),
        deviation=torch.cat([p.std for p in posteriors]),
        tokens=torch.tensor(tokens[:-1]),
        empty=torch.tensor(tokens[-1]),
    )


def train_diffusion(
    cached: CachedLatents, tokenizer: CLIPTokenizer, seed: int, schedule: Schedule = SCHEDULE
) -> TextAndUNet:
    """The trained networks (averaged weights)."""
    torch.manual_seed(seed)
    alphas_cumprod = build_scheduler().alphas_cumprod

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        return diffusion_loss(model, cached, alphas_cumprod, generator)

    return train("diffusion", TextAndUNet(tokenizer), loss_of, schedule, seed)


def diffusion_loss(
    model: nn.Module, cached: CachedLatents, alphas_cumprod: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean square error of epsilon, weighted by min(1 / alpha_bar, 8).

    Timesteps are stratified: one from each of BATCH equal parts of the schedule.
    """
    rows = torch.randint(len(cached.mean), (BATCH,), generator=generator)
    latents = cached.mean[rows]
    latents = latents + cached.deviation[rows] * _normal_like(latents, generator)
    tokens = cached.tokens[rows]
    dropped = torch.rand(BATCH, generator=generator) < DROPPED_PROMPTS
    tokens = torch.where(dropped[:, None], cached.empty, tokens)

    strata = torch.arange(BATCH) + torch.rand(BATCH, generator=generator)
    timesteps = (strata / BATCH * len(alphas_cumprod)).long().clamp(max=len(alphas_cumprod) - 1)
    alpha_bar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noise = _normal_like(latents, generator)
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    error = F.mse_loss(model(noisy, timesteps, tokens), noise, reduction="none")
    return (error * (1 / alpha_bar).clamp(max=LARGEST_WEIGHT)).mean()


def assemble(
    autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, networks: TextAndUNet
) -> StableDiffusionPipeline:
    """Diffusers' own pipeline around the trained parts."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=networks.text_encoder,
        tokenizer=tokenizer,
        unet=networks.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator)


def _vocabulary_and_merges() -> tuple[list[str], list[tuple[str, str]]]:
    symbols = list(bytes_to_unicode().values())
    vocabulary = symbols + [symbol + "</w>" for symbol in symbols]
    merges: dict[tuple[str, str], None] = {}
    # Longest words first: a merge of a short word then never splits a long one.
    for word in sorted(_WORDS, key=lambda word: (-len(word), word)):
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for right in rest:
            merges[left, right] = None
            left += right
    vocabulary += [left + right for left, right in merges]
    return [*vocabulary, _START, _END], list(merges)
