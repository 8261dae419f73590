"""The three Triton kernels: forward, dQ, and dK with dV. They are launched by ``_triton``.

Each program owns one tile of ``tiles.Tiles`` and one head, and nobody else writes its rows: there are no atomics, every
sum has a fixed order, and equal inputs give equal bits. Scores are kept in base 2 and in fp32; ``lse`` is log2 of a
row's sum of exponentials, 0 for a row that sees nothing. Dropout is recomputed from the logical positions with the
arithmetic of ``hashing.dropout_keep``.

``UPCAST`` turns operands of a product to fp32 first: Triton's interpreter multiplies bfloat16 wrongly.
"""

# mypy: allow-untyped-defs
# Arguments of a kernel have no Python types: they are pointers and scalars of the language that Triton compiles.

from __future__ import annotations

import triton
import triton.language as tl

#: Scalars that change from step to step: Triton must not compile again for each value.
VARYING = ["num_queries", "seed_low", "seed_high", "threshold"]


@triton.jit
def _finalize(bits):
    """MurmurHash3's finalizer on uint32; ``hashing._finalize_int32``."""
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def _row_hash(row_id, seed_low):
    return _finalize(row_id.to(tl.uint32, bitcast=True) ^ seed_low.to(tl.uint32))


@triton.jit
def _keep(row_hash, col_id, seed_high, threshold):
    """``hashing.dropout_keep`` for the pairs of a [rows, 1] and a [1, columns] tensor (or the transposed shapes)."""
    pair = _finalize(row_hash ^ col_id.to(tl.uint32, bitcast=True))
    salt = (tl.program_id(1) + seed_high).to(tl.uint32) * 0x9E3779B9
    return _finalize(pair ^ salt) >= threshold.to(tl.uint32)


@triton.jit
def _dot(a, b, UPCAST: tl.constexpr):
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _row_tile(TILES):
    at = TILES + tl.program_id(0) * 7
    return (
        tl.load(at),
        tl.load(at + 1),
        tl.load(at + 2),
        tl.load(at + 3),
        tl.load(at + 4),
        tl.load(at + 5),
        tl.load(at + 6),
    )


