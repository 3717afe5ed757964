"""The static site (`make site`): README.md, all notebooks with their committed outputs, comparisons, data cards."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

project = "Fine-tuning cookbook"
html_title = project
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["README.md", "notebooks/*.ipynb", "notebooks/records/*/*.md", "data_samples/*/README.md"]
include_patterns += ["docs/benchmark/*.md", "docs/benchmark/*/*.md"]
exclude_patterns = [".*", "runs", "site", "tests"]
nb_execution_mode = "off"  # what is shown is what is committed
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_show_copyright = False

OUTPUT_LINK = re.compile(r'href="([\w-]+)\.ipynb(?=["#])')  # Sphinx itself turns those of Markdown cells
CONTENTS = """
```{toctree}
:caption: Notebooks
:hidden:
:glob:
notebooks/*
```

```{toctree}
:caption: Comparisons
:hidden:
:glob:
notebooks/records/*/*
```

```{toctree}
:caption: Benchmark
:hidden:
:glob:
docs/benchmark/*
docs/benchmark/*/*
```

```{toctree}
:caption: Data
:hidden:
:glob:
data_samples/*/README
```
"""


def _with_contents(app, name: str, source: list[str]) -> None:
    """README.md is the front page; on the site it has a table of contents as well."""
    if name == root_doc:
        source[0] += CONTENTS


def _finished(app, error: Exception | None) -> None:
    """Links that a notebook's outputs wrote lead to pages; web servers look for a page called index."""
    if not error:
        for page in Path(app.outdir, "notebooks").glob("*.html"):
            page.write_text(OUTPUT_LINK.sub(r'href="\1.html', page.read_text("utf-8")), "utf-8")
        shutil.copy(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app) -> None:
    app.connect("source-read", _with_contents)
    app.connect("build-finished", _finished)
