"""Classifiers: any frozen network that maps normalised square images to logits.

Images go in as the diffusion model makes them, in [0,1] and of any size; resizing and
normalisation are part of the classifier and differentiable.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastdigin.errors import UserError, check_choice
from fastdigin.models.classifiers import outputs
from fastdigin.models.classifiers.names import class_called, class_number, synonyms
from fastdigin.models.classifiers.outputs import Activation, Channels, Named
from fastdigin.models.classifiers.through_relu import ThroughRelu
from fastdigin.models.layers import check_layer, find_head, layer_input, layer_output
from fastdigin.models.passes import called, once, view_of
from fastdigin.models.precision import rescaling
from fastdigin.models.preprocessing import Resizing
from fastdigin.storage import text_hash


class Classifier:
    """A frozen network with what is needed to call it on images in [0,1].

    It runs in the dtype and on the device of the network (see :meth:`to`); results have the dtype
    of the images. :meth:`load` makes one from a text instead.

    Args:
        network: Maps (B,3,size,size), normalised by ``mean`` and ``std``, to logits (B,K), or to an
            object, dict or tuple that holds them. It is frozen and put in evaluation mode, in
            place. Of a model of timm, torchvision or transformers all that follows is known by
            itself; what is given here goes before.
        size: Side of the images that the network takes, in pixels.
        mean, std: Three numbers each, of pixels in [0,1]; one for a gray network.
        classes: The K names. One may list synonyms: "robin, American robin, Turdus migratorius".
            A network with one logit has two classes: the second where the logit is positive. One
            name alone is that of the second.
        activation: "softmax" of classes of which one is true, or "sigmoid" of classes that are
            true or not each for itself (multi-label).
        channels: "rgb", "bgr", or "gray" for a network that takes one channel, the luminance.
        resizing: How images become (size,size); None squashes them by exact area averages.
        layer: Named module of the network whose output holds the neurons; None takes the INPUT of
            the head, the penultimate layer. "NAME:2" is the second of several runs of a module.
        head: Named module that turns features into logits; None takes the last linear layer.
        processor: The image processor of a model of transformers, or the weights (an enum of
            torchvision) of a model of torchvision, that say how images are prepared.
        name: What results and errors call the classifier.

    Raises:
        UserError: ``layer`` or ``head`` is not a module of the network, or nothing tells how images
            are prepared.

    Example:
        >>> classifier = Classifier(timm.create_model("resnet18", pretrained=True))
        >>> classifier.probabilities(torch.rand(1, 3, 300, 400)).shape
        torch.Size([1, 1000])
        >>> own = Classifier(network, size=8, mean=(0.5,) * 3, std=(0.2,) * 3, classes="ab")
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
        activation: Activation | None = None,
        channels: Channels | None = None,
        resizing: Resizing | None = None,
        layer: str | None = None,
        head: str | None = None,
        processor: Any = None,
        name: str = "classifier",
    ):
        if None in (size, mean, std, classes):
            from fastdigin.models.classifiers.wrapped import completed  # imports its library

            found = completed(
                network, processor, name, size=size, mean=mean, std=std, classes=classes,
                activation=activation, channels=channels, resizing=resizing, head=head,
            )  # fmt: skip
            self.__init__(**found.arguments, layer=layer, name=name)
            return
        self.network = network.eval().requires_grad_(False)
        self.size = size
        self.resizing = resizing or Resizing()
        self.classes = outputs.both_names(tuple(classes))
        self.activation, self.channels = activation or "softmax", channels or "rgb"
        self.layer = layer
        self.name = name
        self.named: Named = "own"  # or guessed, or mere numbers
        self.through_relu = False
        self._said: set[str] = set()
        self._normalisation = tuple(mean), tuple(std)  # numbers: keys wait for no device
        self._mean_c11, self._std_c11 = (
            torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (mean, std)
        )
        check_choice("activation", self.activation, outputs.ACTIVATIONS)
        check_choice("channels", self.channels, outputs.CHANNELS)
        for module in filter(None, (layer, head)):
            check_layer(network, module, name)
        self._head = head or find_head(network)
        self.to(self.device)

    @classmethod
    def load(
        cls,
        spec: str,
        *,
        classes: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
    ) -> Classifier:
        """A classifier by name, on the CPU in float32, with its own preprocessing and class names.

        Args:
            spec: embedded:NAME, one of the packaged classifiers, or embedded:FOLDER, one that
                ``python -m fastdigin.embedded.worlds`` trained; timm:NAME, also
                timm:local-dir:FOLDER or timm:hf-hub:ID; torchvision:NAME[.WEIGHTS], for example
                resnet50.IMAGENET1K_V1; hf:ID_OR_FOLDER, image classification of transformers;
                open_clip:MODEL/PRETRAINED, zero-shot, where PRETRAINED is a tag or a file, or
                open_clip:FOLDER or open_clip:hf-hub:ID; file:PATH@ARCHITECTURE, weights for
                timm:NAME or torchvision:NAME. "sigmoid:" before it says that the classes are true
                or not each for itself, where nothing in its files does.
            classes: Names to use instead, one per logit; zero-shot, any (default: ImageNet's).
            templates: A zero-shot classifier's prompts, with ``{}`` for the class.

        Returns:
            The classifier, whose neurons are the input of its head (see :meth:`at_layer`).

        Raises:
            Missing: Weights or packages are not here; the message names the command that gets them.
            UserError: The text is not understood, or the weights are not whole or not finite.

        Example:
            >>> classifier = Classifier.load("embedded:clean")
            >>> classifier.class_index("sneaker")
            5
        """
        # Here, because each kind imports its own library, and only when it is asked for.
        from fastdigin.models.classifiers import is_zero_shot, load_network

        loaded = load_network(spec, classes, templates)
        # Results that other prompts made are told apart by the name.
        by = text_hash("\n".join(templates or ()), 8)
        name = f"{spec} with {len(templates)} templates {by}" if templates else spec
        classifier = cls(**loaded.arguments, name=name)
        classifier.named = loaded.named
        renamed = classes is not None and not is_zero_shot(spec)
        return classifier.with_classes(classes) if renamed else classifier

    def at_layer(self, layer: str) -> Classifier:
        """The same classifier with the neurons of another named module; shares the network.

        Raises UserError, with similar names, if the network has no such module.
        """
        other = copy.copy(self)
        other.__dict__.pop("num_neurons", None)  # cached for the old layer
        check_layer(self.network, layer, self.name)
        other.layer = layer
        return other

    def at_classes(self) -> Classifier:
        """The same classifier whose neurons are its classes: their log-odds, log(p / (1 - p)).

        Unlike logits they say which class the classifier prefers; unlike probabilities they have a
        gradient where it is sure. Shares the network.
        """
        other = copy.copy(self)
        other.__dict__.pop("num_neurons", None)  # cached for the old layer
        other.network = outputs.WithLogOdds(
            self.network, len(self.classes), self.activation, self.name
        )
        other.layer, other._head = "log_odds", None
        return other

    def passing_relu(self) -> Classifier:
        """The same classifier for neurons that are off: the gradient goes through their ReLU.

        Shares the network; values are the same (:mod:`fastdigin.models.classifiers.through_relu`).
        """
        other = copy.copy(self)
        other.through_relu = True
        return other

    @property
    def head(self) -> nn.Module | None:
        """What turns the penultimate features into logits; None where it is not known."""
        return None if self._head is None else self.network.get_submodule(self._head)

    def with_classes(self, classes: Sequence[str]) -> Classifier:
        """The same classifier with other names for its K classes; shares the network.

        Raises UserError if they are not K.
        """
        classes = outputs.both_names(tuple(classes))
        if len(classes) != len(self.classes):
            raise UserError(
                f"classes has {len(classes)} names for {self.name}, which tells "
                f"{len(self.classes)} apart: give one name per class"
            )
        other = copy.copy(self)
        other.__dict__.pop("_names", None)  # cached for the old names
        other.classes, other.named, other._said = classes, "own", set()
        return other

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters(), self._mean_c11).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        floating = (p.dtype for p in self.network.parameters() if p.is_floating_point())
        return next(floating, torch.float32)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        """Moves the network, in place; returns self."""
        self.network.to(device=device, dtype=dtype)
        self._mean_c11 = self._mean_c11.to(device)
        self._std_c11 = self._std_c11.to(device)
        return self

    def prepare(self, images_b3hw: Tensor) -> Tensor:
        """(B,3,size,size) in [0,1]: what the network looks at of images of any size."""
        assert images_b3hw.ndim == 4 and images_b3hw.shape[1] == 3, (
            f"images must be (B,3,H,W), got {tuple(images_b3hw.shape)}"
        )
        return self.resizing(images_b3hw, self.size)

    def logits(self, images_b3hw: Tensor, *, prepared: bool = False) -> Tensor:
        """Logits (B,K) of images in [0,1]; differentiable.

        Args:
            images_b3hw: Images of any size.
            prepared: They are (B,3,size,size) already (:meth:`prepare`) and only normalised,
                neither resized nor cropped.

        Raises:
            UserError: The network does not give one logit per class.
        """
        views_b3hw = self._views(images_b3hw, prepared)
        logits, _ = self.look(views_b3hw, features=False)
        if logits is None:  # a pass for the neurons does not mind
            logits, _ = self._run(False, views_b3hw)
        return logits.to(images_b3hw.dtype)

    def probabilities(self, images_b3hw: Tensor) -> Tensor:
        """(B,K), the ``activation`` of the logits of images in [0,1]; differentiable."""
        return outputs.probabilities(self.logits(images_b3hw), self.activation)

    def sees(self, probabilities_k: Tensor, index: int) -> bool:
        """Whether an image of these probabilities shows a class: it is the likeliest one.

        By "sigmoid", where several classes may be true, it is more likely than not.
        """
        if self.activation == "sigmoid":
            return float(probabilities_k[index]) > 0.5
        return int(probabilities_k.argmax()) == index

    def activations(self, images_b3hw: Tensor, *, prepared: bool = False) -> Tensor:
        """Activations (B,F) of the neurons of ``layer`` on images in [0,1]; differentiable.

        A layer of (B,C,H,W) or (B,H,W,C) gives means over space, one of (B,L,C) means over tokens.

        Args:
            images_b3hw, prepared: As for :meth:`logits`.

        Raises:
            UserError: The layer gives no such tensor.
        """
        if self.layer is None and self._head is None:
            raise UserError(
                f"{self.name} has no nn.Linear whose input could be its neurons: name a layer."
            )
        _, features = self.look(self._views(images_b3hw, prepared), features=True)
        if features is None:
            raise UserError(
                f"{self._layer_name} of {self.name} does not give a tensor (B,F), (B,L,C) or "
                "(B,C,H,W): choose another layer."
            )
        return features.to(images_b3hw.dtype)

    @functools.cached_property
    def num_neurons(self) -> int:
        """F, found by running one black image."""
        black = torch.zeros(1, 3, self.size, self.size, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            return self.activations(black, prepared=True).shape[1]

    def check_neuron(self, neuron: int | str) -> int:
        """The neuron's index as int, if the layer has it; UserError with the range otherwise."""
        if not str(neuron).isdecimal() or int(neuron) >= self.num_neurons:
            raise UserError(
                f"neuron {neuron} does not exist: {self.name} has neurons 0 to "
                f"{self.num_neurons - 1} in {self._layer_name}."
            )
        return int(neuron)

    def class_index(self, name_or_index: str | int) -> int:
        """Index of a class given by its whole name, by any of its synonyms, or by the index.

        Upper and lower case, and "_" and " ", are not told apart. A number in a text is an index
        unless a class has that name. Another everyday word ("sneaker" for ImageNet's "running
        shoe") will do, with a warning. Raises UserError with close matches, or with the indices
        among which to choose where several classes have the name.
        """
        if not isinstance(name_or_index, str):
            return class_number(name_or_index, len(self.classes), self.name)
        return class_called(name_or_index, self._names, self.classes, self.name, self._said)

    @functools.cached_property
    def _names(self) -> dict[str, list[int]]:
        """Whole names and synonyms -> the classes that have them."""
        names: dict[str, list[int]] = {}
        for index, name in enumerate(self.classes):
            for alias in synonyms(name):
                names.setdefault(alias, []).append(index)
        return names

    @property
    def _layer_name(self) -> str:
        return f"layer {self.layer}" if self.layer else f"the input of {self._head}"

    @property
    def view_key(self) -> tuple:
        """Classifiers with equal keys look at an image in the same way."""
        return self.resizing, self.size

    @property
    def pass_key(self) -> tuple:
        """Classifiers with equal keys find the same in what they look at."""
        how = *self._normalisation, self.channels, len(self.classes), self.activation
        return id(self.network), self.layer, self._head, self.through_relu, *how

    def look(self, views_b3hw: Tensor, features: bool) -> tuple[Tensor | None, Tensor | None]:
        """One pass over prepared images: the network's output, and its neurons where wanted."""
        return once(
            self.pass_key,
            views_b3hw,
            lambda: self._pass(views_b3hw, features),
            enough=lambda found: found[1] is not None or not features,
        )

    def _views(self, images_b3hw: Tensor, prepared: bool) -> Tensor:
        if prepared:
            return images_b3hw
        return once(view_of(self), images_b3hw, lambda: (self.prepare(images_b3hw),))[0]

    def _pass(self, views_b3hw: Tensor, features: bool) -> tuple[Tensor | None, Tensor | None]:
        return called((self.pass_key, features), functools.partial(self._run, features), views_b3hw)

    def _run(self, features: bool, views_b3hw: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Logits, and the neurons where ``features`` are wanted."""
        run = functools.partial(self._outputs, features)
        wanted = views_b3hw.requires_grad and torch.is_grad_enabled()
        if wanted and self.dtype == torch.float16 and views_b3hw.dtype != self.dtype:
            return tuple(rescaling(views_b3hw, run))
        return run(views_b3hw)

    def _outputs(self, features: bool, views_b3hw: Tensor) -> tuple[Tensor | None, Tensor | None]:
        inputs, returned, found = self._inputs(views_b3hw), [], None
        kind = len(self.classes), self.activation

        def run() -> None:
            with ThroughRelu() if self.through_relu else nullcontext():
                returned.append(self.network(inputs))

        if not features:
            run()
            return outputs.read_logits(returned[0], *kind, self.name), None
        if self.layer is not None:
            found = layer_output(self.network, self.layer, run)
        else:
            found = layer_input(self.network, self._head, run)
        return outputs.find_logits(returned[0], *kind), found

    def _inputs(self, views_b3hw: Tensor) -> Tensor:
        """What the network takes in: its channels, normalised."""
        pixels = outputs.in_channels(views_b3hw, self.channels)
        mean, std = self._mean_c11.to(pixels), self._std_c11.to(pixels)
        return ((pixels - mean) / std).to(self.dtype)
