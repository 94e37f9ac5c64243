"""The signs of a masked gradient, in words; `masking` looks for them, the report tells of them."""

SIGNS = {
    "pgd_above_fgsm": "many small steps leave more right than a single one",
    "rises_with_epsilon": "more is right at a larger epsilon",
    "survives_far": "something is right at 64/255, where there is room for any error",
    "only_black_box": "what withstands the gradient falls to random squares",
    "zero_gradient": "images have a gradient of exactly zero",
    "loss_falls_with_steps": "the loss is lower after more and smaller steps",
    "noise_does_it_too": "noise of the same length does half of what the gradient does",
    "needs_restarts": "restarts find errors that the first start did not",
}
