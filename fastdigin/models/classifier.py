"""Classifiers: any frozen network that maps normalised square images to logits.

Images go in as the diffusion model makes them, in [0,1] and of any size; resampling and
normalisation are part of the classifier and differentiable.
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdigin.errors import UserError
from fastdigin.models.resampling import resample


class Classifier:
    """A frozen network with what is needed to call it on images in [0,1].

    network: maps (B,3,size,size), normalised by ``mean`` and ``std`` (three numbers each), to
        logits (B,K). It is frozen and put in evaluation mode, in place.
    classes: the K names. A name may list synonyms: "robin, American robin, Turdus migratorius".
    layer: named module of the network whose output holds the neurons; None takes the INPUT of the
        last ``nn.Linear``, the penultimate layer of most classifiers.

    It runs in the dtype and on the device of the network (see :meth:`to`); results have the dtype
    of the images.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[str],
        layer: str | None = None,
        name: str = "classifier",
    ):
        self.network = network.eval().requires_grad_(False)
        self.size = size
        self.classes = tuple(classes)
        self.layer = layer
        self.name = name
        self._mean_311 = torch.tensor(mean, dtype=torch.float64).view(3, 1, 1)
        self._std_311 = torch.tensor(std, dtype=torch.float64).view(3, 1, 1)
        if layer is not None:
            self._check_layer(layer)
        self.to(self.device)

    @classmethod
    def load(cls, spec: str, *, classes: Sequence[str] | None = None) -> Classifier:
        """A classifier from the text users write on the command line, on the CPU in float32.

        "embedded:NAME": one of the packaged classifiers. "timm:NAME": a pretrained model of timm,
        with its own input size, normalisation and class names (timm takes safetensors where they
        exist and unpickles nothing but tensors otherwise). "clip:HUB_ID_OR_FOLDER": a CLIP model of
        transformers as a zero-shot classifier of ``classes``, which only it takes.

        Raises UserError if the kind or name is unknown, or the weights cannot be had.
        """
        kind, _, name = spec.partition(":")
        if kind not in ("embedded", "timm", "clip") or not name:
            raise UserError(
                f"classifier {spec!r} is not understood: write embedded:NAME, timm:NAME or "
                "clip:HUB_ID_OR_FOLDER."
            )
        if kind == "clip":
            # Here, because transformers takes seconds to import and other kinds do without it.
            from fastdigin.models.zero_shot import load_zero_shot

            network, config = load_zero_shot(name, classes)
        elif classes is not None:
            raise UserError(
                f"classes were given for classifier {spec!r}, which has its own: leave them out, "
                "or use a zero-shot classifier, clip:HUB_ID_OR_FOLDER."
            )
        elif kind == "embedded":
            from fastdigin.embedded.networks import load_network

            network, config = load_network(name)
        else:
            network, config = _load_timm(name)
        settings = {key: config[key] for key in ("size", "mean", "std", "classes")}
        return cls(network, name=spec, **settings)

    def at_layer(self, layer: str) -> Classifier:
        """The same classifier with the neurons of another named module; shares the network."""
        other = copy.copy(self)
        other.__dict__.pop("num_neurons", None)  # cached for the old layer
        other._check_layer(layer)
        other.layer = layer
        return other

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters(), self._mean_311).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        floating = (p.dtype for p in self.network.parameters() if p.is_floating_point())
        return next(floating, torch.float32)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        """Moves the network, in place; returns self."""
        self.network.to(device=device, dtype=dtype)
        self._mean_311 = self._mean_311.to(device)
        self._std_311 = self._std_311.to(device)
        return self

    def logits(self, images_b3hw: Tensor) -> Tensor:
        """Logits (B,K) of images in [0,1] of any size; differentiable."""
        logits = self.network(self._prepare(images_b3hw)).to(images_b3hw.dtype)
        if logits.ndim != 2 or logits.shape[1] != len(self.classes):
            raise UserError(
                f"classes of {self.name} has {len(self.classes)} names, but its network returns "
                f"{tuple(logits.shape)}: give one name per logit."
            )
        return logits

    def probabilities(self, images_b3hw: Tensor) -> Tensor:
        """Softmax of the logits (B,K)."""
        return torch.softmax(self.logits(images_b3hw), dim=1)

    def activations(self, images_b3hw: Tensor) -> Tensor:
        """Activations (B,F) of the neurons of ``layer`` on images in [0,1]; differentiable.

        A layer of (B,C,H,W) gives means over space, one of (B,L,C) means over tokens.
        """
        captured: list[Tensor] = []
        if self.layer is None:
            handle = self._last_linear.register_forward_pre_hook(
                lambda module, inputs: captured.append(inputs[0])
            )
        else:
            handle = self.network.get_submodule(self.layer).register_forward_hook(
                lambda module, inputs, output: captured.append(output)
            )
        try:
            self.network(self._prepare(images_b3hw))
        finally:
            handle.remove()
        output = captured[-1] if captured else None
        if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
            raise UserError(
                f"layer {self.layer or 'before the last nn.Linear'} of {self.name} does not give a "
                "tensor (B,F), (B,L,C) or (B,C,H,W): choose another layer."
            )
        features = output.to(images_b3hw.dtype)
        if features.ndim == 4:
            return features.mean(dim=(2, 3))
        return features.mean(dim=1) if features.ndim == 3 else features

    @functools.cached_property
    def num_neurons(self) -> int:
        """F, found by running one black image."""
        black = torch.zeros(1, 3, self.size, self.size, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            return self.activations(black).shape[1]

    def check_neuron(self, neuron: int | str) -> int:
        """The neuron's index as int, if the layer has it; UserError with the range otherwise."""
        if not str(neuron).isdecimal() or int(neuron) >= self.num_neurons:
            raise UserError(
                f"neuron {neuron} does not exist: {self.name} has neurons 0 to "
                f"{self.num_neurons - 1} in layer {self.layer or 'before the last nn.Linear'}."
            )
        return int(neuron)

    def class_index(self, name_or_index: str | int) -> int:
        """Index of a class given by its whole name, by any one of its synonyms, or by the index.

        Upper and lower case, and "_" and " ", are not told apart. A number in a text is an index
        unless a class has that name. Raises UserError with close matches, or with the indices among
        which to choose where several classes have the name.
        """
        if not isinstance(name_or_index, str):
            return self._check_class(int(name_or_index))
        found = self._names.get(_plain(name_or_index), [])
        if not found and name_or_index.strip().isdecimal():
            return self._check_class(int(name_or_index))
        if len(found) == 1:
            return found[0]
        if found:
            choices = "; ".join(f"{index} ({self.classes[index]})" for index in found)
            raise UserError(
                f"class {name_or_index!r} of {self.name} is ambiguous: give one of the indices "
                f"{choices}."
            )
        close = difflib.get_close_matches(_plain(name_or_index), self._names, n=3)
        hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else "."
        known = f" Its classes: {', '.join(self.classes)}." if len(self.classes) <= 20 else ""
        raise UserError(f"class {name_or_index!r} is not a class of {self.name}{hint}{known}")

    @functools.cached_property
    def _names(self) -> dict[str, list[int]]:
        """Whole names and synonyms -> the classes that have them."""
        names: dict[str, list[int]] = {}
        for index, name in enumerate(self.classes):
            for alias in {_plain(alias) for alias in (name, *name.split(","))}:
                names.setdefault(alias, []).append(index)
        return names

    @functools.cached_property
    def _last_linear(self) -> nn.Linear:
        linear = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UserError(
                f"{self.name} has no nn.Linear whose input could be its neurons: name a layer."
            )
        return linear[-1]

    def _prepare(self, images_b3hw: Tensor) -> Tensor:
        assert images_b3hw.ndim == 4 and images_b3hw.shape[1] == 3, (
            f"images must be (B,3,H,W), got {tuple(images_b3hw.shape)}"
        )
        images = resample(images_b3hw, self.size)
        mean, std = self._mean_311.to(images), self._std_311.to(images)
        return ((images - mean) / std).to(self.dtype)

    def _check_class(self, index: int) -> int:
        if not 0 <= index < len(self.classes):
            raise UserError(
                f"class {index} does not exist: {self.name} has classes 0 to "
                f"{len(self.classes) - 1}."
            )
        return index

    def _check_layer(self, layer: str) -> None:
        names = [name for name, _ in self.network.named_modules() if name]
        if layer in names:
            return
        similar = difflib.get_close_matches(layer, names, n=5, cutoff=0.4) or names[-5:]
        raise UserError(
            f"layer {layer!r} is not a module of {self.name}; similar ones: {', '.join(similar)}."
        )


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _load_timm(name: str) -> tuple[nn.Module, dict]:
    """A pretrained timm model and its size, mean, std and classes."""
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"classifier 'timm:{name}' needs the package timm: pip install 'fastdigin[timm]'."
        ) from error
    if ":" not in name and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        close = close or timm.list_models(f"*{name.split('.')[0]}*")[:3]
        hint = f"; did you mean {', '.join(close)}?" if close else ": see timm.list_models()."
        raise UserError(f"classifier 'timm:{name}' is not a model of timm{hint}")
    try:
        network = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the weights of classifier 'timm:{name}' could not be loaded "
            f"({_first_sentence(error)}): check the name's tag and the connection to the "
            "Hugging Face hub, or save them once and use timm:local-dir:FOLDER."
        ) from error
    data = timm.data.resolve_model_data_config(network)
    config = {"size": data["input_size"][-1], "mean": data["mean"], "std": data["std"]}
    return network, config | {"classes": _timm_classes(network)}


def _timm_classes(network: nn.Module) -> tuple[str, ...]:
    """The names that came with the weights, else ImageNet's by their number, else the indices."""
    import timm.data

    cfg = network.pretrained_cfg
    names, descriptions = cfg.get("label_names"), cfg.get("label_descriptions")
    if names:
        return tuple(str((descriptions or {}).get(name, name)) for name in names)
    subset = timm.data.infer_imagenet_subset(network)
    if subset:
        return tuple(timm.data.ImageNetInfo(subset).label_descriptions())
    return tuple(str(index) for index in range(network.num_classes))


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".")
