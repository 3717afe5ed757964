"""Find near-duplicates between splits, stop a run that would be scored on them, and cut clean splits."""

from __future__ import annotations

import random
import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix

import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSH
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from cookbook.data import DataError, Example, Splits

EXACT_PAIRS = 50_000_000  # up to here every pair is compared (about 20 s); above, MinHash proposes candidates
CONTAINED = 0.8  # share of the shorter text found in the longer one that makes it a copy
MIN_SHINGLES = 30  # shorter texts are stock phrases ("where is my order") that any message may contain


class LeakageError(DataError):
    """Two splits share near-duplicates; the message lists the worst and says what to do."""


@dataclass(frozen=True)
class Pair:
    """Places of two alike texts, their Jaccard similarity, and how much of the shorter is in the longer."""

    train: int
    test: int
    jaccard: float
    containment: float

    @property
    def similarity(self) -> float:
        """Jaccard, or the containment where that is what makes the pair a copy."""
        return max(self.jaccard, self.containment if self.containment >= CONTAINED else 0.0)


@dataclass
class LeakageReport:
    """Near-duplicates of each two splits (key "train/test"), and the highest Jaccard similarity."""

    threshold: float
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{k} {len(v)} (closest pair {self.highest[k]:.2f})" for k, v in self.pairs.items()]
        return f"Near-duplicates at {self.threshold:.2f}: {', '.join(parts)}."


def normalise(text: str) -> str:
    """Lower case, words only, and every number as one 0, so that a changed order number hides no copy."""
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"\d+( \d+)*", "0", words).strip()


def _shingles(texts: Sequence[str]) -> list[set[str]]:
    clean = [normalise(text) for text in texts]
    return [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in clean]


def _overlaps(left: list[set[str]], right: list[set[str]], seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Blocks of (left position, right position, shingles in common): all pairs, or MinHash's candidates."""
    if len(left) * len(right) > EXACT_PAIRS:
        lsh, options = MinHashLSH(threshold=0.5), {"seed": seed + 1, "hashfunc": zlib.crc32}
        for i, sketch in enumerate(MinHash.generator(([s.encode() for s in x] for x in left), **options)):
            lsh.insert(i, sketch)
        for j, sketch in enumerate(MinHash.generator(([s.encode() for s in x] for x in right), **options)):
            near = np.array(sorted(lsh.query(sketch)), dtype=int)
            yield near, np.full(len(near), j), np.array([len(left[i] & right[j]) for i in near], dtype=int)
        return
    vocabulary: dict[str, int] = {}
    matrices = []
    for sets in (left, right):
        columns = [vocabulary.setdefault(shingle, len(vocabulary)) for shingles in sets for shingle in shingles]
        matrices.append((np.ones(len(columns), np.int32), columns, np.cumsum([0, *map(len, sets)])))
    a, b = (csr_matrix(m, shape=(len(m[2]) - 1, len(vocabulary))) for m in matrices)
    step = max(1, 4_000_000 // max(1, len(left)))  # bounds the memory of one block to some 50 MB
    for start in range(0, len(right), step):
        block = (b[start : start + step] @ a.T).tocoo()
        yield block.col, block.row + start, block.data


def _compare(train: Sequence[str], test: Sequence[str], threshold: float, seed: int) -> tuple[list[Pair], float]:
    """Pairs over the threshold, worst first, and the highest Jaccard similarity of all pairs compared."""
    left, right = _shingles(train), _shingles(test)
    sizes = np.array([len(x) for x in left]), np.array([len(x) for x in right])
    pairs, highest = [], 0.0
    for i, j, common in _overlaps(left, right, seed):
        if not len(common):
            continue
        small, both = np.minimum(sizes[0][i], sizes[1][j]), sizes[0][i] + sizes[1][j]
        jaccard, share = common / (both - common), common / small
        hits = np.flatnonzero((jaccard >= threshold) | ((share >= CONTAINED) & (small >= MIN_SHINGLES)))
        found = [Pair(int(i[k]), int(j[k]), float(jaccard[k]), float(share[k])) for k in hits]
        pairs, highest = pairs + found, max(highest, float(jaccard.max()))
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.test, pair.train)), highest


def near_duplicates(
    train: Sequence[str], test: Sequence[str], *, threshold: float = 0.6, seed: int = 0
) -> list[Pair]:
    """Pairs of texts that are copies but for small edits, most similar first.

    Texts are sets of character 5-grams (shingles). A pair counts from a Jaccard similarity of `threshold`,
    or when 0.8 of the shorter text is in the longer. All pairs are compared, through a sparse product; above
    EXACT_PAIRS, MinHash-LSH (Broder 1997; datasketch, seeded) proposes the pairs, so a short text inside a
    much longer one is missed there.
    """
    return _compare(train, test, threshold, seed)[0]


