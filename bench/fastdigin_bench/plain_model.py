"""The networks of the plain loop: diffusers' own modules in single precision, block-checkpointed.

Attention inside the U-Net is diffusers' own too, except that cross-attention writes its maps out
while a prompt-to-prompt job runs, as the code of prompt-to-prompt does (Hertz et al. 2022,
arXiv 2208.01626, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from fastdigin.models.diffusion import LatentDiffusion

# Called with a layer's name and its maps (B, H, N, L); returns the maps to use instead.
MapEdit = Callable[[str, Tensor], Tensor]


class PlainModel:
    """A LatentDiffusion's weights in diffusers' own modules.

    Everything runs in fp32 (fp64 for an fp64 model); weights of that dtype are shared with the
    model, not copied. The U-Net checkpoints its blocks, the decoder does not. The text encoder and
    the tokenizer are the model's own: they only prepare data.
    """

    def __init__(self, model: LatentDiffusion):
        self.model = model
        self.dtype = torch.float64 if model.dtype is torch.float64 else torch.float32
        self.unet = _stock(model.unet, self.dtype)
        self.vae = _stock(model.vae, self.dtype)
        checkpoint_blocks(self.unet)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def scheduler(self, steps: int) -> DDIMScheduler:
        """diffusers' DDIM scheduler with ``steps`` timesteps and its table in fp64."""
        scheduler = DDIMScheduler.from_config(self.model.scheduler.config)
        scheduler.set_timesteps(steps)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        scheduler.final_alpha_cumprod = torch.as_tensor(scheduler.final_alpha_cumprod).double()
        return scheduler

    def predict(self, z_bchw: Tensor, t: Tensor, text_bld: Tensor, edit: MapEdit | None = None):
        """The U-Net's output (B, C, h, w). ``edit`` needs ``write_maps`` before.

        The edit travels with the call, not in the processors: a checkpointed block runs again
        during the backward, when the processors would be at another step.
        """
        kwargs = None if edit is None else {"edit": edit}
        return self.unet(z_bchw, t, text_bld, cross_attention_kwargs=kwargs).sample

    def decode(self, x0_1chw: Tensor) -> Tensor:
        """One latent to its image (3, H, W) in [0, 1]."""
        image = self.vae.decode(x0_1chw / self.vae.config.scaling_factor).sample
        return (image / 2 + 0.5).clamp(0, 1)[0]

    def write_maps(self, wanted: bool) -> None:
        """Whether cross-attention computes its maps, for edits, or diffusers' fused attention."""
        processors = {}
        for name in self.unet.attn_processors:
            layer = name.removesuffix(".processor")
            cross = wanted and layer.endswith("attn2")
            processors[name] = MapAttention(layer) if cross else FusedAttention()
        self.unet.set_attn_processor(processors)


def checkpoint_blocks(network: nn.Module) -> None:
    """diffusers' own gradient checkpointing, on a network that is otherwise in evaluation mode.

    Older versions of diffusers checkpoint blocks in training mode only. That mode is given to the
    blocks themselves, not to what is in them, so that nothing drops out.
    """
    network.enable_gradient_checkpointing()
    for module in network.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.training = True


class FusedAttention(AttnProcessor2_0):
    """diffusers' own attention, for the layers that no edit concerns."""

    def __call__(self, attn, hidden_states, *args, edit: MapEdit | None = None, **kwargs):
        return super().__call__(attn, hidden_states, *args, **kwargs)


class MapAttention:
    """Cross-attention whose map is computed, edited if the call asks for it, and applied."""

    def __init__(self, layer: str):
        self.layer = layer

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        edit: MapEdit | None = None,
    ) -> Tensor:
        q, k, v = (
            attn.head_to_batch_dim(x)
            for x in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        maps = attn.get_attention_scores(q, k, attention_mask)
        if edit is not None:
            maps = edit(self.layer, maps.unflatten(0, (-1, attn.heads))).flatten(0, 1)
        return attn.to_out[0](attn.batch_to_head_dim(maps @ v))


def _stock(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``network``'s class and weights without whatever fastdigin put into it."""
    with torch.device("meta"):
        stock = type(network).from_config(network.config)
    weights = {name: weight.to(dtype) for name, weight in network.state_dict().items()}
    stock.load_state_dict(weights, assign=True)
    return stock.eval().requires_grad_(False)
