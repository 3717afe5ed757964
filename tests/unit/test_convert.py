"""Conversions: a tiny random Llama through GGUF and back, the layer cut, and the real model."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as hf_logging

from cookbook import assets, convert

# The published template of SmolLM2-135M-Instruct, as its model card's repository has it.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "Hello  world, it's me.\n\n1. First item\n\n22. Second:  40 minutes at 180 C",
    "naïve café, 日本 🎉\tend ",
    "<|im_start|>user\nRefund £12.50 for order 48213?<|im_end|>\n",
]


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE with SmolLM2's splitting rule, trained on a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text in TEXTS for _ in range(9)], trainer)
    return tokenizer


def tiny_llama(tied: bool, layers: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large enough to see a wrong rotation; exact in fp16
            parameter.copy_((torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1)).half().float())
    return model


def rotate_as_llama_cpp(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Row order of query and key weights in a GGUF: pairs interleaved (llama.cpp, convert_hf_to_gguf.py)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    file: Path,
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    template: str | None = SMOLLM2_TEMPLATE,
    omit: str = "",
) -> None:
    config, writer = model.config, GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in SPECIAL else TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(template)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = model.state_dict()
    tensors = {"token_embd": state["model.embed_tokens.weight"], "output_norm": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        tensors["output"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            rotated = rotate_as_llama_cpp(weight, heads[theirs]) if theirs in heads else weight
            tensors[f"blk.{layer}.{theirs}"] = rotated
    for name, tensor in tensors.items():
        if name != omit:
            half = tensor.ndim == 2  # norms stay fp32, as llama.cpp writes them
            writer.add_tensor(f"{name}.weight", (tensor.half() if half else tensor).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_gives_the_original_logits(tmp_path: Path, tied: bool, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny_llama(tied), tiny_tokenizer()
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    state = torch.random.get_rng_state()
    bars, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    capfd.readouterr()
    convert.gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "out")
    assert capfd.readouterr() == ("", ""), "no warnings, no bars"
    assert (hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()) == (bars, verbosity)
    assert torch.equal(torch.random.get_rng_state(), state), "a first run draws the same numbers later on"

    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = tokenizer.encode(TEXTS[0]).ids[:60]
    assert torch.allclose(logits(converted, ids), logits(model, ids), atol=1e-4)
    assert converted.dtype == torch.float32
    assert (converted.lm_head.weight is converted.model.embed_tokens.weight) == tied
    assert converted.config.rope_parameters["rope_theta"] == 5000.0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == ["LlamaForCausalLM"]


def test_tokenizer_of_a_gguf(tmp_path: Path) -> None:
    original = tiny_tokenizer()
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(True), original)
    convert.gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert tokenizer(text).input_ids == original.encode(text).ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == SMOLLM2_TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token == "<|endoftext|>", "padding with the end token hides the end from the loss"
    assert tokenizer.model_max_length == 128
    for settings in (model.config, model.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 0)


def test_gguf_without_a_template(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(True), tiny_tokenizer(), template=None)
    with pytest.raises(ValueError, match=r"tiny\.gguf holds no chat template"):
        convert.gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "out")


def test_gguf_without_a_weight(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(True), tiny_tokenizer(), omit="blk.1.ffn_up")
    with pytest.raises(ValueError, match=r"no weights for .*layers\.1\.mlp\.up_proj"):
        convert.gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "out")


@pytest.mark.parametrize("tied", [True, False])
def test_cut_layers(tmp_path: Path, tied: bool) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(tied), tiny_tokenizer())
    convert.gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "whole")
    convert.cut_layers(tmp_path / "whole", tmp_path / "cut", layers=2)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").eval()
    assert cut.config.num_hidden_layers == len(cut.model.layers) == 2
    kept = cut.state_dict()
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in kept.items())
    assert not any(name.startswith("model.layers.2.") for name in kept)
    assert (cut.lm_head.weight is cut.model.embed_tokens.weight) == tied
    assert cut.generation_config.eos_token_id == 2
    whole.model.layers = whole.model.layers[:2]
    ids = list(range(3, 40))
    assert torch.equal(logits(cut, ids), logits(whole, ids))
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_cut_layers_keeps_the_dtype_and_refuses_bad_counts(tmp_path: Path) -> None:
    tiny_llama(True).to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(True), tiny_tokenizer())
    convert.gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "fp32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "fp32" / name, tmp_path / "whole" / name)
    convert.cut_layers(tmp_path / "whole", tmp_path / "cut", layers=1)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "cut").dtype == torch.bfloat16
    for layers in (0, 4):
        with pytest.raises(ValueError, match="layers must be 1 to 3"):
            convert.cut_layers(tmp_path / "whole", tmp_path / "none", layers=layers)
    assert not (tmp_path / "none").exists()


@pytest.mark.model
def test_real_model_speaks() -> None:
    folder = assets.path("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id, "it ends its turn by itself"
    prose = tokenizer("Water boils at one hundred degrees Celsius at sea level.", return_tensors="pt").input_ids
    with torch.inference_mode():
        forward, backward = (model(ids, labels=ids).loss for ids in (prose, prose.flip(-1)))
    assert forward + 3 < backward, "English is far likelier than the same tokens backwards"


@pytest.mark.model
def test_real_tokenizer_splits_as_the_model_was_trained() -> None:
    tokenizer = AutoTokenizer.from_pretrained(assets.path("smollm2-135m-instruct"))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer(":\n\n12  3").input_ids) == [
        ":",
        "ĊĊ",
        "1",
        "2",
        "ĠĠ",
        "3",
    ]
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert tokenizer.apply_chat_template(turn, tokenize=False) == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
    )


@pytest.mark.model
def test_real_smoke_model_is_a_prefix() -> None:
    folder = assets.path("smollm2-135m-instruct-smoke")
    smoke = AutoModelForCausalLM.from_pretrained(folder)
    whole = AutoModelForCausalLM.from_pretrained(assets.path("smollm2-135m-instruct"))
    assert len(smoke.model.layers) == 4
    assert all(torch.equal(w, whole.state_dict()[name]) for name, w in smoke.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"


# --- licence texts ------------------------------------------------------------------------------------


def licence(key: str, text: str, **more: str) -> str:
    facts = {"key": key, "name": key.upper(), "owner": "Nobody", "category": "Permissive", **more}
    return "---\n" + "".join(f"{k}: {v}\n" for k, v in facts.items()) + f"---\n\n{text}\n"


def test_licence_texts(tmp_path: Path) -> None:
    text = "Use it as you like,\nwhoever you are.\n\nKeep this notice.\n" * 10
    entries = {
        "a": licence("a", text),
        "b": licence("b", text, category="Copyleft"),
        "old": licence("old", text, is_deprecated="yes"),
        "any": licence("any", text, is_generic="yes"),
        "de": licence("de", text, language="de"),
        "short": licence("short", "Keep this notice."),
    }
    wheel = tmp_path / "texts.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for key, entry in entries.items():
            archive.writestr(f"licensedcode/data/licenses/{key}.LICENSE", entry)
        archive.writestr("licensedcode/data/rules/x.RULE", "not a licence")
    convert.licence_texts(wheel, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["key"], r["category"]) for r in rows] == [("a", "Permissive"), ("b", "Copyleft")]
    assert rows[0]["text"].startswith("Use it as you like, whoever you are.\nKeep this notice.")
    assert set(rows[0]) == {"key", "name", "owner", "category", "text"}
    assert "CC-BY-4.0" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_wheel_without_licence_texts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(ValueError, match="no licence texts"):
        convert.licence_texts(tmp_path / "empty.whl", tmp_path)
