"""Sentences as vectors, from a small encoder: for routing and for search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModel, AutoTokenizer

from cookbook import assets

MODEL = "minilm-l6-v2"


class Embedder:
    """Sentence-BERT (Reimers and Gurevych 2019): the mean of the last layer over a text's tokens, of length one.

    Args:
        model: the name of a bundled embedder, or a folder with an encoder and its tokenizer.
    """

    def __init__(self, model: str = MODEL) -> None:
        folder = assets.path(model) if model in assets.names("embedder") else model
        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """Unit vectors, (texts, dimensions)."""
        found = []
        for start in range(0, len(texts), batch_size):
            rows = list(texts[start : start + batch_size])
            batch = self.tokenizer(rows, padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            found.append((self.model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(found))
