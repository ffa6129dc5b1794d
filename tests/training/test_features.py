"""Features of many sites at once are those of torch's own layers, and to the bit those of a site alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from gfpl_flwr.data import normalisation
from gfpl_flwr.training import Features
from gfpl_flwr.training.site import Images


def plain(site):
    with torch.no_grad():
        return site.model.eval().extractor(site.train.pixels(slice(None)))


@pytest.mark.parametrize(("name", "channels"), [("mnist", 1), ("cifar10", 3), ("cifar100", 3), ("digits", 3)])
def test_pixels_are_those_of_torchvisions_transforms(name, channels):
    mean, std = normalisation(name)
    images = torch.randint(0, 256, (5, channels, 6, 7), dtype=torch.uint8)
    transform = Compose([ToTensor(), Normalize(mean, std)])
    expected = torch.stack([transform(image.permute(1, 2, 0).numpy()) for image in images])
    statistics = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    pixels = Images(images, torch.zeros(5, dtype=torch.int64), *statistics).pixels(slice(None))
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)


def cut(site, samples):
    its = site.train
    return replace(site, train=replace(its, images=its.images[:samples], labels=its.labels[:samples]))


def works(sites):
    return [Features(site, "evaluate", site.train) for site in sites]


@pytest.mark.parametrize("architecture", ["cnn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_features_are_those_of_torchs_own_layers(site_of, architecture):
    sites = [site_of(key, count, architecture) for key, count in enumerate((33, 16, 1, 70))]
    for group in [sites] if architecture == "cnn" else [[site] for site in sites]:
        for site, features in zip(group, Features.do(works(group)), strict=True):
            assert features.shape == plain(site).shape
            assert torch.allclose(features, plain(site), rtol=1e-4, atol=1e-5)


def test_a_site_gets_the_same_bits_alone_and_beside_others(site_of):
    sites = [site_of(key, count) for key, count in enumerate((5, 33, 150, 16, 1, 48))]
    alone = [Features.do(works([site]))[0] for site in sites]
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 0, 1, 4, 3], [2, 1]):
        for key, features in zip(order, Features.do(works([sites[key] for key in order])), strict=True):
            assert torch.equal(features, alone[key])


def test_an_image_has_the_same_features_whatever_comes_with_it(site_of):
    site = site_of(0, 150)
    whole = Features.do(works([site]))[0]
    assert torch.equal(whole[:37], Features.do(works([cut(site, 37)]))[0])


def test_no_images_give_no_features(site_of):
    sites = [cut(site_of(0, 5), 0), site_of(1, 5)]
    assert [len(features) for features in Features.do(works(sites))] == [0, 5]
    assert Features.do(works(sites[:1]))[0].shape == (0, 50)


def test_the_model_is_left_in_evaluation_mode_with_its_weights(site_of):
    site = site_of(0, 5)
    before = {name: value.clone() for name, value in site.model.train().state_dict().items()}
    Features.do(works([site]))
    assert not site.model.training
    assert all(torch.equal(value, before[name]) for name, value in site.model.state_dict().items())


def test_a_network_with_a_layer_that_does_not_stack_goes_alone(site_of):
    site = site_of(0, 40)
    site.model.extractor = nn.Sequential(*site.model.extractor, nn.LayerNorm(50))
    assert torch.allclose(Features.do(works([site]))[0], plain(site), rtol=1e-4, atol=1e-5)
