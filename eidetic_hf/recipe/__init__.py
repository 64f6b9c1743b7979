"""Recipes: whole runs from a YAML file, and the command line's answers and reports. They need the extra `recipe`."""

from ..compat import need

for _module in ("datasets", "yaml"):
    need(_module, "eidetic_hf.recipe")
