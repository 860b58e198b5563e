"""Recipes that ship with the package, by name: `crem train --config=emoji:smoke`.

Each module has `get_config(option)`, which gives a ConfigDict with every key of the schema.
"""

NO_RECIPES = ("document", "fields", "flags", "qwen2_vl")
"""Modules here that are none."""
