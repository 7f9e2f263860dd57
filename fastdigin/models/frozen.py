"""Makes diffusers' frozen networks keep and copy less, at the same outputs and gradients.

Layers of one network instance change their class to a subclass with another ``forward``.
Parameters and their names stay as they are, ``isinstance`` too, and diffusers' classes are
untouched.
"""

from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.embeddings import Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from fastdigin_kernels.frozen_conv import conv2d, prepare
from fastdigin_kernels.geglu import geglu
from fastdigin_kernels.group_norm_silu import group_norm, group_norm_silu


def freeze_aware(network: nn.Module) -> None:
    """Reduces, in place, what a U-Net or an autoencoder keeps for the backward, and what it copies.

    A convolution then keeps its weight alone; a group norm followed by SiLU, and a GEGLU, their
    input alone. (Linear layers with frozen weights and layer norms keep no more as they are.) An
    image that lies channels last stays so through norms and transformer blocks, on GPUs as well.
    A timestep that was expanded to all samples is embedded once. On CPUs, weights of 3x3 are
    transformed for Winograd's convolution now: the engine plans with the memory that is left.
    Afterwards these layers have no second derivative, a weight made trainable raises ValueError in
    them, and hooks on the norms of residual blocks are no longer called.

    Layers with a trainable parameter, of another class (subclasses included) or of a configuration
    not foreseen here are left alone, and so are those changed by an earlier call.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d:
            in_pixels = module.padding_mode == "zeros" and not isinstance(module.padding, str)
            if in_pixels and _is_frozen(module):
                module.__class__ = FrozenConv2d
                geometry = module.stride, module.padding, module.dilation, module.groups
                prepare(module.weight, *geometry)
        elif type(module) is GEGLU:
            if _is_frozen(module):
                module.__class__ = FrozenGEGLU
        elif type(module) is Timesteps:
            module.__class__ = SharedTimesteps
        elif type(module) is Transformer2DModel:
            if module.is_input_continuous:
                module.__class__ = ChannelsLastTransformer2D
                _keep_format(module.norm)
        elif type(module) is Attention:
            _keep_format(module.group_norm)
        elif type(module) is ResnetBlock2D:
            if _is_plain(module):
                module.__class__ = FrozenResnetBlock2D
        elif isinstance(module, (UNet2DConditionModel, Encoder, Decoder)) and (
            _fuses(module.conv_norm_out, module.conv_act)
        ):
            module.conv_norm_out.__class__ = FrozenGroupNormSiLU
            # Replaced, not changed: older diffusers share one SiLU among all networks.
            module.conv_act = nn.Identity()


class FrozenConv2d(nn.Conv2d):
    """A convolution that keeps its weight alone for the backward."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        return conv2d(
            x_bchw, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class FrozenGEGLU(GEGLU):
    """A linear projection to GEGLU's input, and GEGLU, which keeps that input alone."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return geglu(self.proj(hidden_states))


class FrozenGroupNorm(nn.GroupNorm):
    """A group norm, of an image or of (B,C,N), that keeps the memory format on CUDA too."""

    def forward(self, x: Tensor) -> Tensor:
        image = x if x.ndim == 4 else x[..., None]
        return group_norm(image, self.weight, self.bias, self.num_groups, self.eps).view(x.shape)


class FrozenGroupNormSiLU(nn.GroupNorm):
    """A group norm and the SiLU that follows it."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        return _norm_silu(self, x_bchw)


class SharedTimesteps(Timesteps):
    """The embedding of one timestep that was expanded to all samples: (1, E) instead of (B, E).

    What the network makes of it is added to every sample then. Products of as many equal rows cost
    more, and round otherwise where the batch has another size.
    """

    def forward(self, timesteps: Tensor) -> Tensor:
        return super().forward(timesteps[:1] if timesteps.stride(0) == 0 else timesteps)


class ChannelsLastTransformer2D(Transformer2DModel):
    """diffusers' transformer of an image, which hands its tokens on as they lie: channels last.

    diffusers copies them to planes, which the next convolution copies back.
    """

    def _get_output_for_continuous_inputs(
        self, hidden_states, residual, batch_size, height, width, inner_dim
    ) -> Tensor:
        def to_image(tokens: Tensor) -> Tensor:
            return tokens.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)

        if self.use_linear_projection:
            return to_image(self.proj_out(hidden_states)) + residual
        return self.proj_out(to_image(hidden_states)) + residual


class FrozenResnetBlock2D(ResnetBlock2D):
    """diffusers' residual block: no resampling, time embedding (if any) added, SiLU."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        x_bchw = self.conv1(_norm_silu(self.norm1, input_tensor))
        if self.time_emb_proj is not None:
            temb = temb if self.skip_time_act else self.nonlinearity(temb)
            temb = self.time_emb_proj(temb)[:, :, None, None]
        if temb is not None and self.time_embedding_norm == "default":
            x_bchw = x_bchw + temb
        x_bchw = self.conv2(self.dropout(_norm_silu(self.norm2, x_bchw)))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        output = input_tensor + x_bchw
        # Almost always 1, and a division costs a pass over the image, forward and backward.
        return output if self.output_scale_factor == 1 else output / self.output_scale_factor


def _norm_silu(norm: nn.GroupNorm, x_bchw: Tensor) -> Tensor:
    return group_norm_silu(x_bchw, norm.weight, norm.bias, norm.num_groups, norm.eps)


def _keep_format(norm: nn.Module | None) -> None:
    if type(norm) is nn.GroupNorm and norm.affine and _is_frozen(norm):
        norm.__class__ = FrozenGroupNorm


def _fuses(norm: nn.Module | None, activation: nn.Module | None) -> bool:
    return (
        type(norm) is nn.GroupNorm
        and norm.affine
        and _is_frozen(norm)
        and type(activation) is nn.SiLU
    )


def _is_plain(block: ResnetBlock2D) -> bool:
    """No resampling inside, and nothing between its norms and their activation."""
    # "group" is what the decoder calls a block without time embedding.
    return (
        block.time_embedding_norm in ("default", "group")
        and not (block.up or block.down)
        and _fuses(block.norm1, block.nonlinearity)
        and _fuses(block.norm2, block.nonlinearity)
    )


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())
