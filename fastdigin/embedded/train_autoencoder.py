"""Trains the embedded autoencoder: 64x64 images to 4x16x16 latents and back.

The architecture is Stable Diffusion's (diffusers' AutoencoderKL) at a small size, without its
adversarial and perceptual losses, which need networks that do not exist at this scale.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fastdigin.embedded.scenes import batches, round_trip, to_signed
from fastdigin.embedded.training import Schedule, train

SCHEDULE = Schedule(
    steps=3_600,
    rate=2e-3,
    betas=(0.9, 0.98),
    weight_decay=1e-4,
    warmup=50,
    flat=0.3,
    average=0.995,
)
BATCH = 16
HUE_WEIGHT = 1.0
EDGE_WEIGHT = 0.3
SQUARE_WEIGHT = 8.0
KL_WEIGHT = 2e-4


def build_autoencoder() -> AutoencoderKL:
    """An untrained AutoencoderKL with 0.7 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


def train_autoencoder(
    images_n3hw: Tensor, seed: int, schedule: Schedule = SCHEDULE
) -> AutoencoderKL:
    """Trains on uint8 ``images_n3hw``.

    The latents of the result have zero mean and unit variance in every channel, so its
    ``scaling_factor`` is 1.
    """
    torch.manual_seed(seed)

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images_n3hw), (BATCH,), generator=generator)
        return autoencoder_loss(model, to_signed(images_n3hw[rows]), generator)

    average = train("autoencoder", build_autoencoder(), loss_of, schedule, seed)
    normalise_latents(average, images_n3hw[:4_000])
    return average


def autoencoder_loss(
    model: AutoencoderKL, images_b3hw: Tensor, generator: torch.Generator
) -> Tensor:
    """Pixels (L1 and squared), edges, colours, and the KL divergence of the latents to N(0, 1).

    Squared error is what PSNR measures; L1 of differences between neighbours keeps edges; L1 of
    4x4 means keeps hues, which the other terms trade for brightness on dark garments.
    """
    # The networks run in bfloat16, 1.5x faster on a CPU that has it; the loss is taken in fp32.
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(images_b3hw).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
    error = decoded.float() - images_b3hw
    across = error[..., :, 1:] - error[..., :, :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return (
        error.abs().mean()
        + SQUARE_WEIGHT * (error**2).mean()
        + EDGE_WEIGHT * 0.5 * (across.abs().mean() + down.abs().mean())
        + HUE_WEIGHT * F.avg_pool2d(error, 4).abs().mean()
        + KL_WEIGHT * kl
    )


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, images_n3hw: Tensor) -> None:
    """Folds each latent channel's mean and deviation into the 1x1 convolutions around it.

    The reconstruction is unchanged: what the encoder's last layer divides by, the decoder's first
    layer multiplies with. The noise of the diffusion process then weighs on all channels alike.
    """
    latents = torch.cat(
        [model.encode(to_signed(b)).latent_dist.mode() for b in batches(images_n3hw)]
    )
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    quant, post_quant = model.quant_conv, model.post_quant_conv
    # quant_conv's outputs are the means, then the log variances.
    quant.weight[:4] /= deviation.view(4, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) / deviation
    quant.bias[4:] -= 2 * deviation.log()
    post_quant.bias += (post_quant.weight.flatten(1) * mean).sum(dim=1)
    post_quant.weight *= deviation.view(1, 4, 1, 1)


def psnr(model: AutoencoderKL, images_n3hw: Tensor) -> float:
    """Mean over the images of the round trip's peak signal-to-noise ratio in dB."""
    error = (round_trip(model, images_n3hw).float() - images_n3hw.float()) / 255
    return (-10 * (error**2).mean(dim=(1, 2, 3)).log10()).mean().item()
