"""What a recipe's training runs read, row by row: the same files, split, checks and mixture as in its notebook.

The mixtures of 01, 02 and 05 stand in their notebooks, in view of the reader; they are repeated here, and a unit test
runs the notebooks' own cells and compares. The notebooks watch their loss on every second validation row, to save
time; here a validation set is the whole split.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from cookbook import data, leakage, licence_texts, pairs, profiles
from cookbook.recipes import HUB_ID, RequestError, convert, parameters
from cookbook.tables import SPLITS, SUFFIXES, read_folder, read_hub, read_table

Values = Mapping[str, Any]
# What DATA without a recipe may be read with: the type and the default of each parameter.
PLAIN: dict[str, tuple[str, Any]] = {
    "SEED": ("int", 0),
    "INSTRUCTION": ("str", ""),
    "INPUT_COLUMN": ("str", ""),
    "TARGET_COLUMNS": ("list[str]", []),
    "ALLOW_LEAKAGE": ("bool", False),
}


@dataclass(frozen=True)
class TrainingSet:
    """The rows of one training run, by split, in TRL's conversational formats; each names its "file:line".

    Attributes:
        name: which run, where a recipe has several: a department, or a stage (sft, dpo); else empty.
        kind: "sft": rows of `prompt` and `completion`; "preference": of `prompt`, `chosen` and `rejected`.
        in_order: the order of the rows is part of the recipe, and they are to be read once.
    """

    name: str
    kind: Literal["sft", "preference"]
    rows: dict[str, list[dict[str, Any]]]
    source: str
    licence: str
    fingerprint: str
    report: list[str]
    in_order: bool = False


def choose(notebook: Path, given: Values) -> tuple[dict[str, Any], profiles.Profile]:
    """All parameters of a request, and its profile; a GPU profile needs no GPU here, since nothing is trained.

    Raises:
        RequestError: naming every problem.
    """
    rest = {name: value for name, value in given.items() if name != "PROFILE"}
    values = parameters(notebook, rest)
    name = str(given.get("PROFILE", values.get("PROFILE", "auto")))
    try:
        return values | {"PROFILE": name}, profiles.available().get(name) or profiles.load(name)
    except profiles.ProfileError as error:
        raise RequestError(f"PROFILE: {error}") from error


def of_recipe(notebook: Path, given: Values) -> list[TrainingSet]:
    """The training sets of a recipe with these parameters.

    Raises:
        RequestError: a recipe whose rows are no text, or that is not known here; a wrong parameter.
        ValueError: the data cannot be used (DataError, LeakageError), or the tokenizer cannot be had (ModelError).
    """
    if notebook.stem not in RECIPES:
        known = ", ".join(RECIPES)
        raise RequestError(f"{notebook.stem}: its data cannot be exported; those of {known} can, and files of yours")
    values, profile = choose(notebook, given)
    return RECIPES[notebook.stem](values, profile)


def of_data(source: str, given: Values) -> list[TrainingSet]:
    """The user's data as they are, split and checked, without a recipe's mixture or length limit.

    Raises:
        RequestError: recordings, or a parameter that only a recipe has.
        DataError: the data cannot be used.
    """
    values = {name: default for name, (_, default) in PLAIN.items()}
    for name, value in given.items():
        if name not in PLAIN:
            raise RequestError(f"{name}: DATA without a recipe takes {', '.join(PLAIN)}; name a recipe to set others")
        try:
            values[name] = convert(PLAIN[name][0], value)
        except ValueError:
            raise RequestError(f"{name}: {value!r} is not a valid {PLAIN[name][0]}") from None
    path = Path(source).expanduser()
    if path.is_dir() and not any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
        return [_plain(folder, values, name) for name, folder in data.parts(path).items()]
    return [_plain(source, values, "")]


def _plain(source: str | Path, v: Values, name: str) -> TrainingSet:
    columns = _columns(source)
    if columns & {"audio", "audio_filepath"} or columns >= {"file", "text"}:
        raise RequestError(SPEECH)
    if columns >= {"chosen", "rejected"} or columns >= {"a", "b", "label"}:
        found: Any = pairs.load(source, instruction=v["INSTRUCTION"], seed=v["SEED"])
        return _made(name, "preference", found, leakage.gate(found, allow=v["ALLOW_LEAKAGE"]))
    found, leaks = _loaded(source, v)
    return _made(name, "sft", found, leaks)


def _columns(source: str | Path) -> set[str]:
    """The columns of the first file, to tell what kind of data it is; errors come when it is loaded."""
    path = Path(source).expanduser()
    if HUB_ID.fullmatch(str(source)) and not path.exists():
        table = next(iter(read_hub(str(source))[0].values()))
    else:
        file = next(iter(read_folder(path, str(source)).values()))
        table = read_table(file, file.name)
    return {column for _, row in table.rows for column in row}


def _made(
    name: str, kind: Literal["sft", "preference"], splits: Any, *remarks: object, **changed: Any
) -> TrainingSet:
    """A training set of loaded splits; `changed` are rows that are not those of the splits, or other fields."""
    rows = {split: sft_rows(getattr(splits, split)) if kind == "sft" else _pairs(splits, split) for split in SPLITS}
    report = [*splits.report, *map(str, getattr(splits, "agreement", ())), *(str(r) for r in remarks if str(r))]
    facts = {"source": splits.source, "licence": splits.licence, "fingerprint": splits.fingerprint, "report": report}
    return TrainingSet(name, kind, rows | changed.pop("rows", {}), **facts | changed)


def sft_rows(examples: list[data.Example]) -> list[dict[str, Any]]:
    """The examples as `data.rows` gives them, each with its place."""
    return [row | {"source": e.source} for row, e in zip(data.rows(examples), examples, strict=True)]


def _pairs(splits: pairs.Pairs, split: str) -> list[dict[str, Any]]:
    found = getattr(splits, split)
    return [row | {"source": p.source} for row, p in zip(pairs.rows(found), found, strict=True)]


def _tokenizer(v: Values, profile: profiles.Profile) -> tuple[Any, int, int]:
    """The base model's tokenizer, the longest row in tokens that the recipe trains on, and the model's context."""
    from transformers import AutoConfig

    from cookbook import locating, models

    models.quiet()
    model = v["MODEL"] or profile.model
    tokenizer = models.load_tokenizer(model)
    context = models.context_length(AutoConfig.from_pretrained(locating.resolve(model)))
    return tokenizer, min(v["MAX_LENGTH"] or profile.max_length, context), context


def _sizes(profile: profiles.Profile) -> dict[str, int]:
    return {split: getattr(profile, f"{split}_rows") for split in SPLITS}


def _loaded(source: str | Path, v: Values, fallback: Path | None = None) -> tuple[data.Splits, str]:
    """Prompts and answers past the leakage gate, and what the gate says."""
    splits = data.load(
        source, instruction=v["INSTRUCTION"], input_column=v["INPUT_COLUMN"], target_columns=v["TARGET_COLUMNS"],
        seed=v["SEED"], fallback=fallback,
    )  # fmt: skip
    return splits, leakage.gate(splits, allow=v["ALLOW_LEAKAGE"])


def _fitting(
    source: str | Path,
    v: Values,
    profile: profiles.Profile,
    tokenizer: Any,
    max_length: int,
    fallback: Path | None = None,
) -> tuple[data.Splits, str, str]:
    """The same, no more rows than the profile takes and none too long; what the gate and the length check say."""
    splits, leaks = _loaded(source, v, fallback)
    splits = data.take(splits, **_sizes(profile))
    splits.train, long_rows = data.fit_length(splits.train, tokenizer, max_length, v["ON_LONG"])
    return splits, leaks, long_rows


def _brief(splits: data.Splits) -> list[str]:
    """The answer's columns that are no running text, if there are both; else none."""
    brief = [name for name, kind in splits.schema.kinds.items() if kind != "text"]
    return brief if 0 < len(brief) < len(splits.schema.targets) else []


