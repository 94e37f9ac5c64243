"""What pretraining minimises: one file each, one line here."""

from sandglass.registry import Register

OBJECTIVES = Register(
    "objective",
    {
        "barlow_twins": "sandglass.objectives.barlow_twins:BarlowTwins",
        "byol": "sandglass.objectives.byol:BYOL",
        "supervised": "sandglass.objectives.supervised:Supervised",
        "vicreg": "sandglass.objectives.vicreg:VICReg",
        "vicregl": "sandglass.objectives.vicregl:VICRegL",
    },
)
