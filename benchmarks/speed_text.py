"""The words of the page on performance."""

PARTS = {
    "training": """## Training and retraining

CPU time of one process on one thread, so that other load hardly matters. The loops are what an implementer of
FedProto's protocol writes: torch's own layers, the hybrid loss, `torch.optim.SGD`. The DataLoader's data set makes a
PIL image, transforms and normalises it, sample by sample, as torchvision's do.""",
    "round": """## Whole rounds

Wall time on two cores. A round of GFPL is everything between two exchanges one round apart: retraining on 1,000
pseudo-features a site, a test, an epoch of training, a test, mixtures, messages, fusion, and the files of the run and
of each site. FedProto's program and PFLlib's run unchanged on the same rows of MNIST with the same network, without
the packages that draw progress bars or write logs. Their round trains with a distance to prototypes and averages
features; FedProto's tests only at its end, PFLlib's in each round, on training and test images. Set-up and what
follows the last round is not in it.""",
    "mixtures": """## Mixtures

CPU time of one process on one thread. scikit-learn fits one class of one site after the other.""",
    "fusion": """## Fusion

CPU time of one process on one thread.""",
    "sites": """## Cost as sites grow

Wall time of whole rounds with two worker processes. Each site holds 26 images of two classes and retrains on 1,000
pseudo-features. Memory is that of all processes together, a page that they share counted once.""",
    "messages": """## Messages

Wall time of the same messages through the same interface, Flower's `Grid`, to sites that answer at once.""",
    "startup": """## Start-up

Seconds of wall time, or of CPU time where the row says so. The small run has 4 sites and 2 rounds on digits.""",
    "profile": """## Where the time of a visit goes

One process on one thread, a cohort of the 20 MNIST sites, the visit of the whole rounds above.""",
    "gpu": """## On a GPU

Wall time of training on one card, by one process. Images lie in the card's memory; nothing is read back within an
epoch. The share of the peak is that of floating-point operations a second: of the network as one site computes it,
beside those of a product of two matrices on the same card with the precision that torch gives convolutions.""",
}
FLOORS = """## Floors, and what was tried

- **Training** of the CNN is three fifths oneDNN's convolutions, which reach 20 to 45 GFLOP/s on a core: images of 28
  pixels, 10 and 20 channels and batches of four give them no more. Convolutions site by site take 1.6 to 2 times as
  long as grouped ones. The second convolution as a matrix product over unfolded images is quicker in the gradient for
  its input alone. `torch._foreach` for SGD gains 1 to 2 %, larger thresholds of malloc nothing, chunks of other sizes
  in tests nothing. What is left would be convolutions of this project's own, which it is not for.
- **Compiled** it could be: `torch.compile` takes 22 to 50 s before the first step, much of what
  a whole run of the paper's setting takes. CUDA graphs were not tried: no card was at hand.
- **Retraining** is the calls of about sixty operations a step. The hybrid loss as one of them, with its gradient
  written down, made a step 15 % quicker.
- **A whole round** with an exchange is training by about half, as the profile shows; no part of the rest is large
  enough to make up for what is missing to the goals by itself.
"""
NO_GPU = """## On a GPU

Nothing was measured: none was at hand. `python -m benchmarks.speed run --data-dir data --only gpu` trains a cohort of
20 sites as one network against one site after the other, which was to be 10 times as fast with the CNN and 3 times
with ResNet18, and tells samples a second, the share of the card's peak, and the time by operator."""
PHASES = {
    "train": "training, an epoch of the site's images",
    "retrain": "retraining of the heads on pseudo-features",
    "evaluate": "two tests",
    "prototypes": "features of the site's images, and mixtures",
    "rest": "the site's model from its file and back, samples, messages",
}
WHOLE = """Wall time of one whole program in the paper's setting, from start to end: 20 sites, 80 rounds, MNIST,
GFPL's exchanges after round 30 and every fifth from there on. This project's run is measured in full. A peer's is
extrapolated from the runs of three rounds above: set-up, the first round, 79 times the median of the others, and what
follows them. It exchanges in every round."""
_MORE_WORK = (
    "Missed: a round of GFPL does what the other program's does not. Training is about half of it; the rest "
    "is retraining, tests, a second look at the images for the prototypes, and files, as the profile below shows. "
    "Where it exchanges after every fifth round, as in the paper, the whole program is the fairer comparison."
)
_PACKING = (
    "Missed: where sites do nothing, the engine's time is that of packing messages for its two workers and back, "
    "which other load on the cores lengthens."
)
MISSED: dict[tuple[str, str], str] = {
    ("a GFPL round of 20", ""): _MORE_WORK,
    ("retraining", ""): (
        "Missed: a step of few sites takes as long as one of many, since the number of operations sets its time. The "
        "engine cuts 20 sites into two stacks of ten, one for each core."
    ),
    ("CNN", "loop over tensors in memory"): (
        "Missed within the spread of the turns. Building a stack of one and writing it back takes 0.6 % of an epoch; "
        "where the rest goes is not known."
    ),
    ("ResNet18", ""): "Missed: the weights and momenta of a large network are copied before an epoch and after it.",
    ("20 sites x 5 classes", ""): (
        "Missed: with so many dimensions the time goes into passing over the samples, of which there are as many "
        "when all problems are done at once."
    ),
    ("100 messages", ""): _PACKING,
    ("1,000 messages", ""): _PACKING,
    ("one class", ""): (
        "Missed: a row that comes meets few components, so the calls of torch by which it is compared and merged "
        "take longer than the arithmetic."
    ),
}
"""What a reader should know of a missed goal, by the beginning of its work and by whom it was compared with."""
