import dataclasses
import shutil

import numpy as np
import pytest
import torch
from dataset_files import CLASSES, message_of, random_image, write_class_folders
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwmodel.errors import DamagedInputError, UsageError
from supernet.data.config import DataConfig
from supernet.data.files import next_of_class
from supernet.data.folder import load
from supernet.data.splits import open_test, open_train


def config(root, **keys) -> DataConfig:
    return DataConfig(name="folder", root=str(root), **keys)


def names(samples) -> set[str]:
    return {samples.source.name(index) for index in range(len(samples.labels))}


@pytest.fixture
def parts(tmp_path):
    write_class_folders(tmp_path / "train")
    write_class_folders(tmp_path / "val", count=3, seed=1)
    return tmp_path


def test_parts_are_sub_folders(parts):
    train, test = load(config(parts), "train"), load(config(parts), "test")
    assert (len(train.labels), len(test.labels)) == (30, 9)
    assert train.classes == test.classes == CLASSES
    assert train.source.name(29) == str(parts / "train" / "cat" / "9.png")
    assert train.labels[29] == 2


def test_class_folders_alone_are_divided_for_good(tmp_path):
    write_class_folders(tmp_path)
    train, test = load(config(tmp_path), "train"), load(config(tmp_path), "test")
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert len(names(train) | names(test)) == 30
    assert names(load(config(tmp_path, split_seed=1), "test")) == names(test)
    for index, label in enumerate(test.labels):
        assert f"/{CLASSES[label]}/" in test.source.name(index)


def test_a_class_may_be_called_train(tmp_path):
    write_class_folders(tmp_path, classes=("car", "train"))
    assert load(config(tmp_path), "train").classes == ("car", "train")


def test_the_test_part_must_be_unambiguous(parts):
    write_class_folders(parts / "test", count=5, seed=2)
    with pytest.raises(UsageError, match=r"there are val, test; choose with data\.test_split"):
        load(config(parts), "test")
    assert len(load(config(parts, test_split="test"), "test").labels) == 15
    with pytest.raises(UsageError, match=r"data\.test_split: .* has no folder 'exam'"):
        load(config(parts, test_split="exam"), "test")
    for name in ("test", "val"):
        shutil.rmtree(parts / name)
    with pytest.raises(UsageError, match="there is none of val, validation and test; add"):
        load(config(parts), "train")


def test_classes_of_both_parts_must_agree(parts):
    (parts / "val" / "cat").rename(parts / "val" / "dog")
    for part in ("train", "test"):
        with pytest.raises(UsageError, match="the class 'cat' is in only one of"):
            load(config(parts), part)


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(UsageError, match=r"data\.root is missing"):
        load(DataConfig(name="folder"), "train")
    with pytest.raises(UsageError, match="does not exist"):
        load(config(tmp_path / "nowhere"), "train")
    with pytest.raises(UsageError, match="any class folder"):
        load(config(tmp_path), "train")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        load(config(tmp_path / "file"), "train")
    write_class_folders(tmp_path, classes=["ant"])
    with pytest.raises(UsageError, match="has 1 class"):
        open_train(config(tmp_path), image_size=8, seed=0)
    (tmp_path / "bee").mkdir()
    with pytest.raises(UsageError, match="no valid file for the classes bee"):
        load(config(tmp_path), "train")


def test_keys_without_effect(parts):
    with pytest.raises(UsageError, match=r"data\.dataset has no effect for the data set 'folder'"):
        load(config(parts, dataset="torch/mnist"), "train")
    with pytest.raises(UsageError, match=r"data\.test_fraction has no effect .*val is its test part"):
        load(config(parts, test_fraction=0.5), "train")
    with pytest.raises(UsageError, match=r"data\.crop_padding has no effect"):
        open_test(config(parts, crop_padding=2), image_size=8)


def test_an_unknown_policy_is_known_before_training(parts):
    for policy in ("rand-x9", "none"):
        with pytest.raises(UsageError, match=rf"data\.auto_augment: .*{policy}"):
            open_train(config(parts, auto_augment=policy), image_size=8, seed=0)


