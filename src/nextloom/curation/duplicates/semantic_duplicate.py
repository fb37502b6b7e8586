"""Reduce `semantic_duplicate`: rows whose embeddings point the same way share a group.

    embed: {op: embed, weights: models/siglip2}
    same:  {op: semantic_duplicate, reads: [embed], min_similarity: 0.95}

Two rows are linked when the cosine of their embeddings is at least `min_similarity`; a group is what links connect.
Equal embeddings are compared once. Up to `exact_up_to` different embeddings every pair is compared (faiss,
IndexFlatIP); above, only those in neighbouring cells (IndexIVFFlat: 4 sqrt(N) cells of k-means, `probes` of them
searched from each row). Both run on one thread with a fixed seed, so that the same rows give the same groups.

Price paid: links chain, as in `near_duplicate`; `similarity` says how near the representative is. Above
`exact_up_to` a pair that lies across a border of cells can be missed: of planted pairs at cosine 0.9 and 0.95 the
default missed none of 22,000 in synthetic embeddings, one of 3,000 with 8 probes (docs/log.md); real ones may be
less kind. Time is quadratic up to `exact_up_to`, about N^1.5 above; memory is twice the embeddings. Cosines are
float32: 1e-6 under the limit counts as at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from nextloom.curation.duplicates.duplicates import Duplicates
from nextloom.curation.duplicates.groups import Components
from nextloom.errors import UserError
from nextloom.op import Scale

SEED = 1234
ROUNDING = 1e-6
NORM_TOLERANCE = 1e-2
"""Half-precision models give norms within 1e-3 of 1; an embedding that was never normalised is far off."""
FOUND_AT_ONCE = 1 << 26
"""Most pairs that one search can return: 800 MB if all rows are alike."""
SAMPLED_PER_CELL = 64


class SemanticDuplicate(Duplicates):
    """Groups of rows whose embeddings have a cosine of at least `min_similarity`."""

    name: ClassVar[str] = "semantic_duplicate"
    code_version: ClassVar[int] = 2

    min_similarity: float = Field(default=0.95, gt=0, le=1)
    """Cosine from which two rows are linked. What it means depends on the encoder: look at pairs before choosing."""
    column: str = "embedding"
    """Column of the first step in `reads`: little-endian float32, l2-normalised, as bytes."""
    exact_up_to: int = Field(default=50_000, ge=1)
    """Different embeddings up to which every pair is compared; at 768 numbers each that is half a CPU-minute."""
    probes: int = Field(default=32, ge=1)
    """Cells searched from each row above that: more finds more and takes longer."""

    def columns(self) -> pa.Schema:
        return super().columns().append(pa.field("similarity", pa.float64()))

    def score_scales(self) -> Mapping[str, Scale]:
        return {"similarity": Scale("cosine", -1, 1)}

    def reduce(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """Group, hit, size and similarity of each row; null where the embedding is.

        Args:
            columns: step -> table(id, values, error) for the steps in `reads`.

        Returns:
            table(id, group, hit, size, similarity) sorted by id. `group` is the smallest id of the group, `hit` is
            true for all but its representative, `size` counts the members, `similarity` is the cosine to the
            representative (-1 to 1; 1 for itself).

        Raises:
            UserError: no such column of bytes, embeddings of several widths, of no whole number of float32, or not
                of length 1; a score without an order.
        """
        data = self.inputs(columns)
        kind = data.schema.field("value").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(f"{self.reads[0]}.{self.column} is {kind}, not an embedding as bytes", where="column")
        compared = data.filter(data["value"].is_valid())
        coded = compared["value"].cast(pa.large_binary()).combine_chunks().dictionary_encode()
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.combine_chunks()
        code_N = coded.indices.to_numpy()  # different embeddings by first appearance
        first_U = np.unique(code_N, return_index=True)[1]
        vectors_UD = self._vectors(coded.dictionary, compared["id"].to_numpy()[first_U])
        links = Components(len(vectors_UD))
        for left, right in self._links(vectors_UD):
            links.link(left, right)
        stays = self.elected(first_U[links.roots()[code_N]] if len(code_N) else code_N, compared)
        similarity = pa.array(_cosines(vectors_UD, code_N, code_N[stays]), pa.float64())
        return self.table(data, compared, stays, similarity=similarity)

    def _vectors(self, coded: pa.LargeBinaryArray, ids_U: np.ndarray) -> np.ndarray:
        """(U, D) float32 embeddings, checked; `ids_U`: a row of each for the message."""
        name = f"{self.reads[0]}.{self.column}"
        sizes = pc.binary_length(coded).to_numpy()
        if not len(sizes):
            return np.empty((0, 1), np.float32)
        if sizes[0] == 0 or sizes[0] % 4 or (sizes != sizes[0]).any():
            odd = int(np.argmax(sizes != sizes[0]))
            other = f", of row {ids_U[odd]} {sizes[odd]}" if odd else ""
            raise UserError(
                f"embeddings of one width are compared, float32; {name} of row {ids_U[0]} has {sizes[0]} bytes{other}",
                where="reads",
                next="read one `embed` step, of one model",
            )
        start = np.frombuffer(coded.buffers()[1], np.int64)[coded.offset]
        numbers = np.frombuffer(coded.buffers()[2], "<f4", count=int(sizes.sum()) // 4, offset=int(start))
        vectors_UD = numbers.reshape(len(sizes), -1)
        norms = np.sqrt(np.einsum("ud,ud->u", vectors_UD, vectors_UD, dtype=np.float64))
        bad = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
        if len(bad):
            raise UserError(
                f"{name} of row {ids_U[bad[0]]} has length {norms[bad[0]]:.4g}, not 1 ({len(bad):,} of {len(norms):,} "
                "different embeddings): a dot product of such is no cosine",
                where="reads",
                next="divide each embedding by its length, as `embed` does",
            )
        return np.ascontiguousarray(vectors_UD / norms[:, None], np.float32)

    def _links(self, vectors_UD: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of positions at least as near as asked, with repeats, in lots."""
        import faiss

        count, width = vectors_UD.shape
        if count < 2:
            return
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # sums do not depend on how the work is split
        try:
            index: Any
            exact = count <= self.exact_up_to
            if exact:
                index = faiss.IndexFlatIP(width)
            else:
                cells = int(4 * count**0.5)
                index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
                index.cp.seed, index.cp.spherical = SEED, True
                index.cp.max_points_per_centroid = SAMPLED_PER_CELL
                index.train(vectors_UD)
                index.add(vectors_UD)
                index.nprobe = min(self.probes, cells)
            lot = int(np.clip(FOUND_AT_ONCE // count, 32, 1024))
            for begin in range(0, count, lot):
                asked = vectors_UD[begin : begin + lot]
                if exact:
                    index.add(asked)  # each pair is compared once, from its later row
                limits, _, found = index.range_search(asked, self.min_similarity - ROUNDING)
                yield np.repeat(np.arange(begin, begin + len(asked)), np.diff(limits.astype(np.int64))), found
        finally:
            faiss.omp_set_num_threads(threads)


def _cosines(vectors_UD: np.ndarray, left_N: np.ndarray, right_N: np.ndarray) -> np.ndarray:
    """(N,) float64 dot products of rows `left_N` and `right_N`, within -1..1; exactly 1 for a row with itself."""
    out = np.ones(len(left_N))
    other = np.flatnonzero(left_N != right_N)
    for begin in range(0, len(other), 4096):
        lot = other[begin : begin + 4096]
        left, right = vectors_UD[left_N[lot]], vectors_UD[right_N[lot]]
        out[lot] = np.clip(np.einsum("nd,nd->n", left, right, dtype=np.float64), -1, 1)
    return out
