"""What pretraining minimises: one file each, one line here."""

from sandglass.registry import Register

OBJECTIVES = Register(
    "objective",
    {
        "byol": "sandglass.objectives.byol:BYOL",
        "jigsaw": "sandglass.objectives.jigsaw:Jigsaw",
        "masked_image": "sandglass.objectives.masked_image:MaskedImage",
        "rotation": "sandglass.objectives.rotation:Rotation",
        "supervised": "sandglass.objectives.supervised:Supervised",
    },
)
