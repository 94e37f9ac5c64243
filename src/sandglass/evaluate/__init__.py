"""How what was learned is judged: probes of frozen features and attacks on classifiers; one line here for each."""

from sandglass.registry import Register

PROBES = Register(
    "probe",
    {
        "knn": "sandglass.evaluate.knn:run",
        "linear": "sandglass.evaluate.linear:run",
    },
)

ATTACKS = Register(
    "attack",
    {
        "fgsm": "sandglass.evaluate.adversarial:fgsm",
        "pgd": "sandglass.evaluate.adversarial:pgd",
    },
)
