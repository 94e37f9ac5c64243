"""The view recipes: how the views of an image are made. One pipeline, a row of settings per recipe."""

from sandglass.registry import Register

RECIPES = Register(
    "view recipe",
    {
        "plain": "sandglass.views.recipes:make_views",
        "crop_flip": "sandglass.views.recipes:make_views",
        "baseline": "sandglass.views.recipes:make_views",
        "simclr": "sandglass.views.recipes:make_views",
        "orthogonality": "sandglass.views.recipes:make_views",
        "lorot": "sandglass.views.recipes:make_views",
        "dcl": "sandglass.views.recipes:make_views",
        "byol": "sandglass.views.recipes:make_views",
        "multi_crop": "sandglass.views.recipes:make_views",
        "located": "sandglass.views.recipes:make_views",
        "located_legacy": "sandglass.views.recipes:make_views",
        "masked": "sandglass.views.recipes:make_views",
    },
)
