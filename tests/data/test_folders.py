import numpy as np
import pytest
from PIL import Image

from gfpl_flwr.data.datasets import DatasetNotFoundError, load

RED, GREEN = (200, 0, 0), (0, 150, 0)


def save(path, colour, *, size=(12, 12), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def pets(tmp_path):
    """Ten dogs and five cats, told apart by colour; the red or green value is the number of the file."""
    for number in range(10):
        save(tmp_path / "pets" / "dog" / f"{number:02d}.png", (0, number, 0))
    for number in range(5):
        save(tmp_path / "pets" / "cat" / f"{number:02d}.bmp", (number, 0, 0))
    (tmp_path / "pets" / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / "dog" / ".hidden.png").write_text("not an image")
    return tmp_path / "pets"


def load_folder(path, tmp_path, **options):
    return load(f"folder:{path}", tmp_path / "data", **options)


def test_the_last_fifth_of_every_class_is_the_test_split(pets, tmp_path):
    dataset = load_folder(pets, tmp_path, image_size=8)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (3, 8, 8)
    assert dataset.train_labels.tolist() == [0] * 4 + [1] * 8
    assert dataset.test_labels.tolist() == [0] + [1] * 2
    assert dataset.train_images[:, :, 3, 3].tolist() == [[n, 0, 0] for n in range(4)] + [[0, n, 0] for n in range(8)]
    assert dataset.test_images[:, :, 0, 7].tolist() == [[4, 0, 0], [0, 8, 0], [0, 9, 0]]


def test_a_test_split_of_ones_own(tmp_path):
    save(tmp_path / "x" / "train" / "a" / "1.png", RED)
    save(tmp_path / "x" / "train" / "b" / "1.png", GREEN)
    save(tmp_path / "x" / "test" / "b" / "1.png", GREEN)
    save(tmp_path / "x" / "test" / "c" / "deeper" / "1.png", RED)
    dataset = load_folder(tmp_path / "x", tmp_path)
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.train_labels.tolist() == [0, 1]
    assert dataset.test_labels.tolist() == [1, 2]


def test_a_training_folder_without_a_test_folder_is_split(tmp_path):
    for number in range(5):
        save(tmp_path / "x" / "train" / "a" / f"{number}.png", RED)
    dataset = load_folder(tmp_path / "x", tmp_path)
    assert (len(dataset.train_images), len(dataset.test_images)) == (4, 1)


def test_a_class_may_be_called_train(tmp_path):
    save(tmp_path / "x" / "train" / "1.png", RED)
    save(tmp_path / "x" / "ship" / "1.png", RED)
    assert load_folder(tmp_path / "x", tmp_path).class_names == ("ship", "train")


def test_images_that_are_all_grey_have_one_channel(tmp_path):
    save(tmp_path / "x" / "a" / "1.png", 77, mode="L")
    save(tmp_path / "x" / "a" / "2.png", 1, mode="1")
    # 16-bit images keep their high byte: 0x1234 is 0x12 = 18
    Image.fromarray(np.full((12, 12), 0x1234, np.uint16)).save(tmp_path / "x" / "a" / "3.png")
    save(tmp_path / "x" / "b" / "1.png", 5, mode="L")
    dataset = load_folder(tmp_path / "x", tmp_path)
    assert dataset.image_shape == (1, 32, 32)
    assert dataset.train_images[:, 0, 0, 0].tolist() == [77, 255, 5]
    assert dataset.test_images[0].unique().tolist() == [18]


def test_one_colour_image_makes_all_of_them_rgb(tmp_path):
    save(tmp_path / "x" / "a" / "1.png", 77, mode="L")
    save(tmp_path / "x" / "b" / "1.png", RED)
    assert load_folder(tmp_path / "x", tmp_path).train_images[:, :, 0, 0].tolist() == [[77] * 3, list(RED)]


def test_a_camera_held_upright_is_honoured(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = RED  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright: the left half becomes the top
    (tmp_path / "x" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "x" / "a" / "1.png", exif=exif)
    image = load_folder(tmp_path / "x", tmp_path, image_size=8).train_images[0]
    assert image[0].tolist() == [[200] * 8] * 4 + [[0] * 8] * 4


def test_resizing_averages(tmp_path):
    (tmp_path / "x" / "a").mkdir(parents=True)
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))  # columns 0 200 0 200 ...: mean 100
    Image.fromarray(stripes).save(tmp_path / "x" / "a" / "1.png")
    image = load_folder(tmp_path / "x", tmp_path, image_size=8).train_images[0, 0]
    assert image.shape == (8, 8)
    assert (image[:, 1:-1].int() - 100).abs().max() <= 4  # columns 0 and 7 see the edge


@pytest.mark.parametrize("content", [b"not a png", b""])
def test_an_unreadable_image_is_named(pets, tmp_path, content):
    (pets / "cat" / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read image .*cat/bad\.png") as caught:
        load_folder(pets, tmp_path)
    assert caught.value.__suppress_context__


def test_a_truncated_image_is_named(pets, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(pets / "cat" / "bad.png")
    (pets / "cat" / "bad.png").write_bytes((pets / "cat" / "bad.png").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot read image .*cat/bad\.png"):
        load_folder(pets, tmp_path)


def test_a_folder_is_prepared_once_and_again_when_it_changes(pets, tmp_path):
    first = load_folder(pets, tmp_path)
    load_folder(pets, tmp_path)
    assert len(list((tmp_path / "data").glob("folder-*.safetensors"))) == 1
    save(pets / "cat" / "99.png", RED)
    second = load_folder(pets, tmp_path)
    assert len(second.train_images) == len(first.train_images) + 1
    load_folder(pets, tmp_path, image_size=16)
    assert len(list((tmp_path / "data").glob("folder-*.safetensors"))) == 3


def test_a_class_without_images_keeps_its_number(pets, tmp_path):
    (pets / "bird").mkdir()
    dataset = load_folder(pets, tmp_path)
    assert dataset.class_names == ("bird", "cat", "dog")
    assert sorted(dataset.train_labels.unique().tolist()) == [1, 2]


def test_class_names_number_the_classes_alike_on_every_device(pets, tmp_path):
    dataset = load_folder(pets, tmp_path, class_names=("dog", "fish", "cat"))
    assert dataset.num_classes == 3
    assert dataset.train_labels.tolist() == [0] * 8 + [2] * 4
    with pytest.raises(ValueError, match="folder 'dog' that is not among class_names: cat"):
        load_folder(pets, tmp_path, class_names=("cat",))
    with pytest.raises(ValueError, match="each class once"):
        load_folder(pets, tmp_path, class_names=("cat", "dog", "cat"))


def test_what_is_missing_is_said_with_the_layout(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"no such folder; expected PATH/<class>/<image>"):
        load_folder(tmp_path / "nothing", tmp_path)
    (tmp_path / "x").mkdir()
    with pytest.raises(DatasetNotFoundError, match="has no class folder"):
        load_folder(tmp_path / "x", tmp_path)
    (tmp_path / "x" / "a").mkdir()
    with pytest.raises(DatasetNotFoundError, match="has no image in"):
        load_folder(tmp_path / "x", tmp_path)
