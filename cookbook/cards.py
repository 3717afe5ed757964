"""Model cards: what a trained model is, what it came from, and what was measured."""

from __future__ import annotations

import pandas as pd

from cookbook import assets, models
from cookbook.data import Splits


def model_card(model: str, technique: str, splits: Splits, scores: pd.DataFrame, forgetting: pd.DataFrame) -> str:
    """A README.md for the saved model, with its scores as a Markdown table."""
    asset = assets.ASSETS.get(model)
    source = f"{asset.source} (licence {asset.licence})" if asset else "see the base model's own card and licence"
    return "\n".join(
        [
            f"# {models.label(model)}, {technique}",
            "",
            f"Base model: {models.label(model)}; {source}.",
            f"Trained on {len(splits.train)} rows of {splits.source} (licence: {splits.licence}, fingerprint "
            f"{splits.fingerprint}), scored on {len(splits.test)} held-out rows.",
            "",
            "## Scores",
            "",
            markdown(scores),
            "",
            "## Forgetting",
            "",
            markdown(forgetting),
            "",
            "Written for one narrow task on data like the above; check its answers before anyone acts on them.",
            "",
        ]
    )


def markdown(table: pd.DataFrame) -> str:
    """A data frame as a Markdown table, index included."""
    head = [table.index.name or "", *map(str, table.columns)]
    body = [[str(index), *map(str, row)] for index, row in zip(table.index, table.to_numpy(), strict=True)]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
