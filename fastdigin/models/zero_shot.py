"""CLIP as a classifier of any list of words (Radford et al. 2021, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from fastdigin.errors import UserError

PROMPT = "a photo of a {}"


class ZeroShotNetwork(nn.Module):
    """CLIP's image tower and, as its last linear layer, the embeddings of the class prompts.

    forward: normalised pixels (B,3,size,size) -> logits (B,K), the cosine similarities times CLIP's
    learned scale. The input of ``head``, a unit vector per image, is the layer of neurons.
    """

    def __init__(self, model: CLIPModel, text_kf: Tensor):
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection
        self.head = nn.Linear(text_kf.shape[1], text_kf.shape[0], bias=False)
        unit = nn.functional.normalize(text_kf, dim=1)
        self.head.weight.data = model.logit_scale.detach().exp() * unit

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        image_bf = self.visual_projection(self.vision_model(pixel_values=pixels_b3hw).pooler_output)
        return self.head(nn.functional.normalize(image_bf, dim=1))


def load_zero_shot(source: str, classes: Sequence[str] | None) -> tuple[ZeroShotNetwork, dict]:
    """A zero-shot network and its size, mean, std and classes.

    source: hub id or folder of a ``transformers.CLIPModel`` in safetensors with its tokenizer. The
    normalisation is the one saved with it, else OpenAI's, which all published CLIP models share.
    Raises UserError if there are no classes or the model cannot be loaded.
    """
    if not classes:
        raise UserError(
            f"classifier 'clip:{source}' is zero-shot and needs classes: give the names to choose "
            "from."
        )
    try:
        model = CLIPModel.from_pretrained(source, use_safetensors=True).eval()
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"classifier 'clip:{source}' could not be loaded: give the hub id (and a connection to "
            "the hub) or the folder of a CLIPModel with safetensors weights and its tokenizer."
        ) from error
    mean, std = _normalisation(source)
    config = {"size": model.config.vision_config.image_size, "mean": mean, "std": std}
    network = ZeroShotNetwork(model, embed_prompts(model, tokenizer, classes))
    return network, config | {"classes": tuple(classes)}


@torch.no_grad()
def embed_prompts(model: CLIPModel, tokenizer: CLIPTokenizer, classes: Sequence[str]) -> Tensor:
    """Text embeddings (K,F) of "a photo of a {class}", not normalised."""
    tokens = tokenizer(
        [PROMPT.format(name) for name in classes],
        padding=True,
        truncation=True,
        max_length=model.config.text_config.max_position_embeddings,
        return_tensors="pt",
    )
    text = model.text_model(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
    ).pooler_output
    return model.text_projection(text)


def _normalisation(source: str) -> tuple[Sequence[float], Sequence[float]]:
    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:  # saved without one
        config = {}
    return config.get("image_mean", OPENAI_CLIP_MEAN), config.get("image_std", OPENAI_CLIP_STD)
