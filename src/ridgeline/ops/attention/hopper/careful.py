"""Rows whose result is not finite, once more: a value reaches only rows that see its key.

A tile of keys multiplies a tile of probabilities as a whole, and 0 times infinity, of a key that a
row does not see, is NaN. The forward kernel counts rows that are not finite; where there are none,
which is always but for inputs that are not finite or overflow, this kernel ends at once.
"""

from ridgeline.ops.attention.hopper.scales import make_scales
from ridgeline.ops.attention.tiles import key_interval, key_range, logits
from ridgeline.ops.common.gluon import gl, gluon

KEYS = gl.constexpr(32)
LAYOUT = gl.constexpr(gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0]))
COLUMNS = gl.constexpr(gl.SliceLayout(0, LAYOUT))
ROWS = gl.constexpr(gl.SliceLayout(1, LAYOUT))
STARTS = gl.constexpr(128)  # that are read at a time


@gluon.jit
def find(token, cu_q, stride, batch):
    """The sequence of a packed token."""
    b = 0
    for i in range(0, batch, STARTS):
        s = i + gl.arange(0, STARTS, gl.BlockedLayout([1], [32], [4], [0]))
        stop = gl.load(cu_q + (s.to(gl.int64) + 1) * stride, mask=s < batch, other=0)
        b += gl.sum(((s < batch) & (stop <= token)).to(gl.int32), 0)
    return b


@gluon.jit
def careful_kernel(
    q,
    k,
    v,
    out,
    spoilt,
    rows,
    cu_q,
    cu_k,
    stride_cuq,
    stride_cuk,
    batch,
    query_len,
    key_len,
    factor,
    scale,
    softcap,
    left,
    right,
    ends,
    stride_eb,
    stride_el,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_kb,
    stride_kl,
    stride_kh,
    stride_vb,
    stride_vl,
    stride_vh,
    q_scale,
    stride_qsb,
    stride_qsn,
    stride_qsh,
    q_block,
    k_scale,
    stride_ksb,
    stride_ksn,
    stride_ksh,
    k_block,
    v_scale,
    stride_vsb,
    stride_vsn,
    stride_vsh,
    v_block,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    DIM: gl.constexpr,
    VALUE_DIM: gl.constexpr,
    WIDTH: gl.constexpr,
    VALUE_WIDTH: gl.constexpr,
    PACKED: gl.constexpr,
    LEFT: gl.constexpr,
    RIGHT: gl.constexpr,
    TREE: gl.constexpr,
    SOFTCAP: gl.constexpr,
    SCALED: gl.constexpr,
):
    """``rows`` rows of ``out``, a query's heads side by side, dealt out to the programs."""
    if gl.load(spoilt) == 0:
        return
    EIGHT: gl.constexpr = q.dtype.element_ty == gl.float8e4nv
    q_scales = make_scales(q_scale, stride_qsb, stride_qsn, stride_qsh, q_block)
    k_scales = make_scales(k_scale, stride_ksb, stride_ksn, stride_ksh, k_block)
    v_scales = make_scales(v_scale, stride_vsb, stride_vsn, stride_vsh, v_block)
    d = gl.arange(0, WIDTH, COLUMNS)
    e = gl.arange(0, VALUE_WIDTH, COLUMNS)
    for row in range(gl.program_id(0), rows, gl.num_programs(0)):
        at = out + row.to(gl.int64) * VALUE_DIM + e
        x = gl.load(at, mask=e < VALUE_DIM, other=0.0).to(gl.float32)
        if gl.sum(x * 0.0, 0) != 0.0:
            token = (row // HEADS).to(gl.int64)
            head = row % HEADS
            if PACKED:
                b = find(token, cu_q, stride_cuq, batch)
                start_q = gl.load(cu_q + b.to(gl.int64) * stride_cuq).to(gl.int64)
                stop_q = gl.load(cu_q + (b.to(gl.int64) + 1) * stride_cuq)
                start_k = gl.load(cu_k + b.to(gl.int64) * stride_cuk).to(gl.int64)
                stop_k = gl.load(cu_k + (b.to(gl.int64) + 1) * stride_cuk)
                len_q = (stop_q - start_q).to(gl.int32)
                len_k = (stop_k - start_k).to(gl.int32)
                query = token
            else:
                # A length of 1 is a constant, which knows no conversion.
                len_q = gl.to_tensor(query_len)
                len_k = gl.to_tensor(key_len)
                b = (token // len_q).to(gl.int32)
                start_q = token * 0
                start_k = token * 0
                query = token % len_q
            position = len_k - len_q + (query - start_q).to(gl.int32)
            wide = b.to(gl.int64)
            q_row = q + wide * stride_qb + query * stride_ql + head.to(gl.int64) * stride_qh
            y = gl.load(q_row + d, mask=d < DIM, other=0.0).to(gl.float32)
            kv = (head // GROUP).to(gl.int64)
            if EIGHT:
                y *= gl.load(q_scales.at(b, query, head))
            k_rows = k + wide * stride_kb + start_k * stride_kl + kv * stride_kh
            v_rows = v + wide * stride_vb + start_k * stride_vl + kv * stride_vh
            e_rows = ends
            if TREE:
                e_rows += wide * stride_eb + start_k * stride_el
            begin, _, _, end = key_range(position, position, len_k, left, right, LEFT, RIGHT, KEYS)
            acc = gl.zeros([VALUE_WIDTH], gl.float32, COLUMNS)
            m = gl.to_tensor(float("-inf"))
            l = gl.to_tensor(0.0)
            for tile in range(begin, end):
                n = tile * KEYS + gl.arange(0, KEYS, ROWS)
                low, high = key_interval(
                    n, len_k, e_rows, stride_el, left, right, LEFT, RIGHT, TREE
                )
                seen = (low <= position) & (position < high)
                n = n.to(gl.int64)
                # [KEYS, WIDTH], [KEYS, VALUE_WIDTH]
                keys = gl.load(
                    (k_rows + n * stride_kl)[:, None] + d[None, :],
                    mask=seen[:, None] & (d < DIM)[None, :],
                    other=0.0,
                ).to(gl.float32)
                values = gl.load(
                    (v_rows + n * stride_vl)[:, None] + e[None, :],
                    mask=seen[:, None] & (e < VALUE_DIM)[None, :],
                    other=0.0,
                ).to(gl.float32)
                if EIGHT:
                    keys *= gl.load(k_scales.at(b, n, kv), mask=seen, other=1.0)[:, None]
                    values *= gl.load(v_scales.at(b, n, kv), mask=seen, other=1.0)[:, None]
                s = logits(gl.sum(keys * y[None, :], 1), scale, softcap, SOFTCAP, SCALED) * factor
                s = gl.where(seen, s, float("-inf"))
                m_new = gl.maximum(m, gl.max(s, 0))
                base = gl.where(m_new == float("-inf"), 0.0, m_new)
                p = gl.exp2(s - base)
                alpha = gl.exp2(m - base)
                # A probability that underflows does not silence what it multiplies.
                part = gl.where(gl.abs(values) < float("inf"), p[:, None] * values, values)
                acc = acc * alpha + gl.sum(part, 0)
                l = l * alpha + gl.sum(p, 0)
                m = m_new
            total = gl.where(l == 0.0, 1.0, l)
            gl.store(at, (acc / total).to(out.dtype.element_ty), mask=e < VALUE_DIM)
