"""The diffusion model: its parts, and what happens where it cannot be loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import IMAGE_SHAPE, LATENT_SHAPE, assert_near, normal, uniform

from fastdigin.embedded import model_folder
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion


@pytest.fixture
def folder(tmp_path):
    """A copy of the packaged model."""
    return Path(shutil.copytree(model_folder(), tmp_path / "model"))


def refused(source):
    with pytest.raises(UserError) as error:
        LatentDiffusion.load(str(source), device="cpu")
    message = str(error.value)
    assert str(source) in message and "\n" not in message
    return message


def test_the_embedded_model(embedded):
    assert embedded.latent_shape == (4, 16, 16)
    assert embedded.image_size == 64 and embedded.text_length == 16
    assert embedded.dtype == torch.float32 and embedded.device.type == "cpu"
    assert embedded.name == "embedded"
    for network in embedded.networks:
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_local_folder(folder, embedded):
    model = LatentDiffusion.load(str(folder), device="cpu")
    assert model.name == str(folder)
    for ours, theirs in zip(model.networks, embedded.networks, strict=True):
        expected = theirs.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


def test_another_dtype(folder):
    model = LatentDiffusion.load(str(folder), device="cpu", dtype=torch.float64)
    assert model.dtype == torch.float64
    assert {p.dtype for n in model.networks for p in n.parameters()} == {torch.float64}
    assert model.encode_prompts(["a bag"]).dtype == torch.float64


def test_another_scheduler_becomes_ddim(folder):
    """Folders often name another solver; its noise schedule and prediction type are kept."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config |= {"_class_name": "PNDMScheduler", "skip_prk_steps": True,
               "prediction_type": "v_prediction", "beta_end": 0.02}  # fmt: skip
    path.write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    model = LatentDiffusion.load(str(folder), device="cpu")
    assert type(model.scheduler).__name__ == "DDIMScheduler"
    assert model.scheduler.config.prediction_type == "v_prediction"
    assert model.scheduler.config.beta_end == 0.02
    assert len(model.ddim_table(5)) == 5


@pytest.mark.parametrize(
    "source", ["nowhere", "./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"]
)
def test_an_unknown_model(source):
    assert "neither 'embedded', nor an existing folder, nor a hub id" in refused(source)


def test_a_misspelt_name():
    assert "did you mean 'embedded'?" in refused("embeded")


def test_a_folder_without_an_index(folder):
    (folder / "model_index.json").unlink()
    assert "model_index.json" in refused(folder)


def test_an_empty_folder(tmp_path):
    assert "model_index.json" in refused(tmp_path)


def test_a_folder_of_another_pipeline(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionInpaintPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "is a StableDiffusionInpaintPipeline" in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "not json"])
def test_a_broken_index(folder, text):
    (folder / "model_index.json").write_text(text)
    assert "model_index.json is not an index" in refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component(folder, part):
    shutil.rmtree(folder / part)
    assert "cannot be loaded" in refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_broken_weights(folder, part):
    (path,) = (folder / part).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot be loaded" in refused(folder)


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.write_text, (self.mark, "unpickled"))


@pytest.mark.parametrize("parts", [("unet",), ("vae",), ("text_encoder",),
                                   ("unet", "vae", "text_encoder")], ids=str)  # fmt: skip
@pytest.mark.parametrize("dangerous", [False, True])
def test_pickled_weights_are_never_read(folder, tmp_path, monkeypatch, parts, dangerous):
    mark = tmp_path / "mark"
    for part in parts:
        (path,) = (folder / part).glob("*.safetensors")
        name = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        weights = folder / part / f"{name}.bin"
        if dangerous:
            weights.write_bytes(pickle.dumps(Bomb(mark)))
        else:
            torch.save(load_file(path), weights)
        path.unlink()

    def forbidden(*args, **kwargs):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", forbidden)
    message = refused(folder)
    assert "safetensors" in message
    assert not mark.exists()


def test_a_hub_id_without_a_connection(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    message = refused("nobody-at-all/no-such-model")
    assert "HF_HUB_OFFLINE is set" in message and "hf download nobody-at-all" in message


def test_prompts_are_encoded_one_by_one(tiny):
    """As the text encoder itself does; neighbours do not change a bit."""
    prompts = ["a photo of a red sneaker", "", "a cat"]
    together = tiny.model.encode_prompts(prompts)
    assert together.shape == (3, 16, 16) and not together.requires_grad
    for prompt, row in zip(prompts, together, strict=True):
        assert torch.equal(tiny.model.encode_prompts([prompt])[0], row)
        ids = tiny.pipe.tokenizer(
            prompt, padding="max_length", max_length=16, return_tensors="pt"
        ).input_ids
        assert_near(row[None], tiny.pipe.text_encoder(ids)[0].detach(), 1e-12)


def test_long_prompts_are_refused_not_cut(tiny):
    longest = " ".join(["a"] * 14)
    assert len(tiny.model.tokenize(longest)) == 16
    with pytest.raises(UserError, match="takes 17 tokens, the text encoder reads 16: shorten it"):
        tiny.model.tokenize(longest + " a")


def test_encoding_and_decoding_equal_the_vae(tiny):
    image, vae = uniform(*IMAGE_SHAPE), tiny.pipe.vae
    expected = vae.encode(image[None] * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    assert_near(tiny.model.encode_image(image), expected[0], 1e-12)
    latents = normal(2, *LATENT_SHAPE).requires_grad_()
    images = tiny.model.decode(latents)
    expected = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert images.shape == (2, *IMAGE_SHAPE)
    assert_near(images, expected, 1e-12)
    gradient, truth = (
        torch.autograd.grad(x.square().sum(), latents)[0] for x in (images, expected)
    )
    assert_near(gradient, truth, 1e-12)


def test_predict_takes_a_timestep_per_sample(tiny):
    z, text = normal(2, *LATENT_SHAPE), tiny.model.encode_prompts(["a bag", "a boot"])
    both = tiny.model.predict(z, torch.tensor([900, 1]), text)
    for b, t in enumerate((900, 1)):
        single = tiny.model.predict(z[b : b + 1], torch.tensor([t]), text[b : b + 1])
        assert_near(both[b : b + 1], single, 1e-12)


def test_shapes(tiny):
    assert tiny.model.latent_shape == LATENT_SHAPE
    assert tiny.model.image_size == 16 and tiny.model.text_length == 16
