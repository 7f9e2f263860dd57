"""The published architectures whose memory can be told before they are fetched: no weights.

Sources: the U-Nets' and VAEs' ``config.json`` of CompVis/stable-diffusion-v1-4,
stabilityai/stable-diffusion-2-1 and stabilityai/stable-diffusion-xl-base-1.0, reduced to what
decides shapes and arithmetic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A latent diffusion model by its configurations.

    unet: of UNet2DConditionModel. vae: of AutoencoderKL. text_parameters: of all its text
    encoders, as published (they take no part in a step, but their weights take room).
    text_length: tokens a prompt, padding included. pooled: width of SDXL's pooled embedding.
    upcast: whether the decoder needs fp32 where the U-Net runs in fp16 (``force_upcast``).
    """

    name: str
    unet: Config
    vae: Config
    text_parameters: int
    text_length: int = 77
    pooled: int | None = None
    upcast: bool = False

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of images of ``resolution`` pixels a side."""
        side = resolution // 2 ** (len(self.vae["block_out_channels"]) - 1)
        return self.vae.get("latent_channels", 4), side, side


_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

_UNET = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", _CROSS_UP, _CROSS_UP, _CROSS_UP),
    "layers_per_block": 2,
}

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}

SD_1_4 = Architecture(
    name="SD 1.4",
    unet={
        **_UNET,
        "attention_head_dim": 8,  # the number of heads, whatever its name says
        "cross_attention_dim": 768,
    },
    vae=_VAE,
    text_parameters=123_060_480,
)

SD_2_1 = Architecture(
    name="SD 2.1",
    unet={
        **_UNET,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,  # which diffusers' fused attention processor does not heed
    },
    vae=_VAE,
    text_parameters=340_387_840,
)

SDXL = Architecture(
    name="SDXL",
    unet={
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", _CROSS_DOWN, _CROSS_DOWN),
        "up_block_types": (_CROSS_UP, _CROSS_UP, "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,  # 1280 pooled + 6 time ids of 256
    },
    vae=_VAE,
    text_parameters=817_720_320,
    pooled=1280,
    upcast=True,
)

ARCHITECTURES = (SD_1_4, SD_2_1, SDXL)
RESOLUTIONS = (512, 768, 1024)
