"""What pretraining minimises: one file each, one line here."""

from sandglass.registry import Register

OBJECTIVES = Register(
    "objective",
    {
        "byol": "sandglass.objectives.byol:BYOL",
        "dino": "sandglass.objectives.dino:DINO",
        "self_classifier": "sandglass.objectives.self_classifier:SelfClassifier",
        "supervised": "sandglass.objectives.supervised:Supervised",
        "swav": "sandglass.objectives.swav:SwAV",
    },
)
