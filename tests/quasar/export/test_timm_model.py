import dataclasses

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform, resolve_model_data_config
from timm.utils import accuracy

import quasar.timm_model  # noqa: F401  (registers the model)
from hwmodel.errors import DamagedInputError, UsageError
from quasar.export.bundle import load_bundle
from quasar.export.write import write_bundle
from supernet.data.config import DataConfig
from supernet.data.digits import load
from supernet.data.splits import open_test

#: timm's readers leave it to the garbage collector to close files
leaves_files_open = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning",
    "ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(scope="module")
def wide(space):
    """Images of 24 pixels are prepared, the network takes 16."""
    return dataclasses.replace(space, image_size=(16, 24), depth=(2,))


@pytest.fixture(scope="module")
def folder(make_module, make_info, wide, tmp_path_factory):
    subnet = dataclasses.replace(wide.largest(), image_size=16)
    module, x = make_module(subnet, space=wide, images=8)
    info = make_info(subnet, data=DataConfig(name="folder"), training_image_size=24)
    return write_bundle(module, tmp_path_factory.mktemp("timm") / "bundle", info=info, images=x, formats=())


@pytest.fixture(scope="module")
def digits_folder(make_module, make_info, space, tmp_path_factory):
    space = dataclasses.replace(space, in_chans=1, patch_size=2, image_size=(8,), depth=(1,))
    module, x = make_module(space.largest(), space=space, images=8)
    test = open_test(DataConfig(name="digits"), image_size=8)
    info = make_info(space.largest(), mean=test.normalization.mean, std=test.normalization.std, training_image_size=8)
    return write_bundle(module, tmp_path_factory.mktemp("timm") / "digits", info=info, images=x, formats=())


