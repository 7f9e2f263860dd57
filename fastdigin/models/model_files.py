"""Where a diffusion model's files are: a local folder, the hub's cache, or the hub itself.

Nothing tries the network while the files are there, and nothing at all does where HF_HUB_OFFLINE
is set. Whatever is missing is named, together with the command that fetches it.
"""

import difflib
import json
import os
import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from safetensors import safe_open

from fastdigin.errors import UserError
from fastdigin.models.missing import cannot_load, fetching, is_folder, loading, offline
from fastdigin.models.weights import check_names

EMBEDDED = "embedded"
INDEX = "model_index.json"
NETWORKS = {  # component: (library, class, stem of its weights)
    "unet": ("diffusers", "UNet2DConditionModel", "diffusion_pytorch_model"),
    "vae": ("diffusers", "AutoencoderKL", "diffusion_pytorch_model"),
    "text_encoder": ("transformers", "CLIPTextModel", "model"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", "model"),
}
_ONE_TEXT_ENCODER = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
PIPELINES = {
    "StableDiffusionPipeline": _ONE_TEXT_ENCODER,
    "StableDiffusionXLPipeline": (*_ONE_TEXT_ENCODER, "text_encoder_2", "tokenizer_2"),
    "LatentConsistencyModelPipeline": _ONE_TEXT_ENCODER,
}
"""``_class_name`` in model_index.json of what can be loaded -> its components that are used."""

ENDINGS = {  # variant: of one file, or of the index of shards
    None: (".safetensors", ".safetensors.index.json"),
    "fp16": (".fp16.safetensors", ".safetensors.index.fp16.json"),
}

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How attention of a VAE was called when Stable Diffusion 1.x was saved."""


@dataclass(frozen=True)
class ModelFiles:
    """A folder in which nothing is missing.

    index: the contents of model_index.json. variants: network -> "fp16", or None for plain files.
    """

    folder: Path
    index: dict
    variants: dict[str, str | None]


def find_model(source: str, *, half: bool = False) -> ModelFiles:
    """The files of ``"embedded"``, a local folder or a hub id, fetched where they must be.

    Args:
        source: A folder is one as ``pipeline.save_pretrained`` writes it, or one of the hub's
            cache (models--OWNER--NAME).
        half: Prefers weights saved in half precision (*.fp16.safetensors) where there are both.

    Raises:
        UserError: The source is none of these, or of a pipeline that is not supported.
        MissingFiles: Files are not here and cannot be fetched.
    """
    path = Path(os.path.expanduser(source))
    if source == EMBEDDED:
        from fastdigin.embedded import model_folder

        folder, mend = Path(model_folder()), "reinstall fastdigin"
    elif os.path.isdir(path):
        # In the hub's cache layout, the newest snapshot.
        snapshots = path.glob("snapshots/*")
        folder = max(snapshots, key=lambda p: p.stat().st_mtime, default=path)
        mend = (
            f"fetch it again with `hf download OWNER/NAME --local-dir {shlex.quote(source)}`, or "
            "save it with pipeline.save_pretrained()"
        )
    elif os.path.isfile(path):
        kind = "StableDiffusionXLPipeline" if _is_xl(path) else "StableDiffusionPipeline"
        code = f"from diffusers import {kind} as P; P.from_single_file({source!r})"
        code += f".save_pretrained({str(path.with_suffix(''))!r})"
        raise UserError(
            f"model {source!r} is a single file, and only folders of diffusers are read; convert "
            f"it once: python -c {shlex.quote(code)}"
        )
    elif source.count("/") != 1 or is_folder(source):
        similar = difflib.get_close_matches(source, [EMBEDDED])
        hint = " (did you mean 'embedded'?)" if similar else ""
        raise UserError(
            f"model {source!r} is neither 'embedded', nor an existing folder, nor a hub id of the "
            f"form owner/name{hint}"
        )
    else:
        folder, mend = _from_hub(source, half), "its repository does not hold them as safetensors"
    found, missing = _look(source, folder, half)
    if missing:
        raise UserError(
            f"model {source!r} cannot be loaded: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; {mend}"
        )
    _check_folders(source, found)
    return found


def _is_xl(checkpoint: Path) -> bool:
    """Whether a single file holds SDXL; of what is not safetensors nothing is read."""
    if checkpoint.suffix != ".safetensors":
        return False
    with loading(f"'{checkpoint}'", "a file that is whole"), safe_open(checkpoint, "pt") as file:
        return any(name.startswith("conditioner.") for name in file.keys())  # noqa: SIM118


def components(owner: str, pipeline: str) -> tuple[str, ...]:
    """The components of a pipeline's class that are used. UserError for an unknown one."""
    if pipeline not in PIPELINES:
        raise UserError(
            f"{owner} is a {pipeline}; only {', '.join(PIPELINES)} (Stable Diffusion 1.x, 2.x and "
            "XL, their Turbo and LCM models) are supported"
        )
    return PIPELINES[pipeline]


def _from_hub(source: str, half: bool) -> Path:
    """The folder in the hub's cache, fetched from the hub unless it is complete."""
    from huggingface_hub import list_repo_files, snapshot_download, try_to_load_from_cache

    files = "model_index.json and the safetensors, configurations and vocabularies that it names"
    options = ["--include '*.json' --include '*.txt' --include '*/*.safetensors'"]
    options += ["--exclude '*non_ema*'"] + ([] if half else ["--exclude '*.fp16*'"])
    command = fetching(source, *options)
    files = files if command else f"a folder with {files}"
    cached = try_to_load_from_cache(source, INDEX)
    if isinstance(cached, str):
        folder = Path(cached).parent
        _, missing = _look(source, folder, half)
        if not missing:
            return folder
        files = ", ".join(missing)
        command = fetching(source, *map(shlex.quote, missing))
    owner = f"model {source!r}"
    if offline():
        raise cannot_load(owner, files, command)
    with loading(owner, files, command):
        # What a model needs and nothing else: no pickles, other precisions or copies.
        folder = Path(snapshot_download(source, allow_patterns=[INDEX]))
        index = _read_index(source, folder)
        parts = PIPELINES[index["_class_name"]]
        texts = [f"{part}/*.{kind}" for part in parts for kind in ("json", "txt")]
        required, _ = _choose(list_repo_files(source), index, half)
        snapshot_download(source, allow_patterns=[*texts, *required])
        _, shards = _look(source, folder, half)
        if shards:
            snapshot_download(source, allow_patterns=shards)
        return folder


def _look(source: str, folder: Path, half: bool) -> tuple[ModelFiles, list[str]]:
    """What a folder holds, and the names of what it lacks, shards included."""
    index = _read_index(source, folder)
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    required, variants = _choose(names, index, half)
    for name in [n for n in required if ".safetensors.index." in n]:
        shards = _read_json(source, folder / name, "weight_map")["weight_map"].values()
        required += sorted({f"{name.split('/')[0]}/{shard}" for shard in shards})
    missing = [name for name in required if name not in names]
    return ModelFiles(folder, index, variants), missing


def _check_folders(source: str, files: ModelFiles) -> None:
    """Raises UserError where a folder holds another network than the index says, or two."""
    for part, variant in files.variants.items():
        library, kind, stem = NETWORKS[part]
        config = _read_json(source, files.folder / part / "config.json")
        found = config.get("_class_name", kind)
        if library == "diffusers" and found != kind:
            raise UserError(
                f"model {source!r} is not supported: its {part} is a {found} in "
                f"{part}/config.json, and only {kind} can be used"
            )
        one, many = (f"{part}/{stem}{ending}" for ending in ENDINGS[variant])
        if library == "diffusers" and all(
            os.path.isfile(files.folder / name) for name in (one, many)
        ):
            # diffusers would follow it, here to shards that may be absent or older.
            raise UserError(
                f"model {source!r} cannot be loaded: {many} names other files than {one} beside "
                "it; remove the one that is out of date"
            )


def _read_json(source: str, path: Path, *names: str) -> dict:
    """The object in a file of a model, in which ``names`` are objects too."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(part, dict) for part in (content, *(content[name] for name in names))):
            return content
        reason = "it holds no object of names"
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        reason = repr(error)
    raise UserError(
        f"model {source!r} cannot be loaded: '{path.parent.name}/{path.name}' is damaged "
        f"({reason}); fetch it again"
    )


def _read_index(source: str, folder: Path) -> dict:
    path = folder / INDEX
    if not os.path.isfile(path):
        raise UserError(
            f"model folder {source!r} has no model_index.json: it must be a diffusers folder "
            "as written by pipeline.save_pretrained()"
        )
    try:
        index = json.loads(path.read_text())
        pipeline = str(index["_class_name"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"model folder {source!r}: model_index.json is not an index of a diffusers pipeline"
        ) from error
    for part in components(f"model {source!r}", pipeline):
        wanted = list(NETWORKS.get(part, ())[:2])
        if wanted and index.get(part) != wanted:
            raise UserError(
                f"model {source!r} is not supported: its {part} is {index.get(part)} in "
                f"model_index.json, and only {wanted} can be used"
            )
    return index


def _choose(
    names: Collection[str], index: dict, half: bool
) -> tuple[list[str], dict[str, str | None]]:
    """Files a model needs but for shards, and the networks' variants: of ``names`` where it can.

    Of weights, the preferred variant is taken, or the other one; of each, a file before shards.
    """
    required, variants = [], {}
    for part in PIPELINES[index["_class_name"]]:
        if part.startswith("tokenizer"):
            whole = f"{part}/tokenizer.json"
            required += [whole] if whole in names else [f"{part}/vocab.json", f"{part}/merges.txt"]
        elif part == "scheduler":
            required.append("scheduler/scheduler_config.json")
        else:
            stem = f"{part}/{NETWORKS[part][2]}"
            order = ("fp16", None) if half else (None, "fp16")
            choices = [(stem + ending, v) for v in order for ending in ENDINGS[v]]
            missing = (f"{stem}.safetensors", None)
            file, variants[part] = next((c for c in choices if c[0] in names), missing)
            required += [f"{part}/config.json", file]
    return required, variants


def check_headers(source: str, files: ModelFiles) -> None:
    """Raises UserError, naming some, where tensors are missing, of another shape or foreign."""
    for part, variant in files.variants.items():
        owner = f"the {part} of model {source!r}"
        with loading(owner, "safetensors files that are whole"):
            found = _shapes(files.folder / part, NETWORKS[part][2], variant)
            network = _without_weights(part, files.folder / part)
        wanted = {_name(name): tuple(t.shape) for name, t in network.state_dict().items()}
        numbers = {name: torch.Size(shape).numel() for name, shape in wanted.items()}
        missing = [
            name for name in wanted if torch.Size(found.get(name, (0,))).numel() != numbers[name]
        ]
        check_names(owner, network, missing, set(found).difference(wanted))


def _shapes(folder: Path, stem: str, variant: str | None) -> dict[str, tuple[int, ...]]:
    one, many = (folder / f"{stem}{ending}" for ending in ENDINGS[variant])
    files = [one]
    if not os.path.isfile(one):
        files = [folder / name for name in set(json.loads(many.read_text())["weight_map"].values())]
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                found[_name(name)] = tuple(tensors.get_slice(name).get_shape())
    return found


def _without_weights(part: str, folder: Path) -> torch.nn.Module:
    library, kind, _ = NETWORKS[part]
    kind = getattr(import_module(library), kind)
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder))


def _name(name: str) -> str:
    """What a tensor is called today, in either form of CLIP's names."""
    name = name.removeprefix("text_model.")
    old = re.fullmatch(r"(.*attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{old[1]}.{_OLD[old[2]]}.{old[3]}" if old else name
