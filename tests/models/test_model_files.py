"""Finding a model's files: folders, the hub's cache, the hub; and saying what is missing."""

import json
import re
import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from families import save_family
from huggingface_hub import constants
from loaders import hub_snapshot
from safetensors.torch import load_file, save_file

from fastdigin.embedded import model_folder
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.model_files import find_model

ID = "someone/some-model"


@pytest.fixture
def cached(no_network):
    """A snapshot of the packaged model in the hub's cache, under ID: (repository, snapshot)."""
    snapshot = Path(shutil.copytree(model_folder(), hub_snapshot(ID)))
    return snapshot.parents[1], snapshot


def refused(source, **options):
    with pytest.raises(UserError) as error:
        find_model(str(source), **options)
    message = str(error.value)
    assert str(source) in message and "\n" not in message
    return message


@pytest.mark.parametrize("offline", [True, False])
def test_a_complete_model_needs_no_network_even_online(cached, monkeypatch, offline, embedded):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    model = LatentDiffusion.from_pretrained(ID, device="cpu")
    assert model.name == ID and find_model(str(cached[0])).folder == cached[1]
    weights, expected = (m.unet.state_dict() for m in (model, embedded))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_offline_and_not_cached(no_network):
    message = refused(ID)
    assert "HF_HUB_OFFLINE forbids fetching" in message
    assert f"'hf download {ID} --include '*.json'" in message and "--exclude '*.fp16*'" in message
    assert "fp16" not in refused(ID, half=True)


def test_offline_and_incomplete(cached):
    files = ["unet/config.json", "vae/diffusion_pytorch_model.safetensors"]
    for file in files:
        (cached[1] / file).unlink()
    message = refused(ID)
    assert f"HF_HUB_OFFLINE forbids fetching: {', '.join(files)}" in message
    assert f"'hf download {ID} {' '.join(files)}' fetches them" in message


def test_every_missing_file_of_a_folder_is_named(tmp_path):
    folder = save_family("sdxl", tmp_path / "model")
    names = [
        f"{part}/{file}"
        for part, stem in (
            ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"),
            ("text_encoder", "model"), ("text_encoder_2", "model"),
        )
        for file in ("config.json", f"{stem}.safetensors")
    ]  # fmt: skip
    for part in ("tokenizer", "tokenizer_2"):
        (folder / part / "tokenizer.json").unlink(missing_ok=True)
        names += [f"{part}/vocab.json", f"{part}/merges.txt"]
    for name in [*names, "scheduler/scheduler_config.json"]:
        (folder / name).unlink(missing_ok=True)
        message = refused(folder)
        assert name in message and f"`hf download OWNER/NAME --local-dir {folder}`" in message


