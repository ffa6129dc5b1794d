"""A classifier as extractor and heads, and the dual classifier of GFPL."""

import torch
from torch import Tensor, nn

from gfpl_flwr.core.losses import directions_of
from gfpl_flwr.models.dropout import Dropout


class SplitModel(nn.Module):
    """Extractor f and classifier h: images to features z = f(x) to scores h(z).

    Args:
        extractor: maps (B, channels, H, W) to (B, D).
        feature_dim: D.
        num_classes: C.
        classifier_dim: width of what the classifier sees, D by default.
        dropout: probability of dropping one of its inputs, in training only.
    """

    def __init__(
        self,
        extractor: nn.Module,
        feature_dim: int,
        num_classes: int,
        *,
        classifier_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.feature_dim = feature_dim
        self.num_classes = num_classes
        self.dropout = Dropout(classifier_dim or feature_dim, dropout)
        self.classifier = nn.Linear(classifier_dim or feature_dim, num_classes)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters behind the features: W_p and h of equation 14."""
        inside = {id(parameter) for parameter in self.extractor.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in inside]

    def logits(self, features: Tensor) -> Tensor:
        """Return h(z): features (B, D) to scores (B, C)."""
        logits: Tensor = self.classifier(self.dropout(features))
        return logits

    def scores(self, features: Tensor) -> dict[str, Tensor]:
        """Return the scores (B, C) of every inference head for features (B, D)."""
        return {"classifier": self.logits(features)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the scores (B, C) of every inference head for images, in one pass."""
        return self.scores(self.extractor(images))


class DualClassifier(SplitModel):
    """DCS of GFPL: a trainable classifier beside a projection onto a fixed simplex ETF (equations 10 and 11).

    The heads are ``classifier`` argmax h(z), ``etf`` argmax_j v_j^T mu_hat and ``sum``, the argmax of their sum.

    Args:
        extractor: maps images to features (B, D).
        feature_dim: D.
        etf: V (P, C), unit columns v_j; stored as a buffer, never trained.
        classifier_on: ``"features"`` (h on z) or ``"projection"`` (h on mu_hat). The paper leaves it open: its
            ablation without DCS retrains h on pseudo-features alone, which speaks for h on z; with h on mu_hat
            sites are more accurate, see docs/adr/0013-defaults-of-gfpl.md.
        dropout: before the classifier, in training only.
    """

    etf: Tensor

    def __init__(
        self,
        extractor: nn.Module,
        feature_dim: int,
        etf: Tensor,
        *,
        classifier_on: str = "projection",
        dropout: float = 0.0,
    ) -> None:
        projection_dim, num_classes = etf.shape
        on_features = classifier_on == "features"
        classifier_dim = feature_dim if on_features else projection_dim
        super().__init__(extractor, feature_dim, num_classes, classifier_dim=classifier_dim, dropout=dropout)
        self.on_features = on_features
        self.projection = nn.Linear(feature_dim, projection_dim)
        self.register_buffer("etf", etf)

    def projected(self, features: Tensor) -> Tensor:
        """Return mu_hat = W_p z / max(|W_p z|, 1e-12): features (B, D) to unit vectors (B, P), equation 11."""
        return directions_of(self.projection(features))

    def dual(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the hybrid loss needs: logits (B, C) and mu_hat (B, P)."""
        directions = self.projected(features)
        return self.logits(features if self.on_features else directions), directions

    @torch.no_grad()
    def mean_cosine(self, features: Tensor, labels: Tensor) -> float:
        """Return the mean cosine between projected features (N, D) and the vertices of their classes (N,)."""
        vertices, total = self.etf.cpu().T, 0.0
        # All N at once would be a small device's largest allocation.
        for part, classes in zip(torch.split(features, 4096), torch.split(labels, 4096), strict=True):
            total += float((self.projected(part.to(self.etf.device)).cpu() * vertices[classes]).double().sum())
        return total / len(labels)

    def scores(self, features: Tensor) -> dict[str, Tensor]:
        """Return the scores (B, C) of the three inference heads for features (B, D)."""
        logits, directions = self.dual(features)
        cosines = directions @ self.etf
        return {"classifier": logits, "etf": cosines, "sum": logits + cosines}
