"""Image-to-text networks of transformers: captions, and answers where they can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fastdigin.models.missing import fetching, loading, without_bars
from fastdigin.models.weights import FrozenNetwork, check_weights

MOST_TOKENS = 30
"""Of a caption. Stable Diffusion reads 75, and the prompt has words of its own."""

DESCRIBE = "Describe the image in one short sentence."


class Captioner(FrozenNetwork):
    """A frozen network that says what images show, the likeliest word at a time.

    Captions depend on the image alone: images go through one at a time.

    Args:
        network: is frozen and put in evaluation mode, in place.
        image_processor, tokenizer: of models that only caption (BLIP, GIT, ViT-GPT2).
        processor: of a model that is asked in a chat (LLaVA, SmolVLM and others); None for models
            that only caption.
        name: in results.

    Example:
        >>> captioner = fd.Captioner.load("Salesforce/blip-image-captioning-base")
    """

    def __init__(
        self, network: nn.Module, image_processor: Any, tokenizer: Any, processor: Any = None,
        name: str = "captioner",
    ):  # fmt: skip
        super().__init__(network, name)
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.processor = processor

    @classmethod
    def load(cls, source: str) -> Captioner:
        """A hub id or a local folder of any image-to-text model, on the CPU in float32.

        Raises UserError where it cannot be had, and for a model of another kind.
        """
        from transformers import (
            AutoImageProcessor,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
        )

        owner = f"captioner {source!r}"
        files = "config.json, preprocessor_config.json, the tokenizer's files and model.safetensors"
        where = (f"a hub id or a folder with {files} of an image-to-text model", None)
        if "/" in source and (command := fetching(source)):
            where = (f"{files} of {source}", command)
        with loading(owner, *where), without_bars():
            # First, because it knows best what is wrong with a model.
            network, info = AutoModelForImageTextToText.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
            image_processor, tokenizer, processor = (
                kind.from_pretrained(source, trust_remote_code=False)
                for kind in (AutoImageProcessor, AutoTokenizer, AutoProcessor)
            )
        check_weights(owner, network, info["missing_keys"], info["unexpected_keys"])
        asked = getattr(processor, "chat_template", None) and hasattr(processor, "image_processor")
        return cls(network, image_processor, tokenizer, processor if asked else None, source)

    def captions(self, images: Sequence[Tensor]) -> list[str]:
        """A sentence for each image (3, H, W) in [0, 1]; empty where the network says nothing."""
        return [self._say(image, DESCRIBE) for image in images]

    def answers(self, images: Sequence[Tensor], question: str) -> list[str]:
        """What the network says of each image when it is asked."""
        assert self.processor is not None, f"{self.name} cannot be asked"
        return [self._say(image, question) for image in images]

    @torch.no_grad()
    def _say(self, image_3hw: Tensor, question: str) -> str:
        picture, start = _picture(image_3hw), 0
        if self.processor is None:
            inputs = self.image_processor(images=picture, return_tensors="pt")
        else:
            content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
            start = inputs["input_ids"].shape[1]
        tokens = self.network.generate(
            **inputs.to(self.device, self.network.dtype), max_new_tokens=MOST_TOKENS,
            do_sample=False, num_beams=1,
        )[0, start:]  # fmt: skip
        return " ".join(self.tokenizer.decode(tokens, skip_special_tokens=True).split())


def _picture(image_3hw: Tensor) -> Image.Image:
    """The processors of transformers take 8 bits."""
    pixels = (255 * image_3hw).round().clamp(0, 255).byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())
