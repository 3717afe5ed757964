"""Plumbing for the fine-tuning notebooks: data, checks, scores, records. The techniques are in the notebooks."""

import logging

__version__ = "0.1.0"

# It says once, on import, that an optional package is missing; nothing here needs that package.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
