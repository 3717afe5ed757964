"""Loading, generating, saving: the same answers whatever the batch, and no trace of this machine on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, chat
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from cookbook import batching, models
from cookbook.chat import other_template, render_full, render_prompt
from cookbook.models import ModelError

PROMPTS = [chat(text) for text in (*TEXTS, "Hi", "Where is it?", TEXTS[1] * 2)]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    return models.load(str(folder), dtype=dtype)


def adapted(model: Any) -> Any:
    """A LoRA that does something: B is not zero."""
    made = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    torch.manual_seed(1)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return made


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40).reshape(2, 20)).logits


def copy(folder: Path, to: Path, **files: bytes | None) -> Path:
    """A copy of a model folder with some files replaced (None: removed); `_` in a name stands for the last dot."""
    shutil.copytree(folder, to)
    for name, content in files.items():
        path = to / ".".join(name.rsplit("_", 1))
        path.unlink() if content is None else path.write_bytes(content)
    return to


# --- machine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [({}, "128"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "9"}, "9")])
def test_the_cache_of_compiled_products_is_bounded_from_the_first_import(
    given: dict[str, str], expected: str
) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    code = "import cookbook, os; print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    said = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == expected


def test_choose_dtype() -> None:
    dtype, speeds = models.choose_dtype()
    assert set(speeds) == {"fp32_gflops", "bf16_gflops"} and min(speeds.values()) > 0
    fast = speeds["bf16_gflops"] > 1.2 * speeds["fp32_gflops"]
    assert dtype is (torch.bfloat16 if fast else torch.float32)


# --- loading -----------------------------------------------------------------------------------------


def test_resolve(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.resolve(str(llama)) == str(llama)
    assert models.resolve("owner/name") == "owner/name"
    name = next(iter(models.assets.ASSETS))
    monkeypatch.setattr(models.assets, "path", lambda asset: tmp_path / asset)
    assert models.resolve(name) == str(tmp_path / name)


@pytest.mark.parametrize("wrong", ["./nothing", "~/nothing/here", "/nothing", "one/two/three", "word", ""])
def test_resolve_refuses(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="MODEL"):
        models.resolve(wrong)


def test_resolve_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no config.json in this folder"):
        models.resolve(str(tmp_path))


FAULTS = {
    "no tokenizer": {"tokenizer_json": None, "tokenizer_config_json": None},
    "broken config": {"config_json": b"{"},
    "unknown architecture": {"config_json": b'{"model_type": "nothing"}'},
    "no weights": {"model_safetensors": None},
    "half the weights": {"model_safetensors": b"\x80\x01\x00\x00\x00\x00\x00\x00{"},
}


@pytest.mark.parametrize("files", FAULTS.values(), ids=FAULTS)
def test_load_explains_a_broken_folder(llama: Path, tmp_path: Path, files: dict[str, bytes | None]) -> None:
    folder = copy(llama, tmp_path / "broken", **files)
    with pytest.raises(ModelError, match=r"MODEL .*broken cannot be loaded: \w.*Give a folder") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(llama: Path, tmp_path: Path) -> None:
    folder = copy(llama, tmp_path / "pickled", model_safetensors=None)
    torch.save(load_file(llama / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load(folder)


def test_load_switches_packing_off_and_pads_on_the_left(gpt2: Path) -> None:
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model, tokenizer = models.load(str(gpt2), dtype=torch.float32, quantization_config=nf4)
    four_bit = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(four_bit) == 8 and not any(m.support_avx512bf16_for_cpu for m in four_bit)
    assert not model.training and tokenizer.padding_side == "left"
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id


def test_tokenizer_without_template_or_padding(gpt2: Path, llama: Path) -> None:
    tokenizer = models.load_tokenizer(str(gpt2))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.chat_template == models.PLAIN_TEMPLATE
    assert render_prompt(tokenizer, chat("Hi")) == "System:\nAnswer with JSON.\nUser:\nHi\nAssistant:\n"
    assert models.load_tokenizer(str(llama)).chat_template != models.PLAIN_TEMPLATE


def test_tokenizer_without_an_end_of_text_token(llama: Path, tmp_path: Path, make_tokenizer: Callable) -> None:
    folder = copy(llama, tmp_path / "endless")
    make_tokenizer(None, None).save_pretrained(folder)
    with pytest.raises(ModelError, match="no end-of-text token"):
        load(folder)


def test_padding_token_that_the_model_never_had(qwen: Path) -> None:
    """Qwen2's tokenizer class adds one of its own, beyond the embeddings of a small or pruned model."""
    model, tokenizer = load(qwen)
    assert max(tokenizer.pad_token_id, tokenizer.eos_token_id) < model.get_input_embeddings().num_embeddings
    assert len(models.generate(model, tokenizer, PROMPTS, max_new_tokens=4)) == len(PROMPTS)