def test_half_precision_files(tmp_path):
    """Taken where there are no others, and preferred for networks in half precision."""
    folder = Path(shutil.copytree(model_folder(), tmp_path / "model"))
    single = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(single)
    halved = {name: (2 * value).half() for name, value in weights.items()}  # told apart by the 2
    save_file(halved, single.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    name = next(iter(weights))

    def taken(**options):
        unet = LatentDiffusion.from_pretrained(str(folder), device="cpu", **options).unet
        factor = unet.state_dict()[name].float().norm() / weights[name].norm()
        return {1: "single", 2: "half"}[round(float(factor))]

    assert (taken(), taken(dtype=torch.float16), taken(dtype=torch.bfloat16)) == (
        "single", "half", "half"
    )  # fmt: skip
    single.unlink()
    assert taken() == "half"


@pytest.fixture
def hub(no_network, monkeypatch, tmp_path):
    """A hub of one repository: (its folder, the names that were fetched)."""
    remote, fetched = Path(shutil.copytree(model_folder(), tmp_path / "remote")), []
    for extra in ("unet/diffusion_pytorch_model.bin", "model.ckpt", "README.md",
                  "unet/diffusion_pytorch_model.non_ema.safetensors"):  # fmt: skip
        (remote / extra).write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def names(source):
        assert source == ID
        return [p.relative_to(remote).as_posix() for p in remote.rglob("*") if p.is_file()]

    def download(source, allow_patterns):
        for name in names(source):
            target = hub_snapshot(source) / name
            if not target.is_file() and any(fnmatch(name, p) for p in allow_patterns):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(remote / name, target)
                fetched.append(name)
        return str(hub_snapshot(source))

    monkeypatch.setattr(huggingface_hub, "list_repo_files", names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return remote, fetched


def test_only_what_is_needed_is_fetched_and_only_once(hub):
    model = LatentDiffusion.from_pretrained(ID, device="cpu")
    assert model.latent_shape == (4, 16, 16)
    remote, fetched = hub
    unwanted = {"unet/diffusion_pytorch_model.bin", "model.ckpt", "README.md",
                "unet/diffusion_pytorch_model.non_ema.safetensors"}  # fmt: skip
    assert unwanted.isdisjoint(fetched)
    for part in ("unet", "vae"):
        assert f"{part}/diffusion_pytorch_model.safetensors" in fetched
    assert "tokenizer/tokenizer_config.json" in fetched
    count = len(fetched)
    LatentDiffusion.from_pretrained(ID, device="cpu")
    assert len(fetched) == count


def test_a_repository_without_safetensors(hub):
    (hub[0] / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert re.search("unet/diff.*safetensors is missing.*not hold them as safet", refused(ID))


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    def broken(*args, **kwargs):
        raise ConnectionError("no route to host. Try later.\nTrace.")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", broken)
    assert re.search(f"could not be fetched.*no route to host\\).*hf download {ID}", refused(ID))


def test_shards(hub, embedded):
    """Those that an index names are fetched; one that is missing is named."""
    remote, fetched = hub
    (remote / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    embedded.unet.save_pretrained(remote / "unet", max_shard_size="2MB")
    unet = LatentDiffusion.from_pretrained(ID, device="cpu").unet.state_dict()
    assert all(torch.equal(unet[k], v) for k, v in embedded.unet.state_dict().items())
    shards = [name for name in fetched if "-of-" in name]
    assert len(shards) > 2
    (remote / shards[1]).unlink()
    assert f"{shards[1]} is missing" in refused(remote)


def edit_index(folder, **changes):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))


def test_another_kind_of_pipeline_on_the_hub(hub):
    edit_index(hub[0], _class_name="FluxPipeline")
    assert "is a FluxPipeline; only StableDiffusionPipeline," in refused(ID)
    assert hub[1] == ["model_index.json"]


@pytest.mark.parametrize("source", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c", "embeded"])
def test_an_unknown_model(source):
    message = refused(source)
    assert "neither 'embedded', nor an existing folder, nor a hub id" in message
    assert ("did you mean 'embedded'?" in message) == (source == "embeded")


@pytest.mark.parametrize(
    ("file", "tensor", "kind"),
    [
        ("my model.safetensors", "model.diffusion_model.out.0.weight", "StableDiffusionPipeline"),
        ("xl.safetensors", "conditioner.embedders.1.logit_scale", "StableDiffusionXLPipeline"),
        ("old.ckpt", "anything", "StableDiffusionPipeline"),
    ],
)
def test_a_single_file_gets_the_command_that_converts_it(tmp_path, file, tensor, kind):
    save_file({tensor: torch.ones(1)}, tmp_path / file)
    command = refused(tmp_path / file).partition("convert it once: ")[2]
    program = shlex.split(command)[2]
    assert f"import {kind} as P; P.from_single_file('{tmp_path / file}')" in program
    assert program.endswith(f".save_pretrained('{(tmp_path / file).with_suffix('')}')")


@pytest.mark.parametrize("text", ["", "{", "[]", "not json"])
def test_a_missing_or_broken_index(tmp_path, text):
    assert "has no model_index.json" in refused(tmp_path)
    (tmp_path / "model_index.json").write_text(text)
    assert "model_index.json is not an index" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"_class_name": 1', "[" * 100_000])
@pytest.mark.parametrize("name", ["unet/config.json", "text_encoder/config.json"])
def test_a_damaged_description_of_a_network(tmp_path, name, text):
    folder = Path(shutil.copytree(model_folder(), tmp_path / "model"))
    (folder / name).write_text(text)
    assert f"'{name}' is damaged" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "is a StableDiffusionInpaintPipeline"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "its vae is .*AutoencoderTiny.* and only"),
        ({"text_encoder": [None, None]}, "its text_encoder is .*None"),
    ],
)
def test_classes_that_the_index_names(tmp_path, changes, message):
    folder = Path(shutil.copytree(model_folder(), tmp_path / "model"))
    edit_index(folder, **changes)
    assert re.search(message, refused(folder))


@pytest.mark.parametrize("kind", ["AutoencoderTiny", "AsymmetricAutoencoderKL", "VQModel"])
def test_another_network_in_the_autoencoders_folder(tmp_path, kind):
    """The index says AutoencoderKL, and diffusers would load the folder as one."""
    folder = Path(shutil.copytree(model_folder(), tmp_path / "model"))
    shutil.rmtree(folder / "vae")
    getattr(diffusers, kind)().save_pretrained(folder / "vae")
    assert f"its vae is a {kind} in vae/config.json, and only Auto" in refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_an_index_of_other_files_beside_a_complete_one(tmp_path, part):
    folder = Path(shutil.copytree(model_folder(), tmp_path / "model"))
    (single,) = (folder / part).glob("*.safetensors")
    stale = f"{single.name}.index.json"
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / part / stale).write_text(json.dumps(shards))
    if part == "text_encoder":  # transformers takes the complete file
        LatentDiffusion.from_pretrained(str(folder), device="cpu")
    else:
        assert f"{part}/{stale} names other files than {part}/{single.name}" in refused(folder)


@pytest.mark.parametrize(("part", "family"), [("unet", "sd2"), ("text_encoder", "sdxl")])
def test_weights_of_another_model_in_a_known_architecture(tmp_path, part, family):
    """Of other widths, or with other layers: named, in one line."""
    folder, other = (save_family(n, tmp_path / n) for n in ("sd1", family))
    (weights,) = (other / part).glob("*.safetensors")
    if part == "text_encoder":
        weights = other / "text_encoder_2" / "model.safetensors"
    shutil.copy(weights, folder / part / weights.name)
    with pytest.raises(UserError, match=f"(?s)sd1.*cannot be loaded.*({part}|weight)") as error:
        LatentDiffusion.from_pretrained(str(folder), device="cpu")
    assert "\n" not in str(error.value)