def everything(split, **keys):
    images, labels = zip(*split.batches(5, **keys), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("epoch", [None, 2])
def test_images_do_not_depend_on_the_workers(parts, epoch):
    alone = config(parts, auto_augment="rand-m9-mstd0.5-inc1", horizontal_flip=True)
    crowd = dataclasses.replace(alone, workers=2)
    expected, found = (everything(open_train(c, image_size=8, seed=0)[0], epoch=epoch) for c in (alone, crowd))
    assert all(map(torch.equal, expected, found))


def test_evaluation_resizes_and_crops_the_centre(tmp_path):
    for number, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        for i in range(5):
            image = random_image(np.random.default_rng(0), 20)
            image.paste((number * 100,) * 3, (0, 0, 20, 20))
            image.save(tmp_path / name / f"{i}.png")
    split = open_test(config(tmp_path, mean=(0.0,) * 3, std=(1.0,) * 3), image_size=8)
    images, labels = next(split.batches(3))
    assert (images == labels[:, None, None, None] * 100 / 255).all()


def test_palette_grey_and_transparent_images_become_rgb_or_grey(tmp_path):
    write_class_folders(tmp_path)
    for number, mode in enumerate(("P", "L", "RGBA", "1", "CMYK")):
        image = random_image(np.random.default_rng(0)).convert(mode)
        image.save(tmp_path / "ant" / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}")
    for grey, channels in ((False, 3), (True, 1)):
        train, _ = open_train(config(tmp_path, grey=grey), image_size=8, seed=0)
        assert train.in_chans == channels
        assert everything(train)[0].shape[1:] == (channels, 8, 8)


def test_digest_depends_on_names_sizes_and_labels_not_on_the_place(parts, tmp_path_factory):
    def digest(root):
        return open_test(config(root), image_size=8).digest

    copy = tmp_path_factory.mktemp("other") / "copy"
    shutil.copytree(parts, copy)
    before = digest(parts)
    assert digest(copy) == before
    (copy / "val" / "ant" / "0.png").rename(copy / "val" / "ant" / "00.png")
    assert digest(copy) != before
    with (parts / "val" / "ant" / "0.png").open("ab") as file:
        file.write(b"more")
    assert digest(parts) != before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(parts, content, workers):
    path = parts / "val" / "bee" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    split = open_test(config(parts, workers=workers), image_size=8)
    with pytest.raises(DamagedInputError) as caught:
        list(split.batches(4))
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be read as an image")
    assert "\n" not in message


DAMAGE = {"empty": b"", "text": b"not an image", "cut short": None}


def damage(*paths, kind="cut short"):
    for path in paths:
        path.write_bytes(path.read_bytes()[:-60] if kind == "cut short" else DAMAGE[kind])


@pytest.fixture
def jpegs(tmp_path):
    """Constant images, by class 0, 100 and 200, so that a batch shows which class an image is of."""
    for part, count in (("train", 8), ("val", 3)):
        for number, name in enumerate(CLASSES):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                image = random_image(np.random.default_rng(0), 20)
                image.paste((100 * number + i,) * 3, (0, 0, 20, 20))
                image.save(tmp_path / part / name / f"{i}.jpg")
    return tmp_path


def open_jpegs(root, **keys):
    keys = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "val_fraction": 0.25, "max_unreadable": 2} | keys
    return open_train(config(root, **keys), image_size=8, seed=0)


