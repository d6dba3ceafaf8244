"""Define recipes, named objectives as data. Torch-free; `hintdistill.objectives` computes their parts.

`load_recipe("hint_sd")` gives a validated, frozen tree; `needs` lists its requirements beyond a hint and a student.
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
