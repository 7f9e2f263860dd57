"""Where a diffusion model's files are: a local folder, the hub's cache, or the hub itself.

Nothing tries the network while the files are there, and nothing at all does where HF_HUB_OFFLINE
is set. Whatever is missing is named, together with the command that fetches it.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fastdigin.errors import MissingFiles, UserError
from fastdigin.models.missing import first_sentence

EMBEDDED = "embedded"
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "LatentConsistencyModelPipeline",
)
"""``_class_name`` in model_index.json of what can be loaded."""

_INDEX, _HALF = "model_index.json", "fp16"
_NETWORKS = {  # component: stem of its weights
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


@dataclass(frozen=True)
class ModelFiles:
    """A folder in which nothing is missing.

    index: the contents of model_index.json. variants: network -> "fp16", or None for plain files.
    """

    folder: Path
    index: dict
    variants: dict[str, str | None]

    @property
    def is_xl(self) -> bool:
        return self.index["_class_name"] == "StableDiffusionXLPipeline"


def find_model(source: str, *, half: bool = False) -> ModelFiles:
    """The files of ``"embedded"``, a local folder or a hub id, fetched where they must be.

    A folder is one as ``pipeline.save_pretrained`` writes it, or one of the hub's cache
    (models--OWNER--NAME). half: prefers weights saved in half precision (*.fp16.safetensors) where
    there are both. Raises UserError if the source is none of these or files cannot be had.
    """
    if source == EMBEDDED:
        from fastdigin.embedded import model_folder

        return _in_folder(source, Path(model_folder()), half, "reinstall fastdigin")
    path = Path(source).expanduser()
    if path.is_dir():
        mend = (
            f"fetch it again with `hf download OWNER/NAME --local-dir {shlex.quote(source)}`, or "
            "save it with pipeline.save_pretrained()"
        )
        return _in_folder(source, _snapshot(path), half, mend)
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        similar = difflib.get_close_matches(source, [EMBEDDED])
        hint = " (did you mean 'embedded'?)" if similar else ""
        raise UserError(
            f"model {source!r} is neither 'embedded', nor an existing folder, nor a hub id of the "
            f"form owner/name{hint}"
        )
    return _from_hub(source, half)


def _from_hub(source: str, half: bool) -> ModelFiles:
    """From the hub's cache where that is complete, else from the hub."""
    from huggingface_hub import (
        constants,
        list_repo_files,
        snapshot_download,
        try_to_load_from_cache,
    )

    cached = try_to_load_from_cache(source, _INDEX)
    folder = Path(cached).parent if isinstance(cached, str) else None
    if constants.HF_HUB_OFFLINE:
        if folder is None:
            raise MissingFiles(
                f"model {source!r} cannot be loaded: it is not in the hub's cache "
                f"({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set. Fetch it with "
                f"`{_fetch_all(source, half)}` where there is a connection",
                _fetch_all(source, half),
            )
        missing = _missing(folder, _read_index(source, folder), half)
        command = f"hf download {source} {' '.join(map(shlex.quote, missing))}"
        return _in_folder(source, folder, half, f"fetch with `{command}`", command)
    if folder is not None and not _missing(folder, _read_index(source, folder), half):
        return _in_folder(source, folder, half, "")
    try:
        names = list_repo_files(source)
        first = snapshot_download(source, allow_patterns=[_INDEX])
        index = _read_index(source, Path(first))
        wanted = _required(names, index, half)
        extra = [
            n for n in names
            if n.split("/")[0] in index and n.endswith((".json", ".txt")) and n.count("/") == 1
        ]  # fmt: skip
        folder = Path(snapshot_download(source, allow_patterns=[_INDEX, *wanted, *extra]))
    except UserError:
        raise
    except Exception as error:
        raise MissingFiles(
            f"model {source!r} cannot be loaded: it is not complete in the hub's cache and cannot "
            f"be fetched ({first_sentence(error)}). Fetch it with `{_fetch_all(source, half)}` "
            "where there is a connection",
            _fetch_all(source, half),
        ) from error
    return _in_folder(source, folder, half, "its repository does not hold them as safetensors")


