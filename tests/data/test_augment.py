import pytest
import torch
from torch.nn.functional import pad

from gfpl_flwr.data.augment import cut_windows, draw_windows


def crop_and_flip(images, *, padding=4, generator):
    return cut_windows(images, draw_windows(len(images), padding=padding, generator=generator), padding=padding)


def naive(images, padding, seed):
    """The same three draws, then one sample after the other."""
    generator = torch.Generator().manual_seed(seed)
    batch, _, height, width = images.shape
    tops = torch.randint(0, 2 * padding + 1, (batch,), generator=generator)
    lefts = torch.randint(0, 2 * padding + 1, (batch,), generator=generator)
    flips = torch.randint(0, 2, (batch,), generator=generator)
    out = []
    for image, top, left, flip in zip(images, tops, lefts, flips, strict=True):
        framed = pad(image, (padding, padding, padding, padding))
        window = framed[:, top : top + height, left : left + width]
        out.append(window.flip(-1) if flip else window)
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (7, 1, 5, 9), (1, 2, 1, 1)])
def test_it_equals_the_loop(shape, padding, dtype):
    source = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=source).to(dtype)
    got = crop_and_flip(images, padding=padding, generator=torch.Generator().manual_seed(2))
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert torch.equal(got, naive(images, padding, 2))


def test_every_window_and_both_directions_are_equally_likely():
    # Pixel (r, c) of a 3 x 3 image is 3 r + c + 1: the centre pixel tells the window, one of 9 at padding 1.
    images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(18_000, 1, 3, 3)
    out = crop_and_flip(images, padding=1, generator=torch.Generator().manual_seed(0))
    centres = torch.bincount(out[:, 0, 1, 1].long(), minlength=10)[1:]
    # each 2,000 expected, standard deviation sqrt(18000 * 1/9 * 8/9) = 42
    assert (centres - 2000).abs().max() < 5 * 42
    # Where no padding is in it, the middle row falls from left to right exactly when it is mirrored.
    middle = out[:, 0, 1].int()
    inside = (middle > 0).all(1)
    assert inside.sum() > 5_000
    mirrored = (middle[inside, 0] > middle[inside, 2]).double().mean()
    assert mirrored.item() == pytest.approx(0.5, abs=0.04)


def test_the_input_and_the_global_generator_stay_as_they_are():
    images = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8)
    before, state = images.clone(), torch.get_rng_state()
    crop_and_flip(images, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_batch():
    images = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    assert crop_and_flip(images, generator=torch.Generator()).shape == (0, 3, 8, 8)


def test_wrong_input():
    with pytest.raises(
        ValueError, match=r"images must be \(B, channels, H, W\) and windows \(B, 3\), got \(3, 8, 8\) and"
    ):
        crop_and_flip(torch.zeros(3, 8, 8), generator=torch.Generator())
    with pytest.raises(ValueError, match="padding must be >= 0, got -1"):
        crop_and_flip(torch.zeros(1, 3, 8, 8), padding=-1, generator=torch.Generator())
