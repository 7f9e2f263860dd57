"""Small random models of every family, as diffusers' pipelines save them.

The architectures are the published ones but for their widths and depths (see the config.json files
of the repositories named below), the tokenizer is the packaged one, or CLIP's own.
"""

from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tiny import draw_weights
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from fastdigin.embedded import model_folder

SIZE = 32
"""Side of the images; the networks halve the latents, of 8 x 8, twice."""

_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_SD1 = {
    "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", _CROSS_UP, _CROSS_UP),
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}
_SD2 = {**_SD1, "attention_head_dim": (1, 2, 4), "use_linear_projection": True}
_XL = {
    "down_block_types": ("DownBlock2D", _CROSS_DOWN, _CROSS_DOWN),
    "up_block_types": (_CROSS_UP, _CROSS_UP, "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 40,  # 16 of the first text encoder and 24 of the second
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 12 + 6 * 8,
}
_NOISE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
}  # fmt: skip
_PNDM = {**_NOISE, "skip_prk_steps": True, "set_alpha_to_one": False}

FAMILIES = {  # name: (U-Net, scheduler's class and settings, pipeline's class)
    # CompVis/stable-diffusion-v1-4
    "sd1": (_SD1, "PNDMScheduler", _PNDM, "StableDiffusionPipeline"),
    # stabilityai/stable-diffusion-2-base
    "sd2": (_SD2, "PNDMScheduler", _PNDM, "StableDiffusionPipeline"),
    # stabilityai/stable-diffusion-2-1
    "sd2-v": (
        _SD2,
        "DDIMScheduler",
        {**_NOISE, "set_alpha_to_one": False, "clip_sample": False,
         "prediction_type": "v_prediction"},
        "StableDiffusionPipeline",
    ),
    # stabilityai/stable-diffusion-2-1 with the solver that its model card recommends
    "multistep": (
        _SD1,
        "DPMSolverMultistepScheduler",
        {**_NOISE, "final_sigmas_type": "sigma_min", "lower_order_final": False},
        "StableDiffusionPipeline",
    ),
    # stabilityai/stable-diffusion-xl-base-1.0
    "sdxl": (
        _XL,
        "EulerDiscreteScheduler",
        {**_NOISE, "timestep_spacing": "leading"},
        "StableDiffusionXLPipeline",
    ),
    # stabilityai/sd-turbo
    "sd-turbo": (
        _SD2,
        "EulerDiscreteScheduler",
        {**_NOISE, "timestep_spacing": "trailing"},
        "StableDiffusionPipeline",
    ),
    # stabilityai/sdxl-turbo
    "sdxl-turbo": (
        _XL,
        "EulerAncestralDiscreteScheduler",
        {**_NOISE, "timestep_spacing": "trailing"},
        "StableDiffusionXLPipeline",
    ),
    # SimianLuo/LCM_Dreamshaper_v7
    "lcm": (
        {**_SD1, "time_cond_proj_dim": 16},
        "LCMScheduler",
        {"beta_start": 0.00085, "beta_end": 0.012},
        "LatentConsistencyModelPipeline",
    ),
}  # fmt: skip


def save_family(name: str, folder: Path, tokenizer: CLIPTokenizer | None = None) -> Path:
    """A model of a family of FAMILIES in ``folder``, weights drawn from a fixed seed."""
    unet, scheduler, settings, pipeline = FAMILIES[name]
    tokenizer = tokenizer or CLIPTokenizer.from_pretrained(model_folder() / "tokenizer")
    parts = {
        "unet": UNet2DConditionModel(
            sample_size=SIZE // 4, block_out_channels=(32, 32, 64), layers_per_block=1,
            norm_num_groups=8, **unet,
        ),
        "vae": _autoencoder(),
        "text_encoder": _text_encoder(CLIPTextModel, tokenizer, 16),
    }  # fmt: skip
    if "XL" in pipeline:
        # A projection to another width than the encoder's own; the pad token is "!", number 0.
        parts["text_encoder_2"] = _text_encoder(CLIPTextModelWithProjection, tokenizer, 24, 12)
    for seed, network in enumerate(parts.values()):
        network.eval().requires_grad_(False)
        draw_weights(network, seed, scale=0.7)  # larger ones amplify what fp32 rounds away
    parts["tokenizer"] = tokenizer
    if "XL" in pipeline:
        tokenizer.save_pretrained(folder / "tokenizer_2")
        parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder / "tokenizer_2", pad_token="!")
    else:
        parts |= {
            "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False
        }  # fmt: skip
    parts["scheduler"] = getattr(diffusers, scheduler)(**settings)
    made = getattr(diffusers, pipeline)(**parts)
    made.save_pretrained(folder)
    return folder


def _autoencoder() -> AutoencoderKL:
    """Three levels: 4 pixels a latent."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=SIZE,
    )


def _text_encoder(kind, tokenizer: CLIPTokenizer, width: int, projection: int = 16):
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=projection,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def load_pipeline(folder: Path, keep_scheduler: bool = False):
    """diffusers' own pipeline of a saved family; sd1 and sd2 with DDIM in place of PNDM."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if type(pipeline.scheduler) is diffusers.PNDMScheduler and not keep_scheduler:
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False
        )
    return pipeline
