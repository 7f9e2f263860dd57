"""From a prompt to tokens and embeddings, with one or two text encoders of CLIP."""

from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor, nn

from fastdigin.errors import UserError


def token_ids(
    owner: str, tokenizer: Any, encoder: nn.Module, length: int, prompt: str
) -> list[int]:
    """``length`` token ids, padded. UserError for more, and for one the encoder does not know."""
    ids = tokenizer(expanded(tokenizer, prompt), padding="max_length", max_length=length).input_ids
    if len(ids) > length:
        raise UserError(
            f"prompt {prompt!r} takes {len(ids)} tokens, the text encoder reads {length}: shorten "
            "it"
        )
    if max(ids) >= encoder.config.vocab_size:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise UserError(
            f"prompt {prompt!r} has {token!r}, for which the text encoder of model {owner!r} has "
            "no embedding: load it into both tokenizer and text encoder "
            "(pipe.load_textual_inversion), or leave the word out"
        )
    return ids


def expanded(tokenizer: Any, prompt: str) -> str:
    """The prompt with every word of textual inversion followed by the rest of its vectors.

    UserError for a prompt with half a character, as a name of a file that is not UTF-8 has.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"prompt {prompt!r} holds a lone surrogate, which is no text: write it anew"
        ) from None
    return TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)


@torch.no_grad()
def embeddings(
    ids: list[int], encoder: nn.Module, ids_2: list[int] | None, encoder_2: nn.Module | None
) -> tuple[Tensor, Tensor | None]:
    """Embeddings (L, D) of one prompt and, with a second text encoder, pooled ones (P,)."""
    first = torch.tensor([ids], device=encoder.device)
    if encoder_2 is None:
        return encoder(first)[0][0], None
    one = encoder(first, output_hidden_states=True)
    two = encoder_2(torch.tensor([ids_2], device=encoder_2.device), output_hidden_states=True)
    # The last layer but one, without the final norm (SDXL, Podell et al. 2023, section 2.1).
    text = torch.cat([one.hidden_states[-2][0], two.hidden_states[-2][0]], dim=-1)
    return text, two.text_embeds[0]
