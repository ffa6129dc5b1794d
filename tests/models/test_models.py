"""Extractors, heads and dropout."""

import pytest
import torch
from torch import nn

from gfpl_flwr.core.etf import simplex_etf
from gfpl_flwr.models import (
    FEATURE_DIMS,
    Dropout,
    DualClassifier,
    SplitModel,
    build_extractor,
    seeded_init,
)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def dual(**options) -> DualClassifier:
    etf = simplex_etf(10, 20, generator=torch.Generator().manual_seed(0))
    return seeded_init(lambda: DualClassifier(build_extractor("cnn", (1, 28, 28)), 50, etf, **options), 0)


def test_the_cnn_is_fedprotos():
    # conv 1*10*25+10, conv 10*20*25+20, linear 320*50+50, classifier 50*10+10: 21,840 as in FedProto's code
    model = SplitModel(build_extractor("cnn", (1, 28, 28)), 50, 10)
    assert parameters(model) == 21_840
    assert model.eval().extractor(torch.zeros(2, 1, 28, 28)).shape == (2, FEATURE_DIMS["cnn"])


def test_resnet18_is_torchvisions():
    # 11,689,512 with its 1000-way layer, whose 512*1000+1000 are replaced by 512*10+10
    model = SplitModel(build_extractor("resnet18", (3, 32, 32)), 512, 10)
    assert parameters(model) == 11_689_512 - 513_000 + 5_130
    assert model.eval().extractor(torch.zeros(2, 3, 32, 32)).shape == (2, FEATURE_DIMS["resnet18"])
    assert build_extractor("resnet18", (1, 32, 32)).eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 4), (3, 32, 32), (1, 16, 16), (3, 17, 23)])
def test_the_cnn_takes_images_of_any_size(shape):
    assert build_extractor("cnn", shape).eval()(torch.zeros(2, *shape)).shape == (2, 50)


def test_images_too_small_or_an_unknown_name_are_refused():
    with pytest.raises(ValueError, match="at least 4 x 4 pixels, these are 3 x 3"):
        build_extractor("cnn", (1, 3, 3))
    with pytest.raises(ValueError, match="'vit' is unknown; known: cnn, resnet18"):
        build_extractor("vit", (1, 28, 28))


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (seeded_init(lambda: build_extractor("cnn", (1, 28, 28)), seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b, c in zip(one.parameters(), two.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_three_heads_of_one_pass():
    model = dual(classifier_on="features").eval()
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    scores = model(images)
    features = model.extractor(images)
    projected = model.projection(features)
    unit = projected / projected.norm(dim=1, keepdim=True)
    assert torch.allclose(scores["classifier"], features @ model.classifier.weight.T + model.classifier.bias)
    assert torch.allclose(scores["etf"], unit @ model.etf, atol=1e-6)
    assert torch.allclose(scores["sum"], scores["classifier"] + scores["etf"])


def test_the_classifier_can_sit_on_the_projection():
    model = dual(classifier_on="projection").eval()
    assert model.classifier.in_features == 20
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    expected = model.classifier(model.projected(model.extractor(images)))
    assert torch.equal(model(images)["classifier"], expected)


def test_the_etf_is_no_parameter_and_is_saved_with_the_model():
    model = dual()
    assert "etf" in model.state_dict()
    assert "etf" not in dict(model.named_parameters())


def test_retraining_trains_the_projection_and_the_classifier():
    model = dual()
    names = {
        name
        for name, parameter in model.named_parameters()
        if any(parameter is head for head in model.head_parameters())
    }
    assert names == {"projection.weight", "projection.bias", "classifier.weight", "classifier.bias"}
    plain = SplitModel(build_extractor("cnn", (1, 28, 28)), 50, 10)
    assert [p.shape for p in plain.head_parameters()] == [(10, 50), (10,)]


@pytest.mark.parametrize("channels", [False, True])
def test_dropout_keeps_the_mean_and_repeats_with_its_generator(channels):
    layer = Dropout(30, 0.25)
    inputs = torch.ones((200, 30, 2, 2) if channels else (800, 30))

    def once() -> torch.Tensor:
        layer.mask = layer.draw(len(inputs), torch.Generator().manual_seed(3))
        return layer(inputs)

    out = once()
    assert torch.equal(out, once())
    kept = out[:, :, 0, 0] if channels else out
    # 6,000 or 24,000 Bernoulli(0.75) draws scaled by 4/3: standard deviation of the mean at most 0.0075
    assert abs(kept.mean().item() - 1) < 0.04
    assert sorted(out.unique().tolist()) == [0.0, pytest.approx(4 / 3)]
    if channels:
        assert torch.equal(out[:, :, 0, 0], out[:, :, 1, 1])
    assert layer.eval()(inputs) is inputs


def test_dropout_without_masks_says_what_to_do():
    with pytest.raises(RuntimeError, match="set its mask to draw"):
        Dropout(2, 0.5)(torch.ones(2, 2))
