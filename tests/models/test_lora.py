"""LoRA weights of every format, against the sum written out by hand."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion

RANK = 2
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
LAYERS = {  # network: its layers, by the names that the file of its weights has
    "unet": [f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_out.0", f"{BLOCK}.ff.net.0.proj",
             "down_blocks.0.resnets.0.conv1"],
    "text_encoder": ["text_model.encoder.layers.0.self_attn.q_proj",
                     "text_model.encoder.layers.1.self_attn.out_proj",
                     "text_model.encoder.layers.0.mlp.fc1"],
}  # fmt: skip
LAYERS["text_encoder_2"] = LAYERS["text_encoder"]
FILES = {"unet": "diffusion_pytorch_model.safetensors"}
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def make(folder, parts):
    """(network, layer) -> A, B and the weight that they are of."""
    generator, found = torch.Generator().manual_seed(0), {}
    for part in parts:
        weights = load_file(folder / part / FILES.get(part, "model.safetensors"))
        for layer in LAYERS[part]:
            name = f"{layer}.weight"
            weight = weights[name] if name in weights else weights[name.removeprefix("text_model.")]
            a = torch.randn(RANK, *weight.shape[1:], generator=generator)
            b = torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2), generator=generator)
            found[part, layer] = a, b, weight
    return found


def written(made, form, alpha):
    """(tensors, metadata) of a file."""
    tensors, metadata = {}, None
    for (part, layer), (a, b, _) in made.items():
        if form == "kohya":
            prefix = "lora_te1" if ("text_encoder_2", layer) in made else KOHYA[part]
            prefix = KOHYA[part] if part == "text_encoder_2" else prefix
            name = f"{KOHYA[part] if part == 'unet' else prefix}_{layer.replace('.', '_')}"
            tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b,
                        f"{name}.alpha": torch.tensor(float(alpha))}  # fmt: skip
        elif form == "peft":
            tensors |= {f"{part}.{layer}.lora_A.weight": a, f"{part}.{layer}.lora_B.weight": b}
            about = {f"{p}.lora_alpha": alpha for p, _ in made}
            metadata = {"lora_adapter_metadata": json.dumps(about)}
        else:
            down, up = ("lora.down", "lora.up") if part == "unet" else (
                "lora_linear_layer.down", "lora_linear_layer.up")  # fmt: skip
            tensors |= {f"{part}.{layer}.{down}.weight": a, f"{part}.{layer}.{up}.weight": b}
    return tensors, metadata


def load(folder, lora):
    return LatentDiffusion.from_pretrained(str(folder), device="cpu", lora=lora)


def weight_of(model, part, layer):
    modules = dict(getattr(model, part).named_modules())
    return modules.get(layer, modules.get(layer.removeprefix("text_model."))).weight


@pytest.mark.parametrize("form", ["kohya", "peft", "diffusers"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("scale", [None, 0.5, -1.0])
def test_weights_are_the_sum(folder_of, tmp_path, form, family, scale):
    parts = ["unet", "text_encoder"] + ["text_encoder_2"] * (family == "sdxl")
    made, alpha = make(folder_of(family), parts), 3.0
    tensors, metadata = written(made, form, alpha)
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    lora = str(tmp_path / "lora.safetensors") + ("" if scale is None else f":{scale}")
    model = load(folder_of(family), lora)
    assert model.name == f"{folder_of(family)} + {lora}"
    factor = (1.0 if scale is None else scale) * (1.0 if form == "diffusers" else alpha / RANK)
    for (part, layer), (a, b, before) in made.items():
        delta = torch.einsum("or,rihw->oihw", b[:, :, 0, 0], a) if a.ndim == 4 else b @ a
        torch.testing.assert_close(weight_of(model, part, layer), before + factor * delta)


def test_several_are_added(folder_of, tmp_path):
    save_file(written(make(folder_of("sd1"), ["unet"]), "peft", 1.0)[0], tmp_path / "l.safetensors")
    models = [
        load(folder_of("sd1"), [f"{tmp_path / 'l.safetensors'}:{scale}" for scale in scales])
        for scales in ((0.5, 0.25), (0.75,))
    ]
    for layer in LAYERS["unet"]:
        torch.testing.assert_close(*(weight_of(model, "unet", layer) for model in models))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {**t, "unet.nowhere.to_q.lora_A.weight": torch.ones(2, 8)}, "nowhere"),
        (lambda t: {k: v for k, v in t.items() if "to_q.lora_B" not in k}, "attn1.to_q.lora_A"),
        (lambda t: {k: v[:, :5] if "lora_A" in k else v for k, v in t.items()}, "8 of its tens"),
        (lambda t: {**t, "unet.conv_in.lora_magnitude_vector": torch.ones(2)}, "magnitude"),
        (lambda t: {"text_encoder_2." + k[5:]: v for k, v in t.items()}, "text_encoder_2"),
        (lambda t: {"transformer." + k[5:]: v for k, v in t.items()}, "transformer"),
    ],
)
def test_tensors_without_a_place_are_refused(folder_of, tmp_path, change, words):
    tensors, _ = written(make(folder_of("sd1"), ["unet"]), "peft", 1.0)
    save_file({k: v.contiguous() for k, v in change(tensors).items()}, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match=f"lora .* cannot be added: .*{words}"):
        load(folder_of("sd1"), str(tmp_path / "l.safetensors"))


@pytest.mark.parametrize("lora", ["/nowhere/l.safetensors", "/nowhere/l.safetensors:0.5"])
def test_files_that_are_not_there(folder_of, lora):
    with pytest.raises(UserError, match="lora '/nowhere/l.safetensors' cannot be loaded"):
        load(folder_of("sd1"), lora)


def test_every_kind_of_setting_that_is_not_known_is_refused(folder_of, tmp_path):
    tensors, _ = written(make(folder_of("sd1"), ["unet"]), "peft", 1.0)
    for setting in ("alpha_pattern", "use_rslora", "use_dora"):
        about = json.dumps({f"unet.{setting}": {"a": 1}})
        save_file(tensors, tmp_path / "l.safetensors", {"lora_adapter_metadata": about})
        with pytest.raises(UserError, match=f"unet.{setting}"):
            load(folder_of("sd1"), str(tmp_path / "l.safetensors"))