def test_context_length(llama: Path, gpt2: Path) -> None:
    assert [models.context_length(load(f)[0].config) for f in (llama, gpt2)] == [256, 256]


def test_label_shows_no_path(llama: Path) -> None:
    assert models.label(str(llama)) == "tiny-llama" and models.label("owner/name") == "owner/name"


def test_other_template_differs(llama: Path, gpt2: Path) -> None:
    for folder in (llama, gpt2):
        tokenizer = models.load_tokenizer(str(folder))
        other = other_template(tokenizer)
        assert render_prompt(other, PROMPTS[0]) != render_prompt(tokenizer, PROMPTS[0])
        assert render_full(other, PROMPTS[0], "x").startswith(render_prompt(other, PROMPTS[0]))
        assert tokenizer.chat_template == models.load_tokenizer(str(folder)).chat_template


def test_fingerprint_changes_with_one_weight(llama: Path, qwen: Path, tmp_path: Path) -> None:
    before = models.fingerprint(str(llama))
    folder = copy(llama, tmp_path / "other")
    assert models.fingerprint(str(folder)) == before != models.fingerprint(str(qwen)) and len(before) == 16
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][7] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert models.fingerprint(str(folder)) != before


# --- generating --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_answers_do_not_depend_on_batch_or_order(family: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = load(request.getfixturevalue(family))
    alone = [models.generate(model, tokenizer, [p], max_new_tokens=12)[0] for p in PROMPTS]
    assert len(set(alone)) > len(PROMPTS) // 2, "the model must answer differently for this test to say anything"
    for size in (2, 3, 48):
        assert models.generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=size) == alone
    turned = models.generate(model, tokenizer, PROMPTS[::-1], max_new_tokens=12, batch_size=3)
    assert turned == alone[::-1]


