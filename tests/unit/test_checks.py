"""Each check passes on a right set-up and stops on the fault that it is there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, chat
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig

from cookbook import checks, models
from cookbook.chat import other_template, render_full, render_prompt
from cookbook.checks import IGNORED, CheckError
from cookbook.fourbit import dense_weights

Rows = list[dict[str, list[int]]]


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings)


def load(folder: Path, *, four_bit: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return models.load(str(folder), dtype=dtype, quantization_config=nf4 if four_bit else None)


@pytest.fixture(scope="module")
def tokenizer(llama: Path) -> Any:
    return models.load_tokenizer(str(llama))


@pytest.fixture
def rows(tokenizer: Any) -> Rows:
    """Rows as the trainer holds them: the prompt ignored, answer and end-of-text supervised."""
    made = []
    for text in TEXTS:
        prompt = tokenizer(render_prompt(tokenizer, chat(text)), add_special_tokens=False)["input_ids"]
        full = tokenizer(render_full(tokenizer, chat(text), "Yes."), add_special_tokens=False)["input_ids"]
        made.append({"input_ids": full, "labels": [IGNORED] * len(prompt) + full[len(prompt) :]})
    return made


def batch(tokenizer: Any) -> dict[str, torch.Tensor]:
    found = tokenizer([2 * t for t in TEXTS], return_tensors="pt", padding=True)
    ids, mask = found["input_ids"], found["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


# --- supervision -------------------------------------------------------------------------------------


def test_supervision(rows: Rows, tokenizer: Any) -> None:
    found = checks.supervision(rows, tokenizer)
    used = sum(t != IGNORED for row in rows for t in row["labels"])
    assert found.rows == 4 and found.share == used / sum(len(row["labels"]) for row in rows)
    assert "(4 rows)" in str(found)


def test_nothing_supervised(rows: Rows, tokenizer: Any) -> None:
    for row in rows:
        row["labels"] = [IGNORED] * len(row["labels"])
    with pytest.raises(CheckError, match="no token carries loss"):
        checks.supervision(rows, tokenizer)


def test_everything_supervised(rows: Rows, tokenizer: Any) -> None:
    for row in rows:
        row["labels"] = list(row["input_ids"])
    with pytest.raises(CheckError, match="every token carries loss"):
        checks.supervision(rows, tokenizer)


def test_one_row_cut_before_its_answer(rows: Rows, tokenizer: Any) -> None:
    rows[2]["labels"] = [IGNORED] * len(rows[2]["labels"])
    with pytest.raises(CheckError, match="1 of 4 rows carry no loss at all"):
        checks.supervision(rows, tokenizer)


def test_end_of_text_not_supervised(rows: Rows, tokenizer: Any) -> None:
    rows[1]["labels"] = [IGNORED if t == tokenizer.eos_token_id else t for t in rows[1]["labels"]]
    with pytest.raises(CheckError, match=r"1 of 4 rows never show .*'<\|im_end\|>'"):
        checks.supervision(rows, tokenizer)


def test_template_without_end_of_text(tokenizer: Any) -> None:
    ids = tokenizer(TEXTS[0])["input_ids"]
    with pytest.raises(CheckError, match="1 of 1 rows never show"):
        checks.supervision([{"input_ids": ids, "labels": [IGNORED] * 5 + ids[5:]}], tokenizer)


# --- template ----------------------------------------------------------------------------------------


def test_same_template(rows: Rows, tokenizer: Any) -> None:
    ignored = sum(t == IGNORED for row in rows for t in row["labels"])
    assert checks.same_template(rows, [chat(t) for t in TEXTS], tokenizer) == ignored > 100


def test_other_template_at_inference(rows: Rows, tokenizer: Any) -> None:
    with pytest.raises(
        CheckError, match=r"row 0: .* differ at token 0: trained on '<\|im_start\|>syste', asked with 'System'"
    ):
        checks.same_template(rows, [chat(t) for t in TEXTS], other_template(tokenizer))


def test_one_changed_token_is_found(rows: Rows, tokenizer: Any) -> None:
    rows[3]["input_ids"][17] += 1
    with pytest.raises(CheckError, match="row 3: .* differ at token 17:"):
        checks.same_template(rows, [chat(t) for t in TEXTS], tokenizer)


def test_missing_generation_prompt_is_found(rows: Rows, tokenizer: Any) -> None:
    row, tail = rows[0], len(tokenizer("<|im_start|>assistant\n")["input_ids"])
    start = sum(t == IGNORED for t in row["labels"])
    cut = {k: v[: start - tail] + v[start:] for k, v in row.items()}
    with pytest.raises(CheckError, match=f"differ at token {start - tail}:"):
        checks.same_template([cut], [chat(TEXTS[0])], tokenizer)


def test_plain_template_of_gpt2_agrees_with_itself(gpt2: Path) -> None:
    tokenizer = models.load_tokenizer(str(gpt2))
    prompt = render_prompt(tokenizer, chat(TEXTS[0]))
    full = render_full(tokenizer, chat(TEXTS[0]), "Yes.")
    assert full == f"{prompt}Yes.<|endoftext|>\n"


# --- adapter -----------------------------------------------------------------------------------------


def test_one_adapter(llama: Path) -> None:
    base, _ = load(llama)
    count = sum(p.numel() for p in base.parameters())
    trainable, total = checks.one_adapter(get_peft_model(base, lora()))
    assert total == count + trainable and 0 < trainable < count


def test_one_adapter_counts_packed_weights_as_what_they_stand_for(llama: Path) -> None:
    plain, packed = load(llama)[0], load(llama, four_bit=True)[0]
    assert checks.one_adapter(get_peft_model(plain, lora())) == checks.one_adapter(get_peft_model(packed, lora()))


def test_modules_to_save_are_no_fault(llama: Path) -> None:
    checks.one_adapter(get_peft_model(load(llama)[0], lora(modules_to_save=["lm_head"])))


def test_no_adapter(llama: Path) -> None:
    with pytest.raises(CheckError, match="carries no adapter"):
        checks.one_adapter(load(llama)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["default", "second"])
def test_adapter_applied_twice(llama: Path, name: str) -> None:
    once = get_peft_model(load(llama)[0], lora())
    with pytest.raises(CheckError, match="applied more than once"):
        checks.one_adapter(get_peft_model(once, lora(), adapter_name=name))


def test_two_adapters(llama: Path) -> None:
    model = get_peft_model(load(llama)[0], lora())
    model.add_adapter("second", lora())
    with pytest.raises(CheckError, match=r"more than once: \['default', 'second'\]"):
        checks.one_adapter(model)


def test_base_weights_trainable(llama: Path) -> None:
    model = get_peft_model(load(llama)[0], lora())
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(CheckError, match="1 base weights would .*embed_tokens"):
        checks.one_adapter(model)


def test_adapter_loaded_for_inference(llama: Path, tmp_path: Path) -> None:
    get_peft_model(load(llama)[0], lora()).save_pretrained(tmp_path)
    with pytest.raises(CheckError, match="no parameter is trainable"):
        checks.one_adapter(PeftModel.from_pretrained(load(llama)[0], str(tmp_path)))


# --- gradients after an evaluation -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_gradients_survive(family: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    """Also where the model has dropout (GPT-2), in the adapter as in the attention."""
    model, tokenizer = load(request.getfixturevalue(family), four_bit=True, dtype=dtype)
    model = get_peft_model(model, lora(lora_dropout=0.1))
    assert checks.gradients_survive_evaluation(model, batch(tokenizer)) > 0.9999


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_everything_as_it_was(llama: Path, training: bool) -> None:
    model, tokenizer = load(llama, four_bit=True)
    model = get_peft_model(model, lora()).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    checks.gradients_survive_evaluation(model, batch(tokenizer))
    assert torch.equal(state, torch.get_rng_state())
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())
    assert {m.training for m in model.modules()} == {training}


def packs_on_this_machine() -> bool:
    from bitsandbytes.nn import Linear4bit

    return bool(Linear4bit(64, 64).support_avx512bf16_for_cpu)


@pytest.mark.skipif(not packs_on_this_machine(), reason="bitsandbytes repacks only on a CPU with AVX512-BF16")
def test_repacked_weights_are_found(llama: Path) -> None:
    """Trap 1 itself: what `models.load` switches off is switched on again."""
    model, tokenizer = load(llama, four_bit=True)
    model = get_peft_model(model, lora())
    four_bit = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(four_bit) == 14 and not any(m.support_avx512bf16_for_cpu for m in four_bit)
    for module in four_bit:
        module.support_avx512bf16_for_cpu = True
    with pytest.raises(CheckError, match=r"cosine -?0\.[0-8]\d+.*support_avx512bf16_for_cpu = False"):
        checks.gradients_survive_evaluation(model, batch(tokenizer))


class SpoiltByEvaluation(torch.nn.Linear):
    """What the packing does, without the instruction set: a forward in evaluation mode turns the weight over."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.weight.data = self.weight.data.flip(0).contiguous()
        return super().forward(x)


