"""What pretraining minimises: one file each, one line here."""

from sandglass.registry import Register

OBJECTIVES = Register(
    "objective",
    {
        "byol": "sandglass.objectives.byol:BYOL",
        "supervised": "sandglass.objectives.supervised:Supervised",
    },
)