def _fetch_all(source: str, half: bool) -> str:
    parts = ["--include '*.json'", "--include '*.txt'", "--include '*/*.safetensors'"]
    parts += ["--exclude '*non_ema*'"] + ([] if half else ["--exclude '*.fp16*'"])
    return f"hf download {source} {' '.join(parts)}"


def _snapshot(path: Path) -> Path:
    """The folder itself, or the newest snapshot of one in the hub's cache layout."""
    if not (path / "snapshots").is_dir() or (path / _INDEX).is_file():
        return path
    main = path / "refs" / "main"
    if main.is_file():
        return path / "snapshots" / main.read_text().strip()
    return max((path / "snapshots").iterdir(), key=lambda p: p.stat().st_mtime, default=path)


def _in_folder(
    source: str, folder: Path, half: bool, mend: str, command: str | None = None
) -> ModelFiles:
    """Raises UserError, with what to do, unless everything is there.

    command: fetches what is missing, where one can.
    """
    index = _read_index(source, folder)
    missing = _missing(folder, index, half)
    if missing:
        message = (
            f"model {source!r} cannot be loaded: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; {mend}"
        )
        raise MissingFiles(message, command) if command else UserError(message)
    names = _names(folder)
    variants = {
        part: _variant(names, part, half) for part in _NETWORKS if part in _components(index)
    }
    return ModelFiles(folder, index, variants)


def _read_index(source: str, folder: Path) -> dict:
    path = folder / _INDEX
    if not path.is_file():
        raise UserError(
            f"model folder {source!r} has no model_index.json: it must be a diffusers folder "
            "as written by pipeline.save_pretrained()"
        )
    try:
        index = json.loads(path.read_text())
        name = index["_class_name"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"model folder {source!r}: model_index.json is not an index of a diffusers pipeline"
        ) from error
    if name not in PIPELINES:
        raise UserError(
            f"model {source!r} is a {name}; only {', '.join(PIPELINES)} (Stable Diffusion 1.x, "
            "2.x and XL, their Turbo and LCM models) are supported"
        )
    return index


def _components(index: dict) -> list[str]:
    parts = ["unet", "vae", "scheduler", "text_encoder", "tokenizer"]
    if index["_class_name"] == "StableDiffusionXLPipeline":
        parts += ["text_encoder_2", "tokenizer_2"]
    return parts


def _missing(folder: Path, index: dict, half: bool) -> list[str]:
    """Required files that a folder does not hold, shards included."""
    names = _names(folder)
    required = _required(names, index, half)
    for name in [n for n in required if ".safetensors.index." in n and n in names]:
        shards = json.loads((folder / name).read_text())["weight_map"].values()
        required += sorted({f"{name.split('/')[0]}/{shard}" for shard in shards})
    return [name for name in dict.fromkeys(required) if name not in names]


def _names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def _required(names: Collection[str], index: dict, half: bool) -> list[str]:
    """Files a model needs, chosen among ``names`` where there is a choice."""
    required = []
    for part in _components(index):
        if part.startswith("tokenizer"):
            whole = f"{part}/tokenizer.json"
            required += [whole] if whole in names else [f"{part}/vocab.json", f"{part}/merges.txt"]
        elif part == "scheduler":
            required.append("scheduler/scheduler_config.json")
        else:
            required.append(f"{part}/config.json")
            single, sharded = _weights(part, _variant(names, part, half))
            required.append(sharded if sharded in names and single not in names else single)
            shards = [n for n in names if n.startswith(f"{part}/") and "-of-" in n]
            if required[-1] == sharded:
                fp16 = _variant(names, part, half) is not None
                required += sorted(
                    n for n in shards if n.endswith(".safetensors") and (_HALF in n) == fp16
                )
    return required


def _weights(part: str, variant: str | None) -> tuple[str, str]:
    """(single file, index of shards) of a network's weights."""
    stem, dot = f"{part}/{_NETWORKS[part]}", f".{variant}" if variant else ""
    return f"{stem}{dot}.safetensors", f"{stem}.safetensors.index{dot}.json"


def _variant(names: Collection[str], part: str, half: bool) -> str | None:
    """The preferred variant if it is there, the other one if that is, None if neither is."""
    for variant in (_HALF, None) if half else (None, _HALF):
        if any(name in names for name in _weights(part, variant)):
            return variant
    return None
