"""How what was learned is judged: probes of frozen features and attacks on classifiers; one line here for each.

A probe is `run(subject, settings, seed) -> rows` (see features.py), an attack
`run(model, images, labels, settings, seed) -> rows, examples` (see adversarial.py).
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
        "fgsm": "sandglass.evaluate.adversarial:fgsm",
        "pgd": "sandglass.evaluate.adversarial:pgd",
    },
)
