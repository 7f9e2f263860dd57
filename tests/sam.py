"""A small HQ-SAM of the library's own classes, with random weights."""

from functools import partial

import torch
from torch import nn


def small_sam(seed: int = 0) -> nn.Module:
    """It looks at 64 px through a ViT of width 32."""
    from segment_anything_hq.modeling import (
        ImageEncoderViT,
        MaskDecoderHQ,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    torch.manual_seed(seed)
    side, dim = 64, 32
    encoder = ImageEncoderViT(
        img_size=side, patch_size=8, embed_dim=32, depth=2, num_heads=2, out_chans=dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=4,
        global_attn_indexes=(1,),
    )  # fmt: skip
    prompts = PromptEncoder(
        embed_dim=dim, image_embedding_size=(8, 8), input_image_size=(side, side), mask_in_chans=8
    )
    decoder = MaskDecoderHQ(
        transformer_dim=dim,
        transformer=TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=64, num_heads=4),
        vit_dim=32, iou_head_hidden_dim=32,
    )  # fmt: skip
    sam = Sam(encoder, prompts, decoder, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]).eval()
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.ndim == 1:  # biases are zero at first, and masks would be nearly constant
                parameter += 0.3 * torch.randn_like(parameter)
    return sam
