"""Small random image-to-text models, saved as their repositories are."""

from pathlib import Path

import torch
from tiny import draw_weights
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

CORPUS = [
    "a photo of a red sneaker on grass", "two blue bags on a brick wall",
    "a white boot, a green dress and a purple sandal on gravel", "user assistant describe name",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>"]
PAD, BEGIN, END = 0, 2, 3
WIDTH = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32
}  # fmt: skip
PIXELS = {"image_size": 32, "patch_size": 8}
SQUARE = {"height": 32, "width": 32}
KINDS = ("blip", "git", "vit-gpt2", "llava")
SCALE = 3.0  # of the weights: so large that the words depend on the image

CHAT = (
    "{% for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %}"
    "{% endfor %} assistant"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of CORPUS, trained here."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", BEGIN)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[CLS]",
        cls_token="[CLS]", eos_token="[SEP]", sep_token="[SEP]",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def save_captioner(kind: str, folder: Path, seed: int = 1) -> torch.nn.Module:
    """One of KINDS in ``folder``; returns its network."""
    tokenizer = word_tokenizer()
    tokens = {
        "vocab_size": len(tokenizer), "bos_token_id": BEGIN, "eos_token_id": END,
        "pad_token_id": PAD,
    }  # fmt: skip
    network, processor = _BUILDERS[kind](tokens)
    with torch.no_grad():
        draw_weights(network, seed, SCALE)
    network.eval().save_pretrained(folder)
    if kind == "llava":
        LlavaProcessor(
            processor, tokenizer, patch_size=8, vision_feature_select_strategy="default",
            chat_template=CHAT, num_additional_image_tokens=1,
        ).save_pretrained(folder)  # fmt: skip
    else:
        processor.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return network


def _blip(tokens):
    text = {**WIDTH, **tokens, "sep_token_id": END, "encoder_hidden_size": 24,
            "max_position_embeddings": 64}  # fmt: skip
    config = BlipConfig(text_config=text, vision_config={**WIDTH, **PIXELS})
    return BlipForConditionalGeneration(config), BlipImageProcessor(size=SQUARE)


def _git(tokens):
    vision = {**WIDTH, **PIXELS}
    config = GitConfig(vision_config=vision, max_position_embeddings=256, **WIDTH, **tokens)
    return GitForCausalLM(config), CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)


def _vit_gpt2(tokens):
    decoder = GPT2Config(n_embd=24, n_layer=1, n_head=2, n_positions=64, **tokens)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(**WIDTH, **PIXELS), decoder
    )
    network = VisionEncoderDecoderModel(config)
    network.generation_config.decoder_start_token_id = BEGIN
    network.generation_config.pad_token_id = PAD
    return network, ViTImageProcessor(size=SQUARE)


def _llava(tokens):
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**WIDTH, **PIXELS), vision_feature_layer=-1,
        text_config=LlamaConfig(max_position_embeddings=128, **WIDTH, **tokens),
        image_token_index=SPECIAL.index("<image>"),
    )  # fmt: skip
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    return LlavaForConditionalGeneration(config), processor


_BUILDERS = {"blip": _blip, "git": _git, "vit-gpt2": _vit_gpt2, "llava": _llava}
