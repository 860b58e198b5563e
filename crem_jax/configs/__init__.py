"""Recipes that ship with the package, by name: `crem train --config=emoji:smoke`.

Each module has `get_config(option)`, which returns a ConfigDict with every key of the schema.
"""

NO_RECIPES = ("document", "fields", "flags", "qwen2_vl")
"""Modules of this package that are not recipes."""