@pytest.fixture(scope="module")
def images_root(tmp_path_factory):
    """Ten classes of images of odd sizes, in timm's and torchvision's layout."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(10):
            place = root / part / f"class {label}"
            place.mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, (37 + label, 61 - label, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    return root


@torch.inference_mode()
def assert_same_outputs(model, folder):
    """Bit for bit those of the extracted subnet, for images of the training's size and of the network's own."""
    module = load_bundle(folder).module()
    for size in (load_bundle(folder).config.training_image_size, module.subnet.image_size):
        x = torch.randn(5, module.subnet.in_chans, size, size)
        assert torch.equal(model(x), module(x))


def test_the_bundle_is_an_argument(folder):
    model = timm.create_model("quasar_vit", bundle=folder)
    assert not model.training
    assert (model.num_classes, model.num_features) == (10, 40)
    assert_same_outputs(model, folder)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_bundle_is_a_folder_of_timm(folder, pretrained):
    model = timm.create_model(f"local-dir:{folder}", pretrained=pretrained)
    assert model.pretrained_cfg["architecture"] == "quasar_vit"
    assert_same_outputs(model, folder)


def test_grey_images_of_8_pixels(digits_folder):
    assert_same_outputs(timm.create_model(f"local-dir:{digits_folder}", num_classes=10, in_chans=1), digits_folder)


def test_images_of_224_pixels(make_module, make_info, space, tmp_path):
    space = dataclasses.replace(space, image_size=(224,), patch_size=32, depth=(1,), num_classes=1000)
    module, x = make_module(space.largest(), space=space, images=2)
    info = make_info(space.largest(), training_image_size=224)
    folder = write_bundle(module, tmp_path / "bundle", info=info, images=x, formats=())
    model = timm.create_model("quasar_vit", bundle=folder)
    assert resolve_model_data_config(model)["input_size"] == (3, 224, 224)
    assert_same_outputs(model, folder)


@torch.inference_mode()
def test_the_network_in_two_halves(folder):
    model, x = timm.create_model("quasar_vit", bundle=folder), torch.randn(5, 3, 16, 16)
    tokens = model.forward_features(x)
    assert tokens.shape == (5, 17, 40)
    assert torch.equal(model.forward_head(tokens), model(x))
    features = model.forward_head(tokens, pre_logits=True)
    assert torch.equal(model.get_classifier().active()(features), model(x))


def test_the_state_dict_is_the_file(folder, tmp_path):
    model, path = timm.create_model("quasar_vit", bundle=folder), folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    # so timm can load other weights of the same shapes
    state["head.bias"] = state["head.bias"] + 1
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    other = timm.create_model("quasar_vit", bundle=folder, checkpoint_path=tmp_path / "other.safetensors")
    assert torch.equal(other.state_dict()["head.bias"], own["head.bias"] + 1)


@leaves_files_open
def test_transforms_give_the_pixels_of_the_test_split(folder, images_root):
    model = timm.create_model("quasar_vit", bundle=folder)
    transform = create_transform(**resolve_model_data_config(model))
    dataset = create_dataset("", root=images_root, split="val", transform=transform)
    config = DataConfig(name="folder", root=str(images_root), mean=(0.5,) * 3, std=(0.25,) * 3)
    ((x, labels),) = open_test(config, image_size=24).batches(20)
    ours = {(int(label), image.numpy().tobytes()) for image, label in zip(x, labels, strict=True)}
    assert {(label, image.numpy().tobytes()) for image, label in dataset} == ours
    assert len(ours) == 20


def test_transforms_of_data_in_memory(digits_folder):
    transform = create_transform(**resolve_model_data_config(timm.create_model("quasar_vit", bundle=digits_folder)))
    samples = load(DataConfig(name="digits"), "test")
    chosen = load_bundle(digits_folder).config
    for pixels in samples.images[:4]:
        normalised = (pixels / 255 - chosen.mean[0]) / chosen.std[0]
        np.testing.assert_allclose(transform(Image.fromarray(pixels[0])).numpy(), normalised, rtol=1e-5, atol=1e-6)


@leaves_files_open
@torch.inference_mode()
def test_accuracy_as_timm_validates(folder, images_root):
    model = timm.create_model(f"local-dir:{folder}")
    config = resolve_model_data_config(model)
    loader = create_loader(
        create_dataset("", root=images_root, split="val"),
        batch_size=8,
        use_prefetcher=False,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
        **config,
    )
    outputs = [(model(x), y) for x, y in loader]
    split = open_test(DataConfig(name="folder", root=str(images_root), mean=(0.5,) * 3, std=(0.25,) * 3), image_size=24)
    module = load_bundle(folder).module()
    expected = [(module(x), y) for x, y in split.batches(8)]
    assert sum(len(y) for _, y in outputs) == 20
    shares = [sum(float(accuracy(x, y)[0]) * len(y) for x, y in pairs) / 20 for pairs in (outputs, expected)]
    assert shares[0] == pytest.approx(shares[1])
    labels = [torch.cat([x.argmax(dim=1) for x, _ in pairs]).bincount(minlength=10) for pairs in (outputs, expected)]
    assert torch.equal(*labels)


def test_what_the_network_cannot_do_is_said(folder):
    with pytest.raises(
        UsageError, match=r"give the folder of a bundle: timm.create_model\('quasar_vit', bundle=FOLDER"
    ):
        timm.create_model("quasar_vit")
    with pytest.raises(UsageError, match="its network has num_classes=10, and it cannot be made for 5"):
        timm.create_model("quasar_vit", bundle=folder, num_classes=5)
    with pytest.raises(UsageError, match="img_size=24, and it cannot be made for 16"):
        timm.create_model("quasar_vit", bundle=folder, img_size=16)
    with pytest.raises(UsageError, match="takes no argument 'drop_rate'"):
        timm.create_model("quasar_vit", bundle=folder, drop_rate=0.1)
    with pytest.raises(NotImplementedError, match="integer weights, so it cannot get another classifier"):
        timm.create_model("quasar_vit", bundle=folder, img_size=(24, 24)).reset_classifier(5)


def test_a_damaged_bundle_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(DamagedInputError, match=r"model\.safetensors: was changed after the export"):
        timm.create_model(f"local-dir:{copy}")
