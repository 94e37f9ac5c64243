"""What pretraining minimises: one file each, one line here."""

from sandglass.registry import Register

OBJECTIVES = Register(
    "objective",
    {
        "byol": "sandglass.objectives.byol:BYOL",
        "simclr": "sandglass.objectives.simclr:SimCLR",
        "moco_v2": "sandglass.objectives.moco_v2:MoCoV2",
        "moco_v3": "sandglass.objectives.moco_v3:MoCoV3",
        "simsiam": "sandglass.objectives.simsiam:SimSiam",
        "supervised": "sandglass.objectives.supervised:Supervised",
    },
)
