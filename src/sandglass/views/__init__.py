"""The view recipes: how the views of an image are made. One pipeline, a row of settings per recipe."""

from sandglass.registry import Register

RECIPES = Register(
    "view recipe",
    {
        "plain": "sandglass.views.recipes:make_views",
        "crop_flip": "sandglass.views.recipes:make_views",
        "baseline": "sandglass.views.recipes:make_views",
        "simclr": "sandglass.views.recipes:make_views",
    },
)