def test_a_layer_that_an_evaluation_alters_is_found(llama: Path) -> None:
    base, tokenizer = load(llama)
    model = get_peft_model(base, lora())
    layer = model.get_base_model().model.layers[1].mlp
    spoilt = SpoiltByEvaluation(64, 128, bias=False)
    spoilt.load_state_dict(layer.up_proj.base_layer.state_dict())
    layer.up_proj.base_layer = spoilt.requires_grad_(False)
    adapter = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    with pytest.raises(CheckError, match="gradients changed through an evaluation"):
        checks.gradients_survive_evaluation(model, batch(tokenizer))
    now = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(adapter, now, strict=True))


def test_no_gradient_at_all(llama: Path) -> None:
    model, tokenizer = load(llama)
    model = get_peft_model(model, lora())
    nothing = batch(tokenizer)
    nothing["labels"] = nothing["labels"].roll(1, 0)
    for module in model.modules():  # the head gives the same logits whatever comes in
        if isinstance(module, torch.nn.Linear) and module.out_features == 320:
            module.weight.data.zero_()
    with pytest.raises(CheckError, match="is zero"):
        checks.gradients_survive_evaluation(model, nothing)


# --- 4-bit weights unpacked for an evaluation --------------------------------------------------------


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    b = batch(tokenizer)
    with torch.no_grad():
        return model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits


