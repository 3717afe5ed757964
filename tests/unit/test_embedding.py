"""The sentence embedder on a tiny random encoder: unit vectors that do not depend on their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from cookbook.embedding import Embedder

TEXTS = ["a short one", "my parcel is late and nobody answers the phone, not once in a whole long week", "late"]


@pytest.fixture
def embedder(make_tokenizer: Callable[..., Any], tmp_path: Path) -> Embedder:
    tokenizer = make_tokenizer(None, "<eos>")
    tokenizer.pad_token, tokenizer.model_max_length = "<eos>", 64
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)).save_pretrained(tmp_path)
    return Embedder(str(tmp_path))


def test_unit_vectors_whatever_the_batch(embedder: Embedder) -> None:
    together = embedder(TEXTS[:3])
    assert together.shape == (3, 32) and not together.requires_grad
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embedder(TEXTS[:3], batch_size=1), together, atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_texts_longer_than_the_encoder_reads_are_cut(embedder: Embedder) -> None:
    assert embedder(["late " * 500]).isfinite().all()
