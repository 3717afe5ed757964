"""Plumbing for the fine-tuning notebooks: data, checks, scores, records. The techniques are in the notebooks."""

import logging
import os

__version__ = "0.1.0"

# oneDNN keeps what it compiled for each shape of a product, 1,024 of them. Rows of text have ever other lengths, and
# so training on a CPU would gather over a gigabyte in some hundred steps. One step needs far fewer than these.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

# It says once, on import, that an optional package is missing; nothing here needs that package.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