def own_forward(model: Any) -> list[Any]:
    return [m for m in model.modules() if "forward" in vars(m)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_dense_weights_compute_the_same(family: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    model, tokenizer = load(request.getfixturevalue(family), four_bit=True, dtype=dtype)
    expected = logits(model, tokenizer)
    with dense_weights(model):
        assert own_forward(model)
        found = logits(model, tokenizer)
    assert not own_forward(model)
    near = 1e-5 if dtype == torch.float32 else 0.02
    assert (found - expected).abs().max() <= near * expected.abs().max()
    assert torch.equal(logits(model, tokenizer), expected)


def test_dense_weights_leave_plain_models_alone(llama: Path) -> None:
    model, tokenizer = load(llama)
    with dense_weights(model):
        assert not own_forward(model)


def test_dense_weights_end_after_an_exception_and_nest(llama: Path) -> None:
    model, tokenizer = load(llama, four_bit=True)
    expected = logits(model, tokenizer)
    with pytest.raises(RuntimeError, match="stop"), dense_weights(model):
        with dense_weights(model):
            assert torch.allclose(logits(model, tokenizer), expected, atol=1e-5)
        assert len(own_forward(model)) == 14, "the inner block must not end the outer one"
        raise RuntimeError("stop")
    assert not own_forward(model) and torch.equal(logits(model, tokenizer), expected)


def test_gradients_are_right_within_and_after_dense_weights(llama: Path) -> None:
    model, tokenizer = load(llama, four_bit=True)
    model = get_peft_model(model, lora()).train()
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.02)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(**batch(tokenizer), use_cache=False).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    right = gradient()
    with dense_weights(model):
        logits(model.eval(), tokenizer)
        within = gradient()
    model.train()
    assert torch.equal(gradient(), right)
    assert torch.nn.functional.cosine_similarity(within, right, dim=0) > 0.99999


# --- full fine-tuning ---------------------------------------------------------------------------------


def test_all_trained_in_fp32(llama: Path) -> None:
    model, _ = models.load(str(llama), dtype=torch.float32)
    assert checks.all_trained(model) == sum(p.numel() for p in model.parameters())
    model.get_input_embeddings().requires_grad_(False)
    with pytest.raises(CheckError, match="1 weights are frozen, first model.embed_tokens"):
        checks.all_trained(model)


def test_short_weights_are_no_master_weights(llama: Path) -> None:
    model, _ = models.load(str(llama), dtype=torch.bfloat16)
    with pytest.raises(CheckError, match=r"not fp32.*dtype=torch.float32"):
        checks.all_trained(model)
    with pytest.raises(CheckError, match="adapter"):
        checks.all_trained(get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")))
