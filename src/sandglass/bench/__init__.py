"""What `sandglass bench` measures: how much of the model's own speed is left when data has to be read and views made.

    speed    images/s of one training step, fed in several ways that take turns; ratios, never images/s alone
    floor    what the views of an image cost, operation by operation
    start    seconds from the start of a job to the data of its first step
    parity   how far batched views are from torchvision's, operation by operation
    growth   what becomes dearer with more images, runs and epochs

Each writes its table into results/bench and renews the page there. What is measured is the loop, the reading and the
views that training itself uses; lightly is used as its documentation shows.
"""
