"""The words of the page on results."""

HEAD = """# Results

Generated from `benchmarks/results/outcomes` and `benchmarks/experiments` by `python -m benchmarks.results document`.
Each experiment is one command; it does the runs that are missing and can be stopped at any time.

Measured with torch {torch}, flwr {flwr}, Python {python}{others}, on {where},
one thread a run: {runs} runs, {hours:.0f} hours of a core that other work shared.{unknown}

**Protocol**, the same for every method: FedProto's n-way k-shot (20 sites, n classes ± the spread a site, about 100
samples a class, 92 with FEMNIST), SGD with learning rate 0.01 and momentum 0.5 that begins at zero in each round, one
local epoch a round, batches of 4 (CNN, 50-dimensional features) or 32 (ResNet-18), every site in every round, each
tested on test images of its own classes. FEMNIST is that of 28 x 28 pixels, so it has the network of MNIST. Accuracy
is the unweighted mean over sites, of the classifier of the model that a site would use after the last round: the one
that the server handed down last, where a method hands down models. Intervals are Student's, 95 %, over seeds; a seed
determines data, sites, initial model and every other random number, so methods are compared seed by seed. Only
GFPL's options were searched for, at the end of this page; the other methods have those of their papers, but for two
rates: that of FedFA's calibration, which their own made diverge, and FedRep's, 0.003 on FEMNIST and with the small
network on CIFAR. FedRep trains its heads ten epochs a round besides, as its paper does; and whether the smaller rate
would do the others good was not tried.

**The paper's numbers** stand beside ours where they could be checked. Its Table 1 repeats FedProto's table for the
older methods (on CIFAR-10 less exactly 12.00), and FedProto's published deviations come of a counter that was never
reset; take it for a direction, not for a target.
"""
REMARKS = {
    "table1": (
        "FedRep has learning rate 0.003 on FEMNIST, chosen after a run of a reported seed: with 0.01, the rate of "
        "all others, n = 4 and seed 1 fell from 93.6 % after its second round to 56.7 %. The biases of its first "
        "convolution had sunk from -0.04 on average after the first round to -0.75 after the sixteenth and -1.7 at "
        "the end, and hardly a channel was active any more. With seed 101 they sank to -0.8 and the accuracy did "
        "not suffer, see the end of this page."
    ),
    "table1-cnn": (
        "FedRep has learning rate 0.003 here as well: with 0.01 the run on CIFAR10 with n = 3 fell from 62.1 % after "
        "its first round to 49.0 %. A run of FedPA (CIFAR100, n = 4) ended in its second round, when a site's loss "
        "was no number any more: FedPA weighs generated features 25-fold in its first rounds, its authors with "
        "batches of 32."
    ),
    "defaults": (
        "On seeds of their own, one choice at a time beside what was then the default; the row GFPL is that, with "
        "the classifier on features. One choice could be told from it, the classifier on the projection, and became "
        "the default: see [record 13](adr/0013-defaults-of-gfpl.md). FedRep's rate stands beside them."
    ),
}
"""What a reader should know of an experiment beside its outcomes, such as runs that failed."""
UNKNOWN = """

Which sources of this package and which machine gave an outcome stands in {told} of them; the others are older. A run
that is done again, with other sources or on another processor, can differ: GFPL on MNIST with n = 4 and seed 1 had
97.49 % once and 98.15 % another time, with n = 3 and seed 1 98.60 and 98.54. What was reported first stays, in every
table."""
