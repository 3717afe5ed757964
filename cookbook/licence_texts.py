"""The licence texts of notebook 02 as three files, whole families on one side, exactly as the notebook cuts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cookbook import assets, leakage

OBLIGATIONS = {
    "Permissive": "Keep the notices; else use it as you like, also in closed products.",
    "Copyleft": "Whoever gets it gets the whole source, under these same terms.",
    "Copyleft Limited": "Publish your changes to it; your own code beside it may stay closed.",
    "Proprietary Free": "Use it without paying, as it is, within the limits stated.",
}


def write(place: Path, v: Mapping[str, Any], tokenizer: Any, train_rows: int) -> Path:
    """Write the splits of notebook 02 into the new folder `place`: train, validation and test, and the data card.

    Args:
        v: the notebook's SEED, EXCERPT_TOKENS, FAMILY_ROWS and CATEGORY_ROWS.
        tokenizer: that of the base model: excerpts are counted in its tokens.
        train_rows: of the profile; 0: all.
    """
    asset = assets.path("licence-texts")
    table = pd.read_json(asset / "texts.jsonl", lines=True)
    table = table[table.category.isin(OBLIGATIONS)].sample(frac=1, random_state=v["SEED"])
    table = table.iloc[: 12 * train_rows or None].reset_index(drop=True)
    ids = tokenizer([text[: 8 * v["EXCERPT_TOKENS"]] for text in table.text])["input_ids"]
    table["text"] = [tokenizer.decode(i[: v["EXCERPT_TOKENS"]]).strip() for i in ids]
    table["obligations"] = table.category.map(OBLIGATIONS)
    names = table.key.str.split(r"[-_.]|\d").str[0]
    table["family"] = leakage.families(table.text, names, threshold=0.5)
    pool = table.groupby("family").head(v["FAMILY_ROWS"] or len(table))
    pool = pool.groupby("category").head(v["CATEGORY_ROWS"] or len(pool)).reset_index(drop=True)
    sizes = {"test": len(pool) // 6, "validation": len(pool) // 8}
    whole = leakage.divide(pool.family, sizes, pool.category, v["SEED"])
    rest = pool.iloc[whole["train"]].reset_index(drop=True)
    # The rows of the notebook's random split are drawn, too: it does not train on them.
    drawn = leakage.divide(range(len(rest)), {"mates": len(pool) // 10}, rest.category, v["SEED"])
    parts = {"train": rest.iloc[drawn["train"]], **{s: pool.iloc[whole[s]] for s in ("validation", "test")}}
    place.mkdir()
    for name, part in parts.items():
        rows = part[["text", "category", "obligations"]]
        rows.to_json(place / f"{name}.jsonl", orient="records", lines=True, force_ascii=False)
    (place / "README.md").write_text((asset / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    return place
