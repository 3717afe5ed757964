"""The forgetting probes: sound data, scores that follow what a model knows, and no side effects."""

import copy
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cookbook.forgetting import PROBES, follows, probe, read_prose

LENGTH = 160  # the tiny models' context, shorter than a passage
CHATTER = (
    "",
    "I am not sure.",
    "Sure, I can help with that!",
    "Hello! How can I help you today?",
    "As an AI language model, I cannot answer this.",
    "The answer depends on many things.",
    "Thank you for your question. It is a good one.",
    "The word is a word that has multiple meanings in the English language.",
)


def items(name: str) -> list[dict]:
    return [json.loads(line) for line in (PROBES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "count"), [("general_knowledge", 64), ("arithmetic", 48)])
def test_choice_items_are_balanced_and_distinct(name: str, count: int) -> None:
    rows = items(name)
    assert len(rows) == count
    assert len({row["question"] for row in rows}) == count
    assert Counter(row["answer"] for row in rows) == dict.fromkeys(range(4), count // 4)
    for row in rows:
        assert set(row) == {"question", "choices", "answer"}
        assert len(row["choices"]) == len(set(row["choices"])) == 4
        assert all(choice == choice.strip() and choice for choice in row["choices"])
        lengths = [len(choice) for choice in row["choices"]]
        assert max(lengths) - min(lengths) <= 8, row


def test_symbolic_sums_have_the_answer_that_they_claim() -> None:
    signs = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__, "times": int.__mul__}
    checked = 0
    for row in items("arithmetic"):
        if found := re.fullmatch(r"What is (\d+) (\+|-|x|times) (\d+)\?", row["question"]):
            left, sign, right = found.groups()
            assert row["choices"][row["answer"]] == str(signs[sign](int(left), int(right))), row
            checked += 1
    assert checked > 20


def test_patterns_need_an_answer() -> None:
    rows = items("instruction_following")
    assert len(rows) == 48
    assert len({row["instruction"] for row in rows}) == 48
    for row in rows:
        assert set(row) == {"instruction", "pattern", "flags"}
        for text in (*CHATTER, row["instruction"]):  # saying it back is not doing it
            assert follows(row, [text]) == {"acc": 0}, (row, text)


def test_follows_reads_flags_and_ignores_surrounding_space() -> None:
    item = {"instruction": "Say yes.", "pattern": r"^yes\.?$", "flags": "i"}
    assert follows(item, [" Yes.\n"]) == {"acc": 1}
    assert follows({**item, "flags": ""}, [" Yes.\n"]) == {"acc": 0}
    assert follows(item, ["yes, I can"]) == {"acc": 0}


