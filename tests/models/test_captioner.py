"""Image-to-text models: against transformers' own calls, from folders in the hub's layout."""

import pytest
import torch
from captioners import KINDS, save_captioner
from loaders import hub_snapshot
from photos import as_tensor, photo
from PIL import ImageChops
from transformers import AutoImageProcessor as ImageProcessor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, LlavaProcessor

from fastdigin.errors import UserError
from fastdigin.models.captioner import DESCRIBE, Captioner

PHOTOS = [ImageChops.multiply(photo(40 + 7 * n, 60, seed=n), photo(40 + 7 * n, 60, seed=9))
          for n in range(4)]  # fmt: skip
IMAGES = [as_tensor(image)[0] for image in PHOTOS]
GREEDY = {"max_new_tokens": 30, "do_sample": False, "num_beams": 1}


@torch.no_grad()
def own_words(kind, network, folder, image):
    """The library's recipe for one picture."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind != "llava":
        pixels = ImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
        tokens = network.generate(pixel_values=pixels, **GREEDY)[0]
    else:
        text = f"user <image> {DESCRIBE} assistant"
        processor = LlavaProcessor.from_pretrained(folder)
        inputs = processor(images=image, text=text, return_tensors="pt")
        tokens = network.generate(**inputs, **GREEDY)[0, inputs.input_ids.shape[1] :]
    return " ".join(tokenizer.decode(tokens, skip_special_tokens=True).split())


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_the_librarys_own(tmp_path, kind):
    network = save_captioner(kind, tmp_path)
    captioner = Captioner.load(str(tmp_path))
    captions = captioner.captions(IMAGES)
    assert captions == [own_words(kind, network, tmp_path, image) for image in PHOTOS]
    assert len(set(captions)) > 1
    assert (captioner.processor is not None) == (kind == "llava")
    assert captions[2:] == captioner.captions(IMAGES[2:])
    assert not any(p.requires_grad for p in captioner.network.parameters())


def test_questions_are_heard(tmp_path):
    save_captioner("llava", tmp_path)
    captioner = Captioner.load(str(tmp_path))
    questions = ("a red boot", "name two dress")
    assert len({tuple(captioner.answers(IMAGES, q)) for q in questions}) == 2


def test_a_cached_model_is_loaded_offline(no_network):
    save_captioner("blip", hub_snapshot("someone/blip"))
    assert Captioner.load("someone/blip").name == "someone/blip"


def test_folders_without_the_right_files(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded .*give a hub id or a folder"):
        Captioner.load(str(tmp_path))
    save_captioner("git", tmp_path / "git")
    (tmp_path / "git" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        Captioner.load(str(tmp_path / "git"))
    (tmp_path / "git" / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(UserError, match="cannot be loaded"):
        Captioner.load(str(tmp_path / "git"))
    (tmp_path / "clip").mkdir()
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPModel(CLIPConfig(text_config=small, vision_config=small)).save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="of an image-to-text model"):
        Captioner.load(str(tmp_path / "clip"))
