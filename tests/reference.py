"""The method in plain PyTorch: one image, one autograd graph, attention maps written out.

This is the yardstick for everything faster. It shares no code with the engine: it calls the
diffusers U-Net and VAE directly, takes alphas_cumprod from the DDIM scheduler, and lets autograd
keep the whole unrolled loop. Run it in fp64. Equation numbers follow DiG-IN (arXiv 2311.17833).
"""

import torch


class MapProcessor:
    """Attention with its map materialised, as in prompt-to-prompt (Hertz et al. 2022, eq. 5)."""

    def __init__(self):
        self.recorded = None  # the softmax map of the last call, (B*heads, N, L)
        self.edit = None  # map -> map

    def __call__(self, attn, hidden, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(x)
            for x in (attn.to_q(hidden), attn.to_k(context), attn.to_v(context))
        )
        attention_map = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        self.recorded = attention_map
        if self.edit is not None:
            attention_map = self.edit(attention_map)
        return attn.to_out[0](attn.batch_to_head_dim(attention_map @ v))


def hook_attention(unet):
    """Replaces every processor of ``unet``: those of cross- and those of self-attention layers."""
    processors = {name: MapProcessor() for name in unet.attn_processors}
    unet.set_attn_processor(dict(processors))  # diffusers empties the dict it is given
    return [[p for name, p in processors.items() if kind in name] for kind in ("attn2", "attn1")]


def ddim_step(scheduler, i, z, output):
    """(z_prev, x0) of step i of the scheduler's timesteps, eta = 0 (Song et al., eq. 12)."""
    t = int(scheduler.timesteps[i])
    previous = t - scheduler.config.num_train_timesteps // len(scheduler.timesteps)
    abar = scheduler.alphas_cumprod.double()
    final = float(scheduler.final_alpha_cumprod)
    a, a_prev = float(abar[t]), float(abar[previous]) if previous >= 0 else final
    if scheduler.config.prediction_type == "v_prediction":
        x0 = a**0.5 * z - (1 - a) ** 0.5 * output
        eps = a**0.5 * output + (1 - a) ** 0.5 * z
    else:
        eps = output
        x0 = (z - (1 - a) ** 0.5 * eps) / a**0.5
    return a_prev**0.5 * x0 + (1 - a_prev) ** 0.5 * eps, x0


@torch.no_grad()
def record_maps(unet, z, t, text):
    unet(z, t, text)


def multistep_step(scheduler, i, z, output, previous_x0):
    """(z_prev, x0) of DPM-Solver++(2M) that predicts noise (Lu et al. 2022, algorithm 2).

    previous_x0: of the step before; None, as in the first step, makes a step of first order.
    """
    signal = 1 / (1 + scheduler.sigmas.double() ** 2).sqrt()
    noise = scheduler.sigmas.double() * signal
    log_snr = torch.log(signal) - torch.log(noise)
    x0 = data = (z - noise[i] * output) / signal[i]
    h = log_snr[i + 1] - log_snr[i]
    if previous_x0 is not None:
        r = (log_snr[i] - log_snr[i - 1]) / h
        data = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous_x0
    return noise[i + 1] / noise[i] * z - signal[i + 1] * torch.expm1(-h) * data, x0


def sample(
    unet, scheduler, z, conditioning, null_text, guidance, injection=None, self_injection=None,
    blend=None, offsets=None,
):  # fmt: skip
    """The guided loop. z (1,4,h,w); conditioning and null_text: T tensors (1,L,D).

    injection: (weights per step, source conditioning, source latents per step, M (targets,
    sources)): the source's maps A_src M^T replace the target's. self_injection: the same for
    self-attention, with the most queries of a layer that is replaced instead of M. blend:
    (weights, mask, source latents). offsets: T tensors, added to the guided output.
    Returns (last z, list of all predicted x0).
    """
    cross, own = hook_attention(unet) if injection or self_injection else ([], [])
    x0s = []
    for i, t in enumerate(scheduler.timesteps):
        if blend is not None:
            weights, mask, source = blend
            z = weights[i] * mask * source[i] + (1 - weights[i] * mask) * z
        edits = {}
        if injection is not None and injection[0][i] > 0:
            weights, source_text, source_z, m = injection
            record_maps(unet, source_z[i], t, source_text)
            edits |= {layer: (layer.recorded @ m.T, weights[i]) for layer in cross}
        if self_injection is not None and self_injection[0][i] > 0:
            weights, source_text, source_z, queries = self_injection
            record_maps(unet, source_z[i], t, source_text)
            small = [layer for layer in own if layer.recorded.shape[-2] <= queries]
            edits |= {layer: (layer.recorded, weights[i]) for layer in small}
        for layer, (injected, w) in edits.items():
            layer.edit = lambda a, injected=injected, w=w: w * injected + (1 - w) * a
        output = unet(z, t, conditioning[i]).sample
        for layer in edits:
            layer.edit = None
        if guidance != 1.0:
            null = unet(z, t, null_text[i]).sample
            output = null + guidance * (output - null)
        if offsets is not None:
            output = output + offsets[i]
        if "solver_order" in scheduler.config:
            z, x0 = multistep_step(scheduler, i, z, output, x0s[-1] if x0s else None)
        else:
            z, x0 = ddim_step(scheduler, i, z, output)
        x0s.append(x0)
    return z, x0s


def decode(vae, x0):
    """Latents to an image in [0, 1]."""
    return (vae.decode(x0 / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def optimise(
    pipe, z, conditioning, null_text, guidance, loss, iterations,
    lr=0.01, latent_lr_factor=0.1, last=3, **editing,
):  # fmt: skip
    """Adam on (z_T, delta conditioning, delta null text) of the weighted loss (eq. 3).

    ``loss(image, x0, iteration, k)`` with k = 0 for the earliest of the last ``last`` x0; k = None
    asks for the plain loss. Returns one (plain loss, image) per iteration, before its update.
    """
    norm = z.norm()
    z = z.clone().requires_grad_()
    d_cond = torch.zeros_like(torch.stack(conditioning)).requires_grad_()
    d_null = torch.zeros_like(torch.stack(null_text)).requires_grad_()
    variables = [(z, lr * latent_lr_factor), (d_cond, lr), (d_null, lr)]
    moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v, _ in variables]
    trace = []
    for iteration in range(iterations + 1):
        cond = [c + d for c, d in zip(conditioning, d_cond, strict=True)]
        null = [n + d for n, d in zip(null_text, d_null, strict=True)]
        _, x0s = sample(pipe.unet, pipe.scheduler, z, cond, null, guidance, **editing)
        kept = x0s[-last:]
        weights = [2 * (k + 1) / (len(kept) * (len(kept) + 1)) for k in range(len(kept))]
        with torch.no_grad():
            image = decode(pipe.vae, kept[-1])
            trace.append((float(loss(image, kept[-1], iteration, None)), image))
        if iteration == iterations:
            return trace
        total = sum(
            w * loss(decode(pipe.vae, x0), x0, iteration, k)
            for k, (w, x0) in enumerate(zip(weights, kept, strict=True))
        )
        gradients = torch.autograd.grad(total, [v for v, _ in variables], allow_unused=True)
        with torch.no_grad():
            for (v, rate), (m1, m2), g in zip(variables, moments, gradients, strict=True):
                if g is None:
                    continue
                m1.mul_(0.9).add_(0.1 * g)
                m2.mul_(0.999).add_(0.001 * g * g)
                n = iteration + 1
                v -= rate * (m1 / (1 - 0.9**n)) / ((m2 / (1 - 0.999**n)).sqrt() + 1e-8)
            z *= norm / z.norm()