def _bare(texts: list[str]) -> list[str]:
    """The texts without what all of them begin or end with, such as a prompt template."""
    head = len(commonprefix(texts))
    tail = len(commonprefix([text[head:][::-1] for text in texts]))
    return [text[head : len(text) - tail] for text in texts]


def gate(splits: Splits, *, allow: bool = False, threshold: float = 0.6) -> LeakageReport:
    """Compare train, validation and test with each other; LeakageError on near-duplicates unless `allow`.

    What all rows begin or end with (a prompt template) does not count as similarity.
    """
    parts = {split: getattr(splits, split) for split in ("train", "validation", "test")}
    bare = iter(_bare([e.text for examples in parts.values() for e in examples]))
    texts = {split: [next(bare) for _ in examples] for split, examples in parts.items()}
    report, found = LeakageReport(threshold), []
    for first, second in (("train", "test"), ("validation", "test"), ("train", "validation")):
        pairs, highest = _compare(texts[first], texts[second], threshold, 0)
        report.pairs[f"{first}/{second}"], report.highest[f"{first}/{second}"] = pairs, highest
        found += [(p, parts[first][p.train], parts[second][p.test]) for p in pairs]
    if found and not allow:
        raise LeakageError(_message(report, sorted(found, key=lambda item: -item[0].similarity)[:5]))
    return report


def _message(report: LeakageReport, worst: list[tuple[Pair, Example, Example]]) -> str:
    lines = [str(report), "The scores would be too good: what is tested was trained on. The most similar:"]
    for pair, *examples in worst:
        lines.append(f"  {examples[0].source} and {examples[1].source}: {pair.similarity:.2f}")
        lines += [f"    {' '.join(e.text.split())[:90]}" for e in examples]
    return "\n".join([*lines, "Remove these rows or move them into one split, or pass ALLOW_LEAKAGE=True."])


def cut(
    examples: Sequence[Example], sizes: dict[str, int], strata: Sequence[object], seed: int
) -> tuple[dict[str, list[Example]], str]:
    """Cut splits of the given sizes from the examples, the rest is "train"; also return one line on how.

    Every split gets its share of each stratum. Near-duplicates stay together; where rows are so alike
    that a split cannot be filled this way, only copies (equal once normalised) do. `seed` decides.
    """
    texts = _bare([example.text for example in examples])
    parts, how = divide(families(texts, seed=seed), sizes, strata, seed), "near-duplicates"
    if any(len(parts[split]) < size for split, size in sizes.items()):
        copies = pd.factorize(pd.Series(map(normalise, texts)))[0].tolist()
        parts, how = divide(copies, sizes, strata, seed), "only exact copies"
    chosen = {split: [examples[i] for i in sorted(parts[split])] for split in parts}
    return chosen, f"Cut from the training rows: {', '.join(sizes)} (seed {seed}; {how} stay in one split)."


def families(texts: Sequence[str], names: Sequence[str] = (), *, threshold: float = 0.6, seed: int = 0) -> list[int]:
    """The number of each text's family: texts linked by near-duplicates, directly or in a chain, or by equal names.

    Args:
        names: of each text, what else makes it kin to others, such as its author; empty: nothing.
    """
    links = [(pair.train, pair.test) for pair in near_duplicates(texts, texts, threshold=threshold, seed=seed)]
    for keys in (map(normalise, texts), names):
        first: dict[str, int] = {}
        links += [(first.setdefault(key, i), i) for i, key in enumerate(keys)]
    left, right = zip(*links, strict=True)
    graph = coo_matrix((np.ones(len(links), bool), (left, right)), shape=(len(texts), len(texts)))
    return connected_components(graph, directed=False)[1].tolist()


def divide(groups: Sequence[int], sizes: dict[str, int], strata: Sequence[object], seed: int) -> dict[str, list[int]]:
    """Places of the rows of each split: `sizes` filled with whole groups, the rest is "train".

    Every split gets its share of each stratum (the stratum of a group is that of its first row).
    """
    rng, members, layers = random.Random(seed), defaultdict(list), defaultdict(list)
    for i, name in enumerate(groups):
        members[name].append(i)
    for rows in members.values():
        layers[strata[rows[0]]].append(rows)
    order = []
    for layer in layers.values():
        rng.shuffle(layer)  # evenly spaced ranks: any stretch of the order holds its share of each stratum
        order += [((rank + rng.random()) / len(layer), rows) for rank, rows in enumerate(layer)]
    waiting, parts = [rows for _, rows in sorted(order)], {}
    for split, size in sizes.items():
        parts[split], left = [], []
        for rows in waiting:
            fits = len(parts[split]) + len(rows) <= size
            (parts[split].extend if fits else left.append)(rows)
        waiting = left
    return parts | {"train": [i for rows in waiting for i in rows]}
