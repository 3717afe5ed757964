"""A tiny Whisper is written as a CTranslate2 file here, converted, and must hear the same."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from cookbook import assets, convert_whisper
from cookbook.convert_whisper import ConversionError

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>",
           "<|notimestamps|>"]  # fmt: skip
KINDS = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.float16): 4, np.dtype(np.uint16): 5}


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def ct2(tensors: dict[str, np.ndarray], spec: str = "WhisperSpec", aliases: dict[str, str] | None = None) -> bytes:
    parts = [struct.pack("<I", 6), text(spec), struct.pack("<II", 3, len(tensors))]
    for name, values in tensors.items():
        parts += [text(name), struct.pack("<B", values.ndim), struct.pack(f"<{values.ndim}I", *values.shape)]
        kind = KINDS[values.dtype] if values.dtype in KINDS else 3
        parts += [struct.pack("<BI", kind, values.nbytes), values.tobytes()]
    parts.append(struct.pack("<I", len(aliases or {})))
    return b"".join([*parts, *(text(a) + text(b) for a, b in (aliases or {}).items())])


def tiny_whisper(words: int) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=words, d_model=16, num_mel_bins=80, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=24, max_source_positions=1500,
        max_target_positions=448, decoder_start_token_id=1, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2) if weight.ndim < 2 or weight.shape[0] != 1500 else None
            weight.copy_(weight.half().float())  # what the file can hold
    return model


def as_ct2(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """The same weights under CTranslate2's names: fused attention, gamma and beta, one embedding."""
    weights = {k: v.detach().numpy().astype(np.float16) for k, v in model.model.state_dict().items()}
    found: dict[str, np.ndarray] = {}

    def put(name: str, *sources: str) -> None:
        norm = "norm" in name
        biases = []
        for source in sources:
            rows = len(weights[f"{source}.weight"])
            biases.append(weights.get(f"{source}.bias", np.zeros(rows, np.float16)))
        found[f"{name}/{'gamma' if norm else 'weight'}"] = np.concatenate([weights[f"{s}.weight"] for s in sources])
        found[f"{name}/{'beta' if norm else 'bias'}"] = np.concatenate(biases)

    for side in ("encoder", "decoder"):
        found[f"{side}/num_heads"] = np.array(2, np.int16).astype(np.int8)
        found[f"{side}/position_encodings/encodings"] = weights[f"{side}.embed_positions.weight"]
        put(f"{side}/layer_norm", f"{side}.layer_norm")
        for i in range(2):
            theirs, ours = f"{side}/layer_{i}", f"{side}.layers.{i}"
            put(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{p}_proj" for p in "qkv"))
            put(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            put(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            if side == "decoder":
                put(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                put(f"{theirs}/attention/linear_1", *(f"{ours}.encoder_attn.{p}_proj" for p in "kv"))
                put(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
                put(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
            put(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            put(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
            put(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
    for conv in ("conv1", "conv2"):
        put(f"encoder/{conv}", f"encoder.{conv}")
    found["decoder/embeddings/weight"] = weights["decoder.embed_tokens.weight"]
    return found


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder as faster-whisper has it; returns its model.bin."""

    def make(tensors: dict[str, np.ndarray], special: list[str] = SPECIAL, **more: object) -> Path:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet,
                                      show_progress=False)  # fmt: skip
        core.train_from_iterator(["the tea, the tin, the ticket to tea"], trainer)
        core.save(str(tmp_path / "tokenizer.json"))
        facts = {"suppress_ids": [5], "suppress_ids_begin": [6, 0], "alignment_heads": [[1, 0]]}
        (tmp_path / "config.json").write_text(json.dumps(facts))
        (tmp_path / "model.bin").write_bytes(ct2(tensors, **more))
        return tmp_path / "model.bin"

    return make


def logits(model: WhisperForConditionalGeneration) -> torch.Tensor:
    sound = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_features=sound, decoder_input_ids=torch.tensor([[1, 6, 9, 12]])).logits


def test_converted_model_hears_the_same(tmp_path: Path, write: Callable[..., Path]) -> None:
    model = tiny_whisper(290)
    state = torch.random.get_rng_state()
    convert_whisper.ct2_whisper(write(as_ct2(model)), tmp_path / "out")
    assert torch.equal(torch.random.get_rng_state(), state)
    converted = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert converted.dtype == torch.float32
    assert torch.allclose(logits(converted), logits(model), atol=1e-5)
    settings = converted.generation_config
    assert (settings.suppress_tokens, settings.begin_suppress_tokens) == ([5], [6, 0])
    assert (settings.no_timestamps_token_id, settings.is_multilingual) == (6, False)
    processor = WhisperProcessor.from_pretrained(tmp_path / "out")
    ids = processor.tokenizer("the ticket").input_ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "the ticket"
    assert processor.feature_extractor.feature_size == 80


def test_cut(tmp_path: Path, write: Callable[..., Path]) -> None:
    convert_whisper.ct2_whisper(write(as_ct2(tiny_whisper(290))), tmp_path / "whole")
    convert_whisper.cut_whisper(tmp_path / "whole", tmp_path / "cut", layers=1)
    cut = WhisperForConditionalGeneration.from_pretrained(tmp_path / "cut").eval()
    whole = WhisperForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    assert len(cut.model.encoder.layers) == len(cut.model.decoder.layers) == 1
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in cut.state_dict().items())
    with pytest.raises(ConversionError, match="layers must be 1 to 2 for whole, not 3"):
        convert_whisper.cut_whisper(tmp_path / "whole", tmp_path / "none", layers=3)


def test_kinds_of_numbers_and_aliases() -> None:
    values = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    scale = np.array([60.0, 40.0], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    byte = np.round(values * scale[:, None]).astype(np.int8)
    stored = {"half": values.astype(np.float16), "brain": bits, "byte": byte, "byte_scale": scale}
    found = convert_whisper.read_ct2(ct2(stored, aliases={"again": "half"}))
    assert set(found) == {"half", "brain", "byte", "again"}
    for name in ("half", "brain", "again"):
        assert torch.equal(found[name], torch.from_numpy(values))
    assert torch.allclose(found["byte"], torch.from_numpy(values), atol=0.5 / 40)


def test_unreadable_files(tmp_path: Path, write: Callable[..., Path]) -> None:
    whole = as_ct2(tiny_whisper(290))
    blob = ct2(whole)
    with pytest.raises(ConversionError, match="TransformerSpec .* not a WhisperSpec"):
        convert_whisper.read_ct2(ct2(whole, spec="TransformerSpec"))
    with pytest.raises(ConversionError, match=r"model\.bin: no CTranslate2 model"):
        convert_whisper.read_ct2(b"GGUF" + blob[4:])
    for length in (3, 40, len(blob) // 2):
        with pytest.raises(ConversionError, match="cut|no readable"):
            convert_whisper.read_ct2(blob[:length])
    with pytest.raises(ConversionError, match="unknown type 9"):
        odd = ct2({"w": np.zeros(2, np.float32)})
        convert_whisper.read_ct2(odd.replace(struct.pack("<BI", 0, 8), struct.pack("<BI", 9, 8)))


def test_wrong_models(tmp_path: Path, write: Callable[..., Path]) -> None:
    whole = as_ct2(tiny_whisper(290))
    less = {k: v for k, v in whole.items() if not k.startswith("decoder/layer_1/ffn/linear_1")}
    with pytest.raises(ConversionError, match=r"no weights for \['model.decoder.layers.1.fc2"):
        convert_whisper.ct2_whisper(write(less), tmp_path / "out")
    with pytest.raises(ConversionError, match="has no decoder/embeddings/weight"):
        headless = {k: v for k, v in whole.items() if "embeddings" not in k}
        convert_whisper.ct2_whisper(write(headless), tmp_path / "out")
    with pytest.raises(ConversionError, match=r"tokenizer.json has no <\|notimestamps\|>"):
        convert_whisper.ct2_whisper(write(whole, special=SPECIAL[:-1]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.model
def test_real_models() -> None:
    whole = WhisperForConditionalGeneration.from_pretrained(assets.path("whisper-tiny-en"))
    assert sum(p.numel() for p in whole.parameters()) == 37_760_256
    smoke = WhisperForConditionalGeneration.from_pretrained(assets.path("whisper-tiny-en-smoke"))
    assert len(smoke.model.decoder.layers) == 1
    assert not {"whisper-tiny-en", "whisper-tiny-en-smoke"} & set(assets.names("model"))
    processor = WhisperProcessor.from_pretrained(assets.path("whisper-tiny-en"))
    tones = np.sin(np.arange(16_000) * np.linspace(0.1, 0.5, 16_000)).astype(np.float32)
    heard = processor.feature_extractor(tones, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        likely = whole(input_features=heard, decoder_input_ids=torch.tensor([[50257, 50362]])).logits[0, -1]
    assert likely.softmax(-1).max() > 0.2, "it has a definite idea of what it hears"