@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_a_shared_beginning_is_read_once(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked examples before each question: the same answers, and batches that never see the examples."""
    model, tokenizer = load(request.getfixturevalue(family))
    shots = [*chat(TEXTS[0]), {"role": "assistant", "content": TEXTS[2]}]
    asked = [[*shots, *prompt[1:]] for prompt in PROMPTS[:6]]
    widths: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: widths.append(ids[0].shape[1]))
    shared = models.generate(model, tokenizer, asked, max_new_tokens=6, batch_size=4)
    assert widths[0] >= batching.PREFIX_TOKENS > max(widths[1:]), "read once, and never again"
    hook.remove()
    monkeypatch.setattr(batching, "PREFIX_TOKENS", 10_000)
    assert models.generate(model, tokenizer, asked, max_new_tokens=6, batch_size=4) == shared
    assert len(set(shared)) > 3


def test_batches_stay_within_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BATCH_TOKENS", 100)
    lengths = [10, 10, 20, 30, 60, 120]
    assert list(batching.batches([0, 1, 2, 3, 4, 5], lengths, 3)) == [[0, 1, 2], [3], [4], [5]]
    assert list(batching.batches([0, 1, 2], lengths, 48)) == [[0, 1, 2]]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_next_tokens_are_those_of_greedy_answers(family: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = load(request.getfixturevalue(family))
    prompts, answers = PROMPTS[:5], [TEXTS[i % 3][: 10 + 7 * i] for i in range(5)]
    found = models.next_tokens(model, tokenizer, prompts, answers, batch_size=2)
    for prompt, answer, tokens in zip(prompts, answers, found, strict=True):
        asked = tokenizer(render_prompt(tokenizer, prompt), return_tensors="pt")["input_ids"]
        whole = tokenizer(render_full(tokenizer, prompt, answer), return_tensors="pt")["input_ids"]
        alone = model(whole).logits[0].argmax(-1)[asked.shape[1] - 1 : -1]
        assert tokens == alone.tolist() and len(tokens) == whole.shape[1] - asked.shape[1]
    other = models.next_tokens(adapted(model), tokenizer, prompts, answers, batch_size=2)
    assert other != found, "another model writes other tokens"


def test_generate_takes_text_reports_progress_and_keeps_the_mode(llama: Path) -> None:
    model, tokenizer = load(llama)
    told: list[tuple[int, int]] = []
    texts = [render_prompt(tokenizer, p) for p in PROMPTS]
    answers = models.generate(
        model.train(), tokenizer, texts, max_new_tokens=4, batch_size=3, progress=lambda *n: told.append(n)
    )
    assert model.training and told == [(3, 7), (6, 7), (7, 7)]
    assert answers == models.generate(model.eval(), tokenizer, PROMPTS, max_new_tokens=4)
    assert models.generate(model, tokenizer, []) == [] and not model.training


def first_ids(model: Any, tokenizer: Any, count: int) -> list[int]:
    ids = tokenizer(render_prompt(tokenizer, PROMPTS[0]), return_tensors="pt")
    start = ids["input_ids"].shape[1]
    out = model.generate(**ids, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[0, start:].tolist()


def test_an_answer_ends_at_each_end_of_text_token(llama: Path) -> None:
    """The tokenizer's own, and those of the model's generation config (one or a list)."""
    model, tokenizer = load(llama)
    ids = first_ids(model, tokenizer, 16)
    at = next(i for i in range(3, 16) if ids[i] not in ids[:i] and ids[i] not in tokenizer.all_special_ids)
    long = tokenizer.decode(ids).strip()

    def answer() -> str:
        return models.generate(model, tokenizer, PROMPTS[:1], max_new_tokens=16)[0]

    assert answer() == long
    stopped = tokenizer.decode(ids[: at + 1]).strip()  # the stop itself is an ordinary word here, and so shown
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, ids[at]]
    assert answer() == stopped != long
    model.generation_config.eos_token_id = ids[at]
    assert answer() == stopped
    model.generation_config.eos_token_id = None
    assert answer() == long
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[at])
    assert answer() == stopped


def test_long_prompts_are_cut_at_the_start(gpt2: Path) -> None:
    model, tokenizer = load(gpt2)
    ids = tokenizer(" ".join(TEXTS * 6))["input_ids"]
    assert len(ids) > 400
    kept = tokenizer.decode(ids[-(256 - 20) :])
    assert tokenizer(kept)["input_ids"] == ids[-(256 - 20) :]
    long, cut = models.generate(model, tokenizer, [tokenizer.decode(ids), kept], max_new_tokens=20)
    assert long == cut


@pytest.mark.parametrize("count", [256, 1000])
def test_no_room_for_a_prompt(gpt2: Path, count: int) -> None:
    model, tokenizer = load(gpt2)
    with pytest.raises(ModelError, match=f"max_new_tokens={count} leaves no room in a context of 256"):
        models.generate(model, tokenizer, PROMPTS, max_new_tokens=count)


# --- saving ------------------------------------------------------------------------------------------


def test_saved_adapter_reloads_alike_and_shows_no_path(llama: Path, tmp_path: Path) -> None:
    model, tokenizer = load(llama)
    trained = adapted(model)
    folder = models.save_adapter(trained, tokenizer, tmp_path / "model", base=str(llama), card="# A card\n")
    assert (folder / "README.md").read_text() == "# A card\n"
    assert {"adapter_model.safetensors", "tokenizer.json"} <= {f.name for f in folder.iterdir()}
    assert not [f for f in folder.rglob("*") if f.suffix in (".bin", ".pt", ".pkl")]
    for file in folder.rglob("*"):
        content = file.read_bytes()
        assert not [p for p in (tmp_path, llama.parent, Path.home()) if str(p).encode() in content], file
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llama"
    assert trained.peft_config["default"].base_model_name_or_path == str(llama)
    fresh, _ = load(llama)
    plain = logits(fresh)
    again = PeftModel.from_pretrained(fresh, str(folder)).eval()
    assert torch.equal(logits(again), logits(trained)) and not torch.allclose(logits(again), plain, atol=0.1)
    assert models.load_tokenizer(str(llama)).chat_template == tokenizer.chat_template
    assert torch.allclose(logits(again.merge_and_unload()), logits(trained), atol=1e-3)


def test_saving_asks_no_hub_for_a_folder_of_the_same_name(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT would look up a base called "gpt2" there and, if its vocabulary differs, save all embeddings."""
    import peft.utils.save_and_load as peft_saving

    def forbid(*args: object, **kwargs: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(peft_saving, "check_file_exists_on_hf_hub", forbid)
    folder = copy(llama, tmp_path / "gpt2")
    model, tokenizer = load(folder)
    models.save_adapter(adapted(model), tokenizer, tmp_path / "model", base=str(folder), card="")
    assert all("lora_" in name for name in load_file(tmp_path / "model" / "adapter_model.safetensors"))