@triton.jit(do_not_specialize=VARYING)
def forward(
    Q,
    K,
    V,
    OUT,
    LSE,
    ROWS,
    TILES,
    ROW_ID,
    COL_ID,
    KEY_EXISTS,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    num_queries,
    scale_log2,
    seed_low,
    seed_high,
    threshold,
    keep_scale,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DROPOUT: tl.constexpr,
    KEY_MASK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One row tile of one head: OUT [T, H, D] (contiguous) and LSE [H, T]."""
    r0, rn, k0, kn, k1, k1n, cm = _row_tile(TILES)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    m = tl.arange(0, M)
    row = tl.load(ROWS + r0 + m, mask=m < rn, other=0).to(tl.int64)
    q = tl.load(Q + row[:, None] * q_token + head * q_head + d[None, :], mask=(m < rn)[:, None], other=0.0)
    if DROPOUT:
        row_hash = _row_hash(tl.load(ROW_ID + row), seed_low)

    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for start in range(0, kn + k1n, N):
        n = start + tl.arange(0, N)
        key = tl.where(n < kn, k0 + n, k1 + n - kn).to(tl.int64)
        exists = n < kn + k1n
        if KEY_MASK:
            exists = exists & (tl.load(KEY_EXISTS + key, mask=exists, other=0) != 0)
        k = tl.load(K + key[:, None] * k_token + head * k_head + d[None, :], mask=exists[:, None], other=0.0)
        v = tl.load(V + key[:, None] * v_token + head * v_head + d[None, :], mask=exists[:, None], other=0.0)
        seen = exists[None, :] & ((n < kn)[None, :] | ((n - kn)[None, :] < m[:, None] + cm))
        scores = tl.where(seen, _dot(q, tl.trans(k), UPCAST) * scale_log2, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp2(top - base)
        p = tl.exp2(scores - base[:, None])
        total = total * shrink + tl.sum(p, 1)
        if DROPOUT:
            col_id = tl.load(COL_ID + key, mask=exists, other=0)
            p = tl.where(_keep(row_hash[:, None], col_id[None, :], seed_high, threshold), p, 0.0)
        acc = acc * shrink[:, None] + _dot(p.to(v.dtype), v, UPCAST)
        top = new_top

    sees = total > 0
    divisor = tl.where(sees, total, 1.0)
    out = acc * (keep_scale / divisor)[:, None]
    width = tl.num_programs(1) * D
    tl.store(OUT + row[:, None] * width + head * D + d[None, :], out.to(OUT.dtype.element_ty), mask=(m < rn)[:, None])
    lse = tl.where(sees, top + tl.log2(divisor), 0.0)
    tl.store(LSE + head.to(tl.int64) * num_queries + row, lse, mask=m < rn)


@triton.jit(do_not_specialize=VARYING)
def grad_q(
    Q,
    K,
    V,
    OUT,
    LSE,
    GRAD,
    DQ,
    DELTA,
    ROWS,
    TILES,
    ROW_ID,
    COL_ID,
    KEY_EXISTS,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    num_queries,
    scale,
    seed_low,
    seed_high,
    threshold,
    keep_scale,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DROPOUT: tl.constexpr,
    KEY_MASK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One row tile of one head: DQ [T, H, D] and DELTA [H, T], the row sums of grad * out, which ``grad_kv`` reads."""
    r0, rn, k0, kn, k1, k1n, cm = _row_tile(TILES)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    m = tl.arange(0, M)
    inside = (m < rn)[:, None]
    row = tl.load(ROWS + r0 + m, mask=m < rn, other=0).to(tl.int64)
    q = tl.load(Q + row[:, None] * q_token + head * q_head + d[None, :], mask=inside, other=0.0)
    own = row[:, None] * (tl.num_programs(1) * D) + head * D + d[None, :]
    grad = tl.load(GRAD + own, mask=inside, other=0.0)
    delta = tl.sum(grad.to(tl.float32) * tl.load(OUT + own, mask=inside, other=0.0).to(tl.float32), 1)
    of_row = head.to(tl.int64) * num_queries + row
    tl.store(DELTA + of_row, delta, mask=m < rn)
    lse = tl.load(LSE + of_row, mask=m < rn, other=0.0)
    scale_log2 = scale * 1.4426950408889634
    if DROPOUT:
        row_hash = _row_hash(tl.load(ROW_ID + row), seed_low)

    acc = tl.zeros([M, D], tl.float32)
    for start in range(0, kn + k1n, N):
        n = start + tl.arange(0, N)
        key = tl.where(n < kn, k0 + n, k1 + n - kn).to(tl.int64)
        exists = n < kn + k1n
        if KEY_MASK:
            exists = exists & (tl.load(KEY_EXISTS + key, mask=exists, other=0) != 0)
        k = tl.load(K + key[:, None] * k_token + head * k_head + d[None, :], mask=exists[:, None], other=0.0)
        v = tl.load(V + key[:, None] * v_token + head * v_head + d[None, :], mask=exists[:, None], other=0.0)
        seen = exists[None, :] & ((n < kn)[None, :] | ((n - kn)[None, :] < m[:, None] + cm))
        scores = tl.where(seen, _dot(q, tl.trans(k), UPCAST) * scale_log2, float("-inf"))
        p = tl.exp2(scores - lse[:, None])
        dp = _dot(grad, tl.trans(v), UPCAST)
        if DROPOUT:
            col_id = tl.load(COL_ID + key, mask=exists, other=0)
            dp = tl.where(_keep(row_hash[:, None], col_id[None, :], seed_high, threshold), dp * keep_scale, 0.0)
        ds = p * (dp - delta[:, None])
        acc += _dot(ds.to(k.dtype), k, UPCAST)
    tl.store(DQ + own, (acc * scale).to(DQ.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def grad_kv(
    Q,
    K,
    V,
    LSE,
    DELTA,
    GRAD,
    DK,
    DV,
    ROWS,
    COLS,
    TILES,
    ENTRIES,
    ROW_ID,
    COL_ID,
    KEY_EXISTS,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    num_queries,
    scale,
    seed_low,
    seed_high,
    threshold,
    keep_scale,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DROPOUT: tl.constexpr,
    KEY_MASK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One key tile of one head: DK and DV [K, H, D]. Pairs are held transposed, [keys, rows]."""
    at = TILES + tl.program_id(0) * 4
    c0 = tl.load(at)
    cn = tl.load(at + 1)
    e0 = tl.load(at + 2)
    en = tl.load(at + 3)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    c = tl.arange(0, N)
    m = tl.arange(0, M)
    key = tl.load(COLS + c0 + c, mask=c < cn, other=0).to(tl.int64)
    inside = (c < cn)[:, None]
    exists = c < cn
    if KEY_MASK:
        exists = exists & (tl.load(KEY_EXISTS + key, mask=exists, other=0) != 0)
    k = tl.load(K + key[:, None] * k_token + head * k_head + d[None, :], mask=exists[:, None], other=0.0)
    v = tl.load(V + key[:, None] * v_token + head * v_head + d[None, :], mask=exists[:, None], other=0.0)
    width = tl.num_programs(1) * D
    scale_log2 = scale * 1.4426950408889634
    if DROPOUT:
        col_id = tl.load(COL_ID + key)

    dk = tl.zeros([N, D], tl.float32)
    dv = tl.zeros([N, D], tl.float32)
    for number in range(e0, e0 + en):
        entry = ENTRIES + number * 3
        r0 = tl.load(entry)
        rn = tl.load(entry + 1)
        diagonal = tl.load(entry + 2)
        row = tl.load(ROWS + r0 + m, mask=m < rn, other=0).to(tl.int64)
        q = tl.load(Q + row[:, None] * q_token + head * q_head + d[None, :], mask=(m < rn)[:, None], other=0.0)
        grad = tl.load(GRAD + row[:, None] * width + head * D + d[None, :], mask=(m < rn)[:, None], other=0.0)
        of_row = head.to(tl.int64) * num_queries + row
        lse = tl.load(LSE + of_row, mask=m < rn, other=0.0)
        delta = tl.load(DELTA + of_row, mask=m < rn, other=0.0)
        seen = exists[:, None] & (m < rn)[None, :] & (c[:, None] < m[None, :] + diagonal)
        scores = tl.where(seen, _dot(k, tl.trans(q), UPCAST) * scale_log2, float("-inf"))
        p = tl.exp2(scores - lse[None, :])
        dp = _dot(v, tl.trans(grad), UPCAST)
        dropped = p
        if DROPOUT:
            row_hash = _row_hash(tl.load(ROW_ID + row), seed_low)
            keep = _keep(row_hash[None, :], col_id[:, None], seed_high, threshold)
            dropped = tl.where(keep, p * keep_scale, 0.0)
            dp = tl.where(keep, dp * keep_scale, 0.0)
        dv += _dot(dropped.to(grad.dtype), grad, UPCAST)
        ds = p * (dp - delta[None, :])
        dk += _dot(ds.to(q.dtype), q, UPCAST)
    own = key[:, None] * width + head * D + d[None, :]
    tl.store(DK + own, (dk * scale).to(DK.dtype.element_ty), mask=inside)
    tl.store(DV + own, dv.to(DV.dtype.element_ty), mask=inside)
