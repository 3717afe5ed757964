"""Fused layers: results and gradients of PEFT's and transformers' own layers, and less kept for the backward."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig
from transformers.models.llama import modeling_llama

from cookbook import fourbit, fused, fused_functions, models

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
IDS = torch.tensor([[7, 9, 11, 13, 2, 5, 8, 6], [3, 5, 8, 2, 21, 0, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS > 0).long(), "use_cache": False}


def made(folder: Path, dtype: torch.dtype = torch.float32, four_bit: bool = False, **changed: Any) -> Any:
    """A LoRA model with plain attention, both factors of each adapter drawn at random and kept in fp32."""
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    base, _ = models.load(str(folder), dtype=dtype, quantization_config=nf4 if four_bit else None)
    base.set_attn_implementation("eager")
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(**LORA | changed))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape) * 0.05
    return model.train()


def step(model: Any, dtype: torch.dtype = torch.float32, **asked: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the real positions, and the gradients of all adapters as one vector."""
    model.zero_grad()
    torch.manual_seed(1)  # of dropout
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(**BATCH, **asked).logits.float()[BATCH["attention_mask"].bool()]
    torch.nn.functional.cross_entropy(logits, torch.arange(len(logits))).backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def kept(model: Any) -> int:
    """Bytes that autograd keeps of a forward, the weights' own left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []  # so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(**BATCH)
    return sum(size for place, size in saved.items() if place not in own)


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_same_results_and_gradients(family: str, four_bit: bool, request: pytest.FixtureRequest) -> None:
    model = made(request.getfixturevalue(family), four_bit=four_bit)
    logits, gradient = step(model)
    with fused.layers(model) as found:
        got, other = step(model)
    assert found.attention == found.rotary == bool(found.norms) == bool(found.gates) == (family != "gpt2")
    assert bool(found.lora) == (family != "gpt2" or four_bit)  # else GPT-2's layers are not linear ones of torch
    assert not torch.equal(other, gradient) or family == "gpt2"  # other code did compute it
    assert torch.allclose(got, logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())
    assert torch.allclose(other, gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())


def test_weights_unpacked_once_serve_the_fused_layers(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, unpacked, asked = made(llama, four_bit=True).eval(), fourbit.unpacked, []
    with torch.no_grad():
        logits = model(**BATCH).logits
        monkeypatch.setattr(fourbit, "unpacked", lambda layer, dtype: asked.append(layer) or unpacked(layer, dtype))
        with fourbit.dense_weights(model), fused.layers(model) as found:
            got = [model(**BATCH).logits for _ in range(2)]
    assert found.lora == len(asked) == len(set(asked)) > 0
    assert torch.equal(*got) and torch.allclose(got[0], logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


def test_as_near_to_exact_in_bf16_as_the_layers_it_replaces(llama: Path) -> None:
    _, exact = step(made(llama))
    model = made(llama, torch.bfloat16)
    _, own = step(model, torch.bfloat16)
    with fused.layers(model):
        _, got = step(model, torch.bfloat16)
    cosine = torch.nn.functional.cosine_similarity
    assert 1 - cosine(got, exact, dim=0) < 1.5 * (1 - cosine(own, exact, dim=0)) + 1e-4
    assert (got - exact).norm() < 1.5 * (own - exact).norm()


def test_rotary_positions_are_at_least_as_near_to_exact_as_llamas_and_their_gradient_is_exact() -> None:
    """The gradient also where a head's halves have angles of their own."""
    torch.manual_seed(0)
    q, k = (torch.randn(2, 5, heads, 8, dtype=torch.bfloat16).transpose(1, 2) for heads in (4, 2))
    cos, sin = (torch.randn(1, 5, 4).repeat(1, 1, 2).bfloat16() for _ in range(2))
    llamas = fused.LLAMAS[fused.ROTARY]
    exact = llamas(*(x.double() for x in (q, k, cos, sin)))
    for got, theirs, right in zip(fused._rotate(q, k, cos, sin), llamas(q, k, cos, sin), exact, strict=True):
        ours, others = ((x - right).square().mean() for x in (got, theirs))
        assert got.dtype == torch.bfloat16 and got.is_contiguous() and ours <= others
    for dtype in (torch.bfloat16, torch.float32):  # under autocast angles are wider than heads
        wide = fused._rotate(q, k, cos.to(dtype), sin.to(dtype))
        assert [t.dtype for t in wide] == [dtype, dtype]
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(2, 2, 1, 5, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(fused_functions.Rotary.apply, (x, *angles))


def test_norms_have_exact_gradients_however_states_lie_in_memory() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(7, dtype=torch.float64)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return fused_functions.RMSNorm.apply(x.transpose(1, 2), weight, 0.1).transpose(1, 2)

    expected = torch.nn.functional.rms_norm(x.transpose(1, 2), (7,), weight, 0.1).transpose(1, 2)
    assert torch.allclose(norm(x), expected) and torch.autograd.gradcheck(norm, x)


@pytest.mark.parametrize("masks", [0, 1, 2])
@pytest.mark.parametrize("heads", [6, 2])
def test_attention_and_its_gradients_are_exact(heads: int, masks: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, size, 5, 4, dtype=torch.float64, requires_grad=True) for size in (heads, 2, 2))
    mask = torch.randn(masks, 1, 5, 5, dtype=torch.float64) if masks else None
    before = None if mask is None else mask.clone()

    def attention(*of: torch.Tensor) -> torch.Tensor:
        return fused_functions.Attention.apply(*of, mask, 0.3)

    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    assert torch.allclose(attention(q, k, v), plain)
    assert torch.autograd.gradcheck(attention, (q, k, v))
    assert mask is None or torch.equal(mask, before)  # the next layer reads it too


