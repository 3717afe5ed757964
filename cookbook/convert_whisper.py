"""Conversion of a CTranslate2 Whisper model (faster-whisper's format) to a Hugging Face checkpoint."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

SPEC, OLDEST = "WhisperSpec", 5  # revision of the binary format that names types and aliases as read here
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16, 5: np.uint16}  # 5: bfloat16's bits
MULTILINGUAL = 51_865  # tokens in a vocabulary that knows languages and tasks
WIDTH = 448  # target positions of every Whisper


class ConversionError(ValueError):
    """The file is not what this converter reads; the message says what was found."""


def ct2_whisper(model: Path, out: Path) -> None:
    """Convert `model.bin`, with `tokenizer.json` and `config.json` beside it, to fp32 safetensors and a processor.

    Int8 weights are multiplied out with their scales; fp16 and bf16 values are exact in fp32.

    Raises:
        ConversionError: another format or model, a cut file, a missing or a surplus weight.
    """
    tensors = read_ct2(model.read_bytes(), model.name)
    weights, layers = hugging_face_names(tensors, model.name)
    tokenizer = Tokenizer.from_file(str(model.parent / "tokenizer.json"))
    facts = json.loads((model.parent / "config.json").read_text(encoding="utf-8"))
    special = _special_tokens(tokenizer)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and then replaced
        made = WhisperForConditionalGeneration(_config(tensors, layers, special))
    missing, surplus = made.load_state_dict(weights, strict=False)
    if missing or surplus:
        raise ConversionError(f"{model.name}: no weights for {missing[:5]}, no place for {surplus[:5]}")
    made.generation_config = _generation(tokenizer, facts, special, made.config.vocab_size)
    made.eval().save_pretrained(out)
    processor(model.parent / "tokenizer.json", made.config, out).save_pretrained(out)


def cut_whisper(folder: Path, out: Path, layers: int = 1) -> None:
    """Write the checkpoint with only the first `layers` layers of its encoder and of its decoder.

    Raises:
        ConversionError: `layers` is not between 1 and the number that the model has.
    """
    config = WhisperConfig.from_pretrained(folder)
    most = min(config.encoder_layers, config.decoder_layers)
    if not 1 <= layers <= most:
        raise ConversionError(f"layers must be 1 to {most} for {folder.name}, not {layers}")
    whole = WhisperForConditionalGeneration.from_pretrained(folder)
    for side in (whole.model.encoder, whole.model.decoder):
        side.layers = side.layers[:layers]
    whole.config.encoder_layers = whole.config.decoder_layers = whole.config.num_hidden_layers = layers
    whole.generation_config.alignment_heads = None  # they point into layers that are gone
    whole.save_pretrained(out)
    WhisperProcessor.from_pretrained(folder).save_pretrained(out)


def read_ct2(blob: bytes, name: str = "model.bin") -> dict[str, torch.Tensor]:
    """The tensors of a CTranslate2 file by name, as fp32 where they are weights.

    Little-endian: u32 version; text spec; u32 revision; u32 count; for each tensor its name, u8 rank, u32 shape,
    u8 type, u32 bytes, data; u32 count of aliases; for each a name and the name it stands for. A text is its length
    (u16, with a closing zero) and its bytes. Format: https://github.com/OpenNMT/CTranslate2.

    Raises:
        ConversionError: not a Whisper in this format, or cut short.
    """
    stream = io.BytesIO(blob)

    def take(code: str) -> int:
        return struct.unpack(f"<{code}", stream.read(struct.calcsize(f"<{code}")))[0]

    def text() -> str:
        return stream.read(take("H"))[:-1].decode("utf-8")

    try:
        version = take("I")
        spec = text() if OLDEST <= version < 100 else "no CTranslate2 model"
        if spec != SPEC:
            raise ConversionError(f"{name}: {spec} (version {version}), not a {SPEC} of version {OLDEST} or later")
        take("I")  # revision
        stored = {}
        for _ in range(take("I")):
            key, shape = text(), [take("I") for _ in range(take("B"))]
            kind, size = take("B"), take("I")
            if kind not in TYPES:
                raise ConversionError(f"{name}: {key} has the unknown type {kind}; known: {sorted(TYPES)}")
            values = np.frombuffer(stream.read(size), TYPES[kind])
            if values.size != math.prod(shape):
                raise ConversionError(f"{name}: {key} holds {values.size} values and not {math.prod(shape)}: cut?")
            stored[key] = kind, values.reshape(shape)
        aliases = {text(): text() for _ in range(take("I"))}
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{name} is no readable CTranslate2 model: {error}") from error
    found = {key: _tensor(key, stored) for key in stored if not key.endswith("_scale")}
    return found | {alias: found[target] for alias, target in aliases.items() if target in found}


def _tensor(key: str, stored: Mapping[str, tuple[int, np.ndarray]]) -> torch.Tensor:
    kind, values = stored[key]
    if kind == 5:
        return torch.from_numpy(values.copy()).view(torch.bfloat16).float()
    if kind == 1 and f"{key}_scale" in stored:  # stored = round(weight * scale), one scale a row
        scale = stored[f"{key}_scale"][1].astype(np.float32)
        rows = scale.reshape(-1, *[1] * (values.ndim - 1)) if scale.size > 1 else scale
        return torch.from_numpy(values.astype(np.float32) / rows)
    return torch.from_numpy(values.astype(np.float32) if kind == 4 else values.copy())


def hugging_face_names(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[dict, dict[str, int]]:
    """The state dict under transformers' names, and the number of layers of each side.

    CTranslate2 keeps query, key and value in one matrix (`linear_0`), where transformers has three and no bias on
    the key; output and input embeddings are one.
    """
    state: dict[str, torch.Tensor] = {}

    def place(target: str, source: str, parts: tuple[str, ...] = ("",)) -> None:
        for theirs, ours in (("weight", "weight"), ("bias", "bias"), ("gamma", "weight"), ("beta", "bias")):
            if (key := f"{source}/{theirs}") in tensors:
                for part, piece in zip(parts, tensors[key].float().chunk(len(parts)), strict=True):
                    if not (part.endswith("k_proj") and ours == "bias"):
                        state[f"model.{target}{part}.{ours}"] = piece.clone()

    layers = {side: len({k.split("/")[1] for k in tensors if k.startswith(f"{side}/layer_") and k.count("/") > 2})
              for side in ("encoder", "decoder")}  # fmt: skip
    needed = [f"{side}/{part}" for side in layers for part in ("position_encodings/encodings", "num_heads")]
    needed += ["decoder/embeddings/weight", "encoder/conv1/weight", "encoder/layer_0/ffn/linear_0/weight",
               "decoder/layer_0/ffn/linear_0/weight"]  # fmt: skip
    if lacking := [key for key in needed if key not in tensors]:
        raise ConversionError(f"{name} has no {', '.join(lacking)}: not a whole Whisper")
    for conv in ("conv1", "conv2"):
        place(f"encoder.{conv}", f"encoder/{conv}")
    own, query, both = (".q_proj", ".k_proj", ".v_proj"), (".q_proj",), (".k_proj", ".v_proj")
    for side, count in layers.items():
        state[f"model.{side}.embed_positions.weight"] = tensors[f"{side}/position_encodings/encodings"].float()
        place(f"{side}.layer_norm", f"{side}/layer_norm")
        for number in range(count):
            target, source = f"{side}.layers.{number}", f"{side}/layer_{number}"
            place(f"{target}.self_attn", f"{source}/self_attention/linear_0", own)
            place(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            place(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            place(f"{target}.encoder_attn", f"{source}/attention/linear_0", query)
            place(f"{target}.encoder_attn", f"{source}/attention/linear_1", both)
            place(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
            place(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            place(f"{target}.fc1", f"{source}/ffn/linear_0")
            place(f"{target}.fc2", f"{source}/ffn/linear_1")
            place(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
    words = tensors["decoder/embeddings/weight"].float()
    return state | {"model.decoder.embed_tokens.weight": words, "proj_out.weight": words}, layers


def processor(tokenizer_file: Path, config: WhisperConfig, scratch: Path) -> WhisperProcessor:
    """Feature extractor and tokenizer for a converted model.

    Some published multilingual files lack the first merge of the byte-pair encoding, and " tried" falls into pieces:
    it is put back.
    """
    whole = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in whole["model"]["merges"]]
    first = ("Ġ", "t")
    if first not in merges and "Ġt" in whole["model"]["vocab"]:
        merges.insert(0, first)
    whole["model"]["merges"] = [" ".join(m) for m in merges]
    repaired = scratch / "tokenizer.json"
    repaired.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    ends = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    tokenizer = WhisperTokenizerFast(
        tokenizer_file=str(repaired), vocab=whole["model"]["vocab"], merges=merges, model_max_length=WIDTH, **ends
    )
    if config.vocab_size >= MULTILINGUAL:
        tokenizer.set_prefix_tokens(language="en", task="transcribe")
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=config.num_mel_bins), tokenizer)


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    named = {"end": "<|endoftext|>", "start": "<|startoftranscript|>", "plain": "<|notimestamps|>",
             "previous": "<|startofprev|>"}  # fmt: skip
    ids = {name: tokenizer.token_to_id(token) for name, token in named.items()}
    if lacking := [named[name] for name, number in ids.items() if number is None]:
        raise ConversionError(f"tokenizer.json has no {', '.join(lacking)}: not the tokenizer of a Whisper")
    return ids


def _config(tensors: Mapping[str, torch.Tensor], layers: dict[str, int], special: dict[str, int]) -> WhisperConfig:
    first = tensors["encoder/conv1/weight"]
    shape = {}
    for side in ("encoder", "decoder"):
        shape[f"{side}_layers"] = layers[side]
        shape[f"{side}_attention_heads"] = int(tensors[f"{side}/num_heads"])
        shape[f"{side}_ffn_dim"] = tensors[f"{side}/layer_0/ffn/linear_0/weight"].shape[0]
    return WhisperConfig(
        vocab_size=tensors["decoder/embeddings/weight"].shape[0],
        d_model=first.shape[0],
        num_mel_bins=first.shape[1],
        max_source_positions=tensors["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=tensors["decoder/position_encodings/encodings"].shape[0],
        **shape,
        **_ends(special),
    )


def _generation(tokenizer: Tokenizer, facts: dict, special: dict[str, int], words: int) -> GenerationConfig:
    multilingual = words >= MULTILINGUAL
    found: dict[str, Any] = {
        "is_multilingual": multilingual,
        "suppress_tokens": facts.get("suppress_ids"),
        "begin_suppress_tokens": facts.get("suppress_ids_begin") or [220, special["end"]],
        "alignment_heads": facts.get("alignment_heads"),
        "no_timestamps_token_id": special["plain"],
        "prev_sot_token_id": special["previous"],
        "max_length": WIDTH,
        "return_timestamps": False,
        "forced_decoder_ids": None,
    }
    if multilingual:
        tasks = {f"<|{task}|>": tokenizer.token_to_id(f"<|{task}|>") for task in ("transcribe", "translate")}
        between = range(special["start"] + 1, min(i for i in tasks.values() if i is not None))
        names = {tokenizer.id_to_token(i): i for i in between}
        found |= {"lang_to_id": names, "task_to_id": {name[2:-2]: i for name, i in tasks.items()}}
        del found["forced_decoder_ids"]
    return GenerationConfig(**found, **_ends(special))


def _ends(special: dict[str, int]) -> dict[str, int]:
    end = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), special["end"])
    return end | {"decoder_start_token_id": special["start"]}