def of_train_split(root, *, count, label):
    """Files of one class in the training split, in its order."""
    train, _ = open_jpegs(root)
    of_class = [index for index in train._indices if train._samples.labels[index] == label]
    return [root / "train" / train._samples.source.paths[index] for index in of_class[:count]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", DAMAGE)
def test_an_image_of_its_class_takes_the_place_of_an_unreadable_one(jpegs, kind, workers, capsys):
    (path,) = of_train_split(jpegs, count=1, label=1)
    whole = everything(open_jpegs(jpegs)[0], epoch=0)
    damage(path, kind=kind)
    train, val = open_jpegs(jpegs, workers=workers)
    images, labels = everything(train, epoch=0)
    assert torch.equal(labels, whole[1])
    changed = (images != whole[0]).flatten(1).any(dim=1)
    assert changed.sum() == 1
    assert labels[changed] == 1
    assert (images[changed] * 255).round().min() >= 100
    # Not one of the validation split, and the same one in every process.
    allowed = set(whole[0][labels == 1].amax((1, 2, 3)).tolist())
    assert images[changed].max().item() in allowed
    list(train.batches(5, epoch=1))
    list(val.batches(5))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: cannot be read as an image")
    assert "skipped, number 1 of at most 2: in training another image of its class takes its place" in line


def test_shares_of_an_epoch_do_not_depend_on_unreadable_images(jpegs):
    damage(*of_train_split(jpegs, count=2, label=0))
    images, labels = everything(open_jpegs(jpegs)[0], epoch=3)
    shares = [
        everything(open_jpegs(jpegs)[0], epoch=3, places=torch.tensor(places)) for places in ([0, 2], [1, 4], [3])
    ]
    order = torch.tensor([0, 2, 1, 4, 3]).argsort()
    for whole, parts in ((images, 0), (labels, 1)):
        pieces = [
            share[parts].view(-1, width, *whole.shape[1:]) for share, width in zip(shares, (2, 2, 1), strict=True)
        ]
        assert torch.equal(torch.cat(pieces, dim=1)[:, order].flatten(0, 1), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_unreadable_image_more_than_allowed_stops(jpegs, workers, capsys):
    paths = of_train_split(jpegs, count=3, label=2)
    damage(*paths)
    train, _ = open_jpegs(jpegs, workers=workers)
    with pytest.raises(DamagedInputError) as caught:
        list(train.batches(2, epoch=0))
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2
    last = next(path for path in paths if not any(str(path) in line for line in warned))
    assert str(caught.value).startswith(f"{last}: cannot be read")
    assert "unreadable image number 3, and data.max_unreadable is 2: restore" in str(caught.value)
    with pytest.raises(DamagedInputError):  # and so does every later epoch
        list(train.batches(2, epoch=1))


def test_a_class_without_any_readable_image_stops(jpegs):
    damage(*of_train_split(jpegs, count=6, label=0))
    with pytest.raises(DamagedInputError, match="nor can any other image of its class"):
        list(open_jpegs(jpegs, max_unreadable=100)[0].batches(5, epoch=0))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_unreadable_images_out(jpegs, workers, capsys):
    keys = {"max_unreadable": 1, "workers": workers, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    images, labels = everything(open_test(config(jpegs, **keys), image_size=8))
    path = jpegs / "val" / "bee" / "1.jpg"
    damage(path)
    split = open_test(config(jpegs, **keys), image_size=8)
    found = everything(split)
    kept = (images * 255).round()[:, 0, 0, 0] != 101
    assert kept.sum() == 8
    assert torch.equal(found[0], images[kept])
    assert torch.equal(found[1], labels[kept])
    assert len(list(split.batches(1))) == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: cannot be read" in line
    assert "accuracies leave it out" in line


@settings(deadline=None, max_examples=50)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=20), data=st.data())
def test_followers_go_round_each_class(labels, data):
    indices = data.draw(st.lists(st.sampled_from(range(len(labels))), unique=True, min_size=1))
    following = next_of_class(np.array(labels), np.array(indices))
    for start in indices:
        of_class = [index for index in indices if labels[index] == labels[start]]
        turn = of_class.index(start)
        assert following[start] == of_class[(turn + 1) % len(of_class)]


def test_a_file_that_vanished_is_named(parts):
    split = open_test(config(parts), image_size=8)
    (parts / "val" / "bee" / "1.png").unlink()
    with pytest.raises(DamagedInputError, match=r"1\.png"):
        list(split.batches(4))
    with pytest.raises(DamagedInputError, match=r"1\.png: gone"):
        _ = split.digest


@pytest.mark.filterwarnings("ignore")  # Pillow also warns of what it then refuses
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.floats(0, 1, exclude_max=True),
    change=st.integers(1, 255),
    kind=st.sampled_from(["png", "jpg", "tif", "webp"]),
)
def test_damage_is_reported_as_such(tmp_path, place, change, kind):
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / name).mkdir(parents=True, exist_ok=True)
        for part in ("train", "val"):
            random_image(np.random.default_rng(0)).save(tmp_path / part / name / f"1.{kind}")
    path = tmp_path / "val" / "ant" / f"1.{kind}"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= change
    path.write_bytes(data)
    message = message_of(DamagedInputError, lambda: next(open_test(config(tmp_path), image_size=8).batches(6)))
    assert message is None or str(path) in message
    for image in tmp_path.rglob("1.*"):
        image.unlink()
