"""What pretraining minimises: one file each, one line here."""

from sandglass.registry import Register

OBJECTIVES = Register(
    "objective",
    {
        "barlow_twins": "sandglass.objectives.barlow_twins:BarlowTwins",
        "byol": "sandglass.objectives.byol:BYOL",
        "dino": "sandglass.objectives.dino:DINO",
        "jigsaw": "sandglass.objectives.jigsaw:Jigsaw",
        "masked_image": "sandglass.objectives.masked_image:MaskedImage",
        "moco_v2": "sandglass.objectives.moco_v2:MoCoV2",
        "moco_v3": "sandglass.objectives.moco_v3:MoCoV3",
        "rotation": "sandglass.objectives.rotation:Rotation",
        "self_classifier": "sandglass.objectives.self_classifier:SelfClassifier",
        "simclr": "sandglass.objectives.simclr:SimCLR",
        "simsiam": "sandglass.objectives.simsiam:SimSiam",
        "supervised": "sandglass.objectives.supervised:Supervised",
        "swav": "sandglass.objectives.swav:SwAV",
        "vicreg": "sandglass.objectives.vicreg:VICReg",
        "vicregl": "sandglass.objectives.vicregl:VICRegL",
    },
)