def _customer_service(v: Values, profile: profiles.Profile) -> list[TrainingSet]:
    """01: all rows asked for their labels alone, and before them a share of the rows asked for everything."""
    sample = data.sample("customer_service")
    tokenizer, max_length, _ = _tokenizer(v, profile)
    splits, *remarks = _fitting(v["DATA"] or sample, v, profile, tokenizer, max_length, fallback=sample)
    mixed = splits.train
    if brief := _brief(splits):
        whole = data.spread(mixed, round(v["WHOLE_SHARE"] * len(mixed)))
        mixed = whole + [data.only(e, brief) for e in mixed]
    return [_made("", "sft", splits, *remarks, rows={"train": sft_rows(mixed)})]


def _legal(v: Values, profile: profiles.Profile) -> list[TrainingSet]:
    """02: a share of the rows asked for everything, the others for their labels; the kinds in turn, all passes."""
    tokenizer, max_length, _ = _tokenizer(v, profile)
    with TemporaryDirectory() as folder:
        source = v["DATA"] or licence_texts.write(Path(folder) / "data", v, tokenizer, profile.train_rows)
        splits, *remarks = _fitting(source, v, profile, tokenizer, max_length)
    mixed = splits.train
    if brief := _brief(splits):
        whole = {id(e) for e in data.spread(mixed, round(v["WHOLE_SHARE"] * len(mixed)))}
        mixed = [e if id(e) in whole else data.only(e, brief) for e in mixed]
    label = next(iter(splits.schema.labels), None)
    by_kind: dict[Any, list[data.Example]] = {}
    for example in random.Random(v["SEED"]).sample(mixed, len(mixed)):
        by_kind.setdefault(example.value(label) if label else None, []).append(example)
    turns = [itertools.cycle(rows) for rows in by_kind.values()]
    count = round((v["EPOCHS"] or 1.5 * profile.epochs) * len(mixed))
    train = [next(turns[i % len(turns)]) for i in range(count)]
    remark = f"Training rows: {len(mixed)}, in the recipe's order {count}: the kinds in turn, the rare ones repeated."
    return [_made("", "sft", splits, *remarks, remark, rows={"train": sft_rows(train)}, in_order=True)]


