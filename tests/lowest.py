"""Constraints for pip: of each package named, the lowest version that pyproject.toml allows."""

import re
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    allowed = "\n".join(tomllib.load(file)["project"]["dependencies"])
for name in sys.argv[1:]:
    lowest = re.search(rf"^{name}>=([\d.]+)", allowed, re.MULTILINE)[1]
    print(f"{name}=={lowest}.*")
