"""How fast the recipes train on a CPU, beside the same training by other means: `python -m bench`."""