def test_less_is_kept_for_the_backward(llama: Path) -> None:
    model = made(llama, torch.bfloat16)
    before = kept(model)
    with fused.layers(model):
        after = kept(model)
    assert after < 0.55 * before


def test_layers_that_read_the_same_states_are_computed_together(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, computed = made(llama), []
    real = fused_functions.Lora.apply
    monkeypatch.setattr(
        fused_functions.Lora, "apply", lambda x, layers, *ab: computed.append(len(layers)) or real(x, layers, *ab)
    )
    with fused.layers(model):
        step(model)
        layer = model.get_base_model().model.layers[0]
        assert computed == [3, 1, 2, 1] * 2  # queries, keys and values; gate and up
        x, y = (torch.randn(2, 3, 64) for _ in range(2))
        attention, alone = layer.self_attn, {}
        for name in ("q_proj", "k_proj", "v_proj"):
            part = getattr(attention, name)
            alone[name] = type(part).forward(part, x), type(part).forward(part, y)
        for name, which in (("k_proj", 0), ("k_proj", 1), ("q_proj", 0), ("v_proj", 1), ("q_proj", 0)):
            found = getattr(attention, name)((x, y)[which])
            assert torch.allclose(found, alone[name][which], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            assert not attention.v_proj(x).requires_grad  # what is ready has a gradient


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_a_narrow_product_in_halves_is_the_product(into: bool, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(640, 24), torch.randn(24, 512), torch.randn(512) if biased else None
    asked = []
    monkeypatch.setattr(fused_functions, "_halved", lambda *given: asked.append(1) or True)
    before = torch.ones(640, 512) if into else None
    found = fused_functions._product(rows, weight, None if into else bias, before)
    expected = rows @ weight + (1 if into else bias if biased else 0)
    assert asked and torch.allclose(found, expected, atol=1e-4)
    assert not into or found is before


def test_which_products_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def halved(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> bool:
        return fused_functions._halved(torch.empty(rows, 8, dtype=dtype), torch.empty(8, columns, dtype=dtype))

    assert halved(576, 576) and halved(1088, 576) and halved(1024, 1024)
    assert not any(halved(*size) for size in ((512, 576), (1152, 576), (900, 576), (256, 192), (2048, 1536)))
    assert not halved(1088, 576, torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert not halved(1088, 576)


@pytest.mark.parametrize("changed", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_unknown_lora_is_left_alone(llama: Path, changed: dict[str, Any]) -> None:
    with fused.layers(made(llama, **changed)) as found:
        assert found.lora == 0 and found.norms and found.gates


def test_trained_norms_are_left_alone(llama: Path) -> None:
    model = made(llama)
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad or "norm" in name)
    with fused.layers(model) as found:
        assert found.norms == 0 and found.lora


def test_fused_attention_of_torch_is_left_alone(llama: Path) -> None:
    model = made(llama)
    model.get_base_model().set_attn_implementation("sdpa")
    with fused.layers(model) as found:
        assert not found.attention and model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "sdpa"


def test_all_is_as_before_afterwards_even_after_an_error(llama: Path) -> None:
    model = made(llama)
    logits, gradient = step(model)
    with pytest.raises(ZeroDivisionError), fused.layers(model):
        assert any("forward" in vars(m) for m in model.modules())
        assert modeling_llama.apply_rotary_pos_emb is fused._rotate
        raise ZeroDivisionError
    assert not any("forward" in vars(m) for m in model.modules())
    assert model.config._attn_implementation == "eager"
    assert modeling_llama.apply_rotary_pos_emb is fused.LLAMAS[fused.ROTARY]
    again, other = step(model)
    assert torch.equal(again, logits) and torch.equal(other, gradient)


def test_a_block_within_a_block_changes_nothing(llama: Path) -> None:
    model = made(llama)
    with fused.layers(model), fused.layers(model) as inner:
        assert inner == fused.Fused(0, 0, 0, False, False)
        step(model)
    assert not any("forward" in vars(m) for m in model.modules())


def test_adapters_off_answers_as_the_base_does(llama: Path) -> None:
    model = made(llama)
    with model.disable_adapter(), torch.no_grad():
        base = model(**BATCH).logits
    with fused.layers(model), torch.no_grad():
        with model.disable_adapter():
            off = model(**BATCH).logits
        on = model(**BATCH).logits
    real = BATCH["attention_mask"].bool()
    assert torch.allclose(off[real], base[real], rtol=1e-4, atol=1e-3) and not torch.allclose(on[real], base[real])


def test_the_adapter_in_use_may_change_within_the_block(llama: Path) -> None:
    model = made(llama)
    model.add_adapter("other", LoraConfig(**LORA))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.05) if ".other." in name else None
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = step(model)[1]
    with fused.layers(model):
        for name in ("default", "other"):
            model.set_adapter(name)
            assert torch.allclose(step(model)[1], expected[name], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(expected["default"], expected["other"], rtol=1e-1)


def asked(model: Any) -> tuple[Any, Any, torch.Tensor, torch.Tensor]:
    """A model and its batch, with the second half of each row to be scored."""
    answer = BATCH["attention_mask"][:, 1:].bool()
    answer[:, :2] = False
    inputs = {name: value for name, value in BATCH.items() if name != "use_cache"}
    return model, inputs, answer, IDS[:, 1:][answer]


def by_hand(model: Any, dtype: torch.dtype) -> torch.Tensor:
    """Cross entropy of every position from all logits, then of those that count."""
    _, inputs, answer, targets = asked(model)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(**inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1][answer].float(), targets, reduction="none")


def adapters_gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]
    )


@pytest.mark.parametrize("rows", [3, fused_functions.LOSS_ROWS])
@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_nats_and_their_gradients(
    family: str, rows: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_functions, "LOSS_ROWS", rows)
    model = made(request.getfixturevalue(family)).eval()
    assert (fused._plain_head(model) is None) == (family == "gpt2")
    expected, found = by_hand(model, torch.float32), fused.nats(*asked(model))
    assert found.dtype == torch.float32 and torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.linspace(-1, 2, len(found))  # positions may count more or less
    gradient, wanted = (adapters_gradient(model, (weights * nats).sum()) for nats in (found, expected))
    assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item())
    assert "forward" not in vars(model.get_output_embeddings())


def test_nats_in_bf16_are_as_exact_as_those_from_logits(llama: Path) -> None:
    exact = by_hand(made(llama), torch.float32)
    model = made(llama, torch.bfloat16)
    own = by_hand(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused.nats(*asked(model))
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() < 1.5 * (own - exact).abs().mean() + 1e-3


def test_a_trained_head_gets_its_gradient(llama: Path) -> None:
    model = made(llama)
    head = model.get_output_embeddings().weight.requires_grad_(True)
    assert fused._plain_head(model) is None
    (gradient,) = torch.autograd.grad(fused.nats(*asked(model)).sum(), head)
    assert gradient.abs().sum() > 0


def test_nats_without_gradients_and_of_nothing(llama: Path) -> None:
    model, inputs, answer, targets = asked(made(llama))
    with torch.no_grad():
        assert torch.allclose(fused.nats(model, inputs, answer, targets), by_hand(model, torch.float32), rtol=1e-4)
    none = fused.nats(model, inputs, torch.zeros_like(answer), targets[:0])
    assert none.shape == (0,) and none.sum().item() == 0


def test_memory_is_kept_while_training_and_given_back_after() -> None:
    """In a process of its own: what the block freed stays with it until it is released, or the block ends."""
    code = (
        "import psutil, torch; from cookbook import allocator, fused\n"
        "rss = lambda: psutil.Process().memory_info().rss\n"
        "model = torch.nn.Linear(2, 2); print(fused.keep_memory()); start = rss()\n"
        "def use(): torch.ones(100_000_000)\n"
        "use(); print(rss() - start < 100e6)\n"
        "with fused.layers(model):\n"
        "    use(); print(rss() - start > 300e6); allocator.release_memory(); print(rss() - start < 100e6); use()\n"
        "print(rss() - start < 100e6); use(); print(rss() - start < 100e6)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    possible, before, held, *given = done.stdout.split()
    assert (possible, held) in [("True", "True"), ("False", "False")]
    assert [before, *given] == ["True"] * 4