def test_prose_is_about_1200_words_in_distinct_passages() -> None:
    passages = read_prose()
    assert len(passages) == len(set(passages)) >= 10
    assert 1100 <= sum(len(passage.split()) for passage in passages) <= 1300


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from a second thread and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 entries learnt from the probes, without template or padding token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(read_prose(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def tiny_llama(tokenizer: PreTrainedTokenizerFast, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(
            **{"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "eos_token_id": 0, **shape, **changes}
        )
    )


@pytest.fixture(scope="module")
def taught(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A tiny Llama that has learnt the first four items of both choice tasks and four passages."""
    rows = items("general_knowledge")[:4] + items("arithmetic")[:4]
    texts = [f"Question: {row['question']}\nAnswer: {row['choices'][row['answer']]}" for row in rows]
    model = tiny_llama(tokenizer)
    tokenizer.pad_token = "<eos>"
    batches = [
        tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=LENGTH)
        for part in (texts, read_prose()[:4])
    ]
    tokenizer.pad_token = None
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(50):
        for batch in batches:
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            model(**batch, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def scrambled(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same numbers in every weight matrix, in another order."""
    damaged = LlamaForCausalLM(model.config)
    damaged.load_state_dict(model.state_dict())
    shuffle = torch.Generator().manual_seed(1)
    for weight in damaged.parameters():
        order = torch.randperm(weight.numel(), generator=shuffle)
        weight.data = weight.data.flatten()[order].view_as(weight)
    return damaged


def test_what_was_taught_is_found_and_damage_shows(
    taught: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = probe(taught, tokenizer, limit=4)
    assert {name: len(scores) for name, scores in before.scores.items()} == {
        "knowledge": 4,
        "arithmetic": 4,
        "instructions": 4,
    }
    assert before.scores["knowledge"].tolist() == before.scores["arithmetic"].tolist() == [1, 1, 1, 1]
    assert len(before.token_nll) == len(before.token_passage)
    assert np.unique(before.token_passage).tolist() == [0, 1, 2, 3]
    assert before.perplexity < len(tokenizer) / 10

    again = probe(taught, tokenizer, limit=4, batch_size=3)  # other batches, same answers
    assert all(np.array_equal(scores, again.scores[name]) for name, scores in before.scores.items())
    np.testing.assert_allclose(again.token_nll, before.token_nll, atol=1e-3)

    after = probe(scrambled(taught), tokenizer, limit=4)
    assert after.perplexity > 5 * before.perplexity
    both = ("knowledge", "arithmetic")
    assert sum(after.scores[name].sum() for name in both) <= 6 < 8


def test_perplexity_is_the_models_own_loss(taught: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    result = probe(taught, tokenizer, limit=2, batch_size=2)
    ids = torch.tensor([tokenizer(read_prose()[1])["input_ids"]])[:, :LENGTH]
    loss = taught.eval()(input_ids=ids, labels=ids).loss.item()
    assert result.token_nll[result.token_passage == 1].mean() == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("template", [None, "{{ '<<' + messages[0]['content'] + '>>' }}"])
def test_instructions_go_through_the_chat_template_where_there_is_one(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    model, prompts = tiny_llama(tokenizer), []
    model.generation_config.max_new_tokens = 1
    model.lm_head.support_avx512bf16_for_cpu = True  # as on the 4-bit layers of bitsandbytes

    def answer_music(input_ids: torch.Tensor, **settings: object) -> torch.Tensor:
        prompts.extend(tokenizer.batch_decode(input_ids, skip_special_tokens=True))
        assert settings["do_sample"] is False
        assert model.generation_config.max_new_tokens is None
        assert not model.lm_head.support_avx512bf16_for_cpu
        assert settings["max_length"] == input_ids.shape[1] + 24
        answer = torch.tensor(tokenizer("#music<eos>")["input_ids"])
        return torch.cat([input_ids, answer.expand(len(input_ids), -1)], dim=1)

    monkeypatch.setattr(model, "generate", answer_music)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    rows = items("instruction_following")[:4]
    result = probe(model, tokenizer, limit=4)
    expected = [follows(row, ["#music"])["acc"] for row in rows]
    assert sum(expected) == 1
    assert model.lm_head.support_avx512bf16_for_cpu
    assert result.scores["instructions"].tolist() == expected
    wrap = "{}" if template is None else "<<{}>>"
    assert sorted(prompts) == sorted(wrap.format(row["instruction"]) for row in rows)


def test_nothing_is_left_behind(
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the probe reached for the network")

    model = tiny_llama(tokenizer, tie_word_embeddings=True)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() + 1)  # a head trained apart
    model.generation_config.max_new_tokens = 1
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    settings = model.generation_config
    weights = {name: weight.clone() for name, weight in model.named_parameters(remove_duplicate=False)}
    for seed_it in (random.seed, np.random.seed, torch.manual_seed):
        seed_it(123)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    capfd.readouterr()

    probe(model, tokenizer, limit=1)

    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert list(tmp_path.iterdir()) == []
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is settings
    assert settings.max_new_tokens == 1
    assert tokenizer.pad_token is None
    assert "tie_weights" not in vars(model)
    left = dict(model.named_parameters(remove_duplicate=False))
    assert left.keys() == weights.keys()
    assert all(torch.equal(weight, left[name]) for name, weight in weights.items())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_wrong_requests_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama(tokenizer)
    with pytest.raises(ValueError, match="limit is 0"):
        probe(model, tokenizer, limit=0)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="eos_token"):
        probe(model, endless)