def _departments(v: Values, profile: profiles.Profile) -> list[TrainingSet]:
    """03: each department's rows, for an adapter of its own."""
    folders, made = data.parts(v["DATA"] or data.sample("departments")), []
    tokenizer, max_length, _ = _tokenizer(v, profile)
    for name, folder in folders.items():
        one = data.load(folder, instruction=v["INSTRUCTION"], seed=v["SEED"])
        leaks = leakage.gate(one, allow=v["ALLOW_LEAKAGE"])
        one = data.take(one, **{part: n and max(4, n // len(folders)) for part, n in _sizes(profile).items()})
        one.train, long_rows = data.fit_length(one.train, tokenizer, max_length, v["ON_LONG"])
        made.append(_made(name, "sft", one, leaks, long_rows))
    return made


def _preferences(v: Values, profile: profiles.Profile) -> list[TrainingSet]:
    """05: the archive and the tickets of the first stage (not where an adapter is given), then the pairs."""
    sample = data.sample("brand_voice")
    tokenizer, max_length, context = _tokenizer(v, profile)
    splits = pairs.load(v["DATA"] or sample, instruction=v["INSTRUCTION"], seed=v["SEED"], fallback=sample)
    leaks = leakage.gate(splits, allow=v["ALLOW_LEAKAGE"])
    splits = data.take(splits, **_sizes(profile))
    fit = partial(pairs.fit_length, tokenizer=tokenizer, on_long=v["ON_LONG"])
    splits.train, long_train = fit(splits.train, max_length=max_length)
    splits.validation, long_validation = fit(splits.validation, max_length=max_length)
    splits.test, long_test = fit(splits.test, max_length=context)
    preferences = _made("dpo", "preference", splits, leaks, long_train, long_validation, long_test)
    if v["ADAPTER"]:
        return [preferences]
    draw, good = random.Random(v["SEED"]), v["ARCHIVE_GOOD"]
    good = good if good >= 0 else 1.0 if v["DATA"] else 0.2
    archive = [
        {"prompt": p.prompt, "completion": [{"role": "assistant", "content": answer}], "source": p.source}
        for p in splits.train
        for answer in [p.chosen if draw.random() < good else p.rejected for _ in range(v["ARCHIVE"])]
    ]
    tickets: list[data.Example] = []
    licences, sources = [splits.licence], [splits.source]
    if v["TICKETS"] and not v["DATA"]:
        inbox = data.load(data.sample("customer_service"), seed=v["SEED"])
        label = next(iter(inbox.schema.labels))
        kept = data.take(inbox, train=profile.train_rows or v["TICKETS"]).train
        tickets = [data.only(e, [label]) for e in data.spread(kept, v["TICKETS"])]
        licences, sources = [*licences, inbox.licence], [*sources, inbox.source]
    remark = f"First stage: {len(archive)} archived replies and {len(tickets)} tickets; it has no validation rows."
    rows = {"train": sft_rows(tickets) + archive, "validation": [], "test": []}
    licence = "; ".join(dict.fromkeys(licences))
    first = TrainingSet("sft", "sft", rows, ", ".join(sources), licence, splits.fingerprint, [remark])
    return [first, preferences]


SPEECH = (
    "recordings cannot be exported: axolotl and llama-factory take audio for chat models that listen, not for "
    "Whisper; openai, together and bedrock fine-tune on no audio; nemo trains recognisers of its own on a manifest "
    "of audio_filepath, duration and text, which is not its chat format"
)


def _speech(*_: Any) -> list[TrainingSet]:
    raise RequestError(SPEECH)


RECIPES: dict[str, Callable[[Values, profiles.Profile], list[TrainingSet]]] = {
    "01_customer_service_qlora": _customer_service,
    "02_legal_full_finetuning": _legal,
    "03_department_adapters": _departments,
    "04_whisper_asr": _speech,
    "05_dpo_alignment": _preferences,
}
