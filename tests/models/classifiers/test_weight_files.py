import pytest
import torch
import torchvision
from safetensors.torch import save_file

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier


def make_resnet(**options):
    torch.manual_seed(3)
    return torchvision.models.resnet18(weights=None, **options).eval()


def spec(path, architecture="torchvision:resnet18"):
    return f"file:{path}@{architecture}"


@pytest.fixture(scope="module")
def resnet():
    return make_resnet()


def check(classifier, model):
    images = torch.rand(1, 3, 224, 224)
    mean, std = (classifier._mean_c11.float(), classifier._std_c11.float())
    with torch.no_grad():
        expected = model((images - mean) / std)
        torch.testing.assert_close(classifier.logits(images, prepared=True), expected)


@pytest.mark.parametrize(
    ("prefix", "entry"),
    [("", None), ("module.", "state_dict"), ("module.model.", "model"), ("net.", None)],
)
def test_prefixes_and_entries_of_checkpoints(tmp_path, resnet, prefix, entry):
    """robustness keeps "module.model." under "model", beside a copy for attacks and a mean."""
    state = {prefix + k: v for k, v in resnet.state_dict().items()}
    if entry == "model":
        state |= {f"module.attacker.model.{k}": 0 * v for k, v in resnet.state_dict().items()}
        state["module.normalizer.new_mean"] = torch.zeros(3, 1, 1)
    checkpoint = {entry: state, "epoch": 60, "arch": "resnet18"} if entry else state
    torch.save(checkpoint, tmp_path / "robust.pth.tar")
    classifier = Classifier.load(spec(tmp_path / "robust.pth.tar"))
    check(classifier, resnet)
    assert classifier.class_index("robin") == 15 and classifier.num_neurons == 512


def test_safetensors_without_batch_counts(tmp_path, resnet):
    state = {k: v for k, v in resnet.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "old.safetensors")
    check(Classifier.load(spec(tmp_path / "old.safetensors")), resnet)


def test_another_number_of_classes(tmp_path):
    model = make_resnet(num_classes=7)
    torch.save(model.state_dict(), tmp_path / "cub@home.pth")  # only the last @ separates
    classifier = Classifier.load(spec(tmp_path / "cub@home.pth"))
    check(classifier, model)
    assert classifier.classes == tuple("0123456")
    named = Classifier.load(spec(tmp_path / "cub@home.pth"), classes=list("abcdefg"))
    assert named.class_index("b") == 1


def test_weights_of_another_architecture(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"its weights lack layer1.2.*name the model"):
        Classifier.load(spec(tmp_path / "w.pth", "torchvision:resnet34"))
    wrong = resnet.state_dict() | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    torch.save(wrong, tmp_path / "w.pth")
    words = r"size mismatch for conv1.weight.*64, 3, 3, 3.*64, 3, 7, 7.*name the architecture"
    with pytest.raises(UserError, match=words):
        Classifier.load(spec(tmp_path / "w.pth"))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": {}, "network": torch.nn.Linear(1, 1)}, tmp_path / "module.pth")
    for name, words in (
        ("none.pth", "do not exist: check the path"),
        ("none.safetensors", "do not exist: check the path"),
        ("text.pth", "hold more than tensors|cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("list.pth", "hold no named tensors"),
        ("module.pth", "hold more than tensors.*convert it once"),
    ):
        with pytest.raises(UserError, match=words):
            Classifier.load(spec(tmp_path / name))
