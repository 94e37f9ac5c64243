"""What an extra head may be asked of the last feature map: one file each, one line here."""

from sandglass.registry import Register

AUXILIARY = Register(
    "auxiliary task",
    {
        "activation_norm": "sandglass.auxiliary.activation_norm:ActivationNorm",
        "drloc": "sandglass.auxiliary.drloc:DRLoc",
        "jigsaw": "sandglass.auxiliary.jigsaw:Jigsaw",
        "masked_embedding": "sandglass.auxiliary.masked_embedding:MaskedEmbedding",
        "masked_image": "sandglass.auxiliary.masked_image:MaskedImage",
    },
)
