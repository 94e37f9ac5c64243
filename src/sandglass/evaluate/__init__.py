"""How what was learned is judged: probes of frozen features and attacks on classifiers; one line here for each.

A probe is `run(subject, settings, seed) -> rows` (see features.py), an attack
`run(model, images, labels, settings, seed, kept) -> rows, examples, predictions` (see attacks/_base.py).
"""

from sandglass.registry import Register

PROBES = Register(
    "probe",
    {
        "clusters": "sandglass.evaluate.clusters:run",
        "knn": "sandglass.evaluate.knn:run",
        "linear": "sandglass.evaluate.linear:run",
        "linear_augmented": "sandglass.evaluate.linear_augmented:run",
    },
)

ATTACKS = Register(
    "attack",
    {
        "autoattack": "sandglass.evaluate.attacks.autoattack:linf",
        "autoattack_l2": "sandglass.evaluate.attacks.autoattack:l2",
        "corruptions": "sandglass.evaluate.attacks.corruptions:run",
        "fgsm": "sandglass.evaluate.attacks.fgsm:linf",
        "fgsm_l2": "sandglass.evaluate.attacks.fgsm:l2",
        "masking": "sandglass.evaluate.attacks.masking:run",
        "pgd": "sandglass.evaluate.attacks.pgd:linf",
        "pgd_l2": "sandglass.evaluate.attacks.pgd:l2",
        "square": "sandglass.evaluate.attacks.square:linf",
    },
)
