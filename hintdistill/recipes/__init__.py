"""Recipes: named objectives as data. Torch-free; what they name is computed in `hintdistill.objectives`.

`load_recipe("hint_sd")` gives a validated, frozen tree; `needs` says what it asks for beyond a hint and a student.
"""

from hintdistill.recipes.library import DEFAULT, load_recipe, recipe_folder, recipe_names
from hintdistill.recipes.needs import Need, missing, needs, reads_advantage, reads_reward, require_met
from hintdistill.recipes.schema import Recipe, Term

__all__ = [
    "DEFAULT",
    "Need",
    "Recipe",
    "Term",
    "load_recipe",
    "missing",
    "needs",
    "reads_advantage",
    "reads_reward",
    "recipe_folder",
    "recipe_names",
    "require_met",
]
