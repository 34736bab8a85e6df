"""The cases and the bad inputs find bugs that are planted on purpose.

They are those of ``test_interfaces_fuzz`` and ``test_interfaces_bad_input``, which pass without.
"""

import pytest
import torch
from interface_cases import MAKERS, violation
from interface_mutation import Mutation
from test_interfaces_bad_input import BAD, FUNCTIONS
from test_interfaces_fuzz import CASES

ARGUMENTS, DENSE, KVCACHE = (f"flash_attn_interface.{n}" for n in ("arguments", "dense", "kvcache"))
ROTARY, PAGES, QUERIES = (f"flash_attn_interface.{n}" for n in ("rotary", "pages", "queries"))
ATTEND, LATENT, COMBINE = (f"flash_attn_interface.{n}" for n in ("attend", "latent", "combine"))
MLA = "flash_mla_interface"
PLANTED = [
    Mutation("right-0-is-not-causal", "dense", ARGUMENTS, "causal or right == 0", "causal"),
    Mutation("left-0-is-unbounded", "dense", ARGUMENTS, "left if left >= 0", "left if left > 0"),
    Mutation(
        "chunk-too-long", "dense", ARGUMENTS, "// chunk + 1) * chunk)", "// chunk + 2) * chunk)"
    ),
    Mutation(
        "chunk-dropped",
        "varlen",
        DENSE,
        "    if mask.chunk:\n        subtree_end",
        "    if 0:\n        subtree_end",
    ),
    Mutation("right-is-not-local", "kvcache", ARGUMENTS, " or self.right is not None", ""),
    Mutation("left-is-not-local", "kvcache", ARGUMENTS, " or self.left is not None", ""),
    Mutation("lse-not-transposed", "dense", DENSE, "lse.transpose(1, 2).contiguous()", "lse"),
    Mutation("packed-lse-not-transposed", "varlen", DENSE, "lse.T.contiguous()", "lse"),
    Mutation(
        "qv-dropped", "dense", DENSE, "torch.cat((q, qv), dim=-1)", "torch.cat((q, 0 * qv), dim=-1)"
    ),
    Mutation(
        "qv-twice",
        "varlen",
        DENSE,
        "torch.cat((k, v), dim=-1), v",
        "torch.cat((k, 2 * v), dim=-1), v",
    ),
    Mutation(
        "q-scales-tiled",
        "dense",
        DENSE,
        "q_descale.repeat_interleave(q.shape[-2] // kv_heads, dim=1)",
        "q_descale.repeat(1, q.shape[-2] // kv_heads)",
    ),
    Mutation(
        "k-and-v-scales-swapped",
        "varlen",
        DENSE,
        '"k": k_descale, "v": v_descale}',
        '"k": v_descale, "v": k_descale}',
    ),
    Mutation(
        "one-row-too-many-used",
        "varlen",
        DENSE,
        "index < seqused[sequence]",
        "index <= seqused[sequence]",
    ),
    Mutation(
        "unused-rows-have-lse-0", "varlen", DENSE, "-torch.inf).index_copy", "0.0).index_copy"
    ),
    Mutation(
        "used-queries-keep-their-starts",
        "varlen",
        DENSE,
        "used, cu_seqlens_q = _used",
        "used, _ = _used",
    ),
    Mutation(
        "chunks-from-the-first-sequence", "varlen", DENSE, "row - cu_seqlens[sequence]", "row"
    ),
    Mutation(
        "k-and-v-swapped", "qkvpacked", DENSE, "q, k, v = qkv.unbind(2)", "q, v, k = qkv.unbind(2)"
    ),
    Mutation("kv-heads-swapped", "qkvpacked", DENSE, "q, k, v = qkv.split", "q, v, k = qkv.split"),
    Mutation(
        "qkv-scale-dropped",
        "qkvpacked",
        DENSE,
        "        softmax_scale,\n        causal,\n        q_descale=",
        "        None,\n        causal,\n        q_descale=",
    ),
    Mutation(
        "new-tokens-not-counted", "kvcache", KVCACHE, "else before + new_lengths", "else before"
    ),
    Mutation(
        "queries-always-local", "kvcache", KVCACHE, "index if options.mask.local else 0", "index"
    ),
    Mutation("queries-never-local", "kvcache", KVCACHE, "index if options.mask.local else 0", "0"),
    Mutation(
        "queries-at-the-end", "kvcache", KVCACHE, "query_rows = turn_from[", "query_rows = length["
    ),
    Mutation(
        "rotary-seqlens-ignored", "kvcache", KVCACHE, "new_rows = turn_from[", "new_rows = before["
    ),
    Mutation(
        "appended-one-late",
        "kvcache",
        KVCACHE,
        "before[sequence] + index)",
        "before[sequence] + index + 1)",
    ),
    Mutation(
        "appended-backwards",
        "kvcache",
        KVCACHE,
        "before[sequence] + index)",
        "length[sequence] - 1 - index)",
    ),
    Mutation("v-not-appended", "kvcache", KVCACHE, "        v_cache[slots] = v\n", ""),
    Mutation(
        "k-stored-unrotated",
        "kvcache",
        KVCACHE,
        "            k = rotate(",
        "            _ = rotate(",
    ),
    Mutation(
        "q-unrotated", "kvcache", KVCACHE, "            q = rotate(", "            _ = rotate("
    ),
    Mutation("default-scale-without-qv", "kvcache", KVCACHE, "        width += qv.shape[-1]\n", ""),
    Mutation("q-descale-dropped", "kvcache", KVCACHE, "of_k = of_q * of_k", "of_k = 1.0 * of_k"),
    Mutation(
        "value-scales-tiled",
        "kvcache",
        KVCACHE,
        "of_v.repeat_interleave(group, dim=1)",
        "of_v.repeat(1, group)",
    ),
    Mutation(
        "none-is-an-empty-cache",
        "kvcache",
        KVCACHE,
        "cache_seqlens = table.shape[1] * k_cache.shape[1]",
        "cache_seqlens = 0",
    ),
    Mutation(
        "turned-the-other-way",
        "kvcache",
        ROTARY,
        "a * cos - b * sin, a * sin + b * cos",
        "a * cos + b * sin, b * cos - a * sin",
    ),
    Mutation(
        "interleaving-swapped",
        "kvcache",
        ROTARY,
        "    if interleaved:\n        a, b",
        "    if not interleaved:\n        a, b",
    ),
    Mutation(
        "offset-off-by-one",
        "kvcache",
        PAGES,
        "token % self.page_size\n",
        "(token + 1) % self.page_size\n",
    ),
    Mutation(
        "first-key-dropped",
        "kvcache",
        PAGES,
        "- query_lengths - left)",
        "- query_lengths - left + 1)",
    ),
    Mutation(
        "left-pad-counted",
        "kvcache",
        PAGES,
        "self.length - self.leftpad, None)",
        "self.length, None)",
    ),
    Mutation(
        "left-pad-ignored",
        "kvcache",
        PAGES,
        "(token + self.leftpad[:, None])",
        "(token + 0 * self.leftpad[:, None])",
    ),
    Mutation(
        "pages-assumed-dense",
        "kvcache",
        PAGES,
        "page * k[1] + offset",
        "page * self.page_size + offset",
    ),
    Mutation("k-and-v-assumed-alike", "kvcache", PAGES, " or k[1] != v[1]", ""),
    Mutation("odd-strides-rounded", "kvcache", PAGES, " or page_stride % stride", ""),
    Mutation(
        "cache-batch-idx-ignored", "kvcache", PAGES, "rows[cache_batch_idx.long()]", "rows[:batch]"
    ),
    Mutation("softcap-lost-with-qv", "kvcache", ATTEND, "(qv is None or plain)", "True"),
    Mutation("chunk-lost", "kvcache", ATTEND, "mask.chunk == 0 and", "True and"),
    Mutation(
        "chunks-from-the-cache's-start",
        "kvcache",
        ATTEND,
        "first if sequences.leftpad is None else first - sequences.leftpad",
        "first",
    ),
    Mutation(
        "chunks-from-the-window's-start",
        "kvcache",
        ATTEND,
        "(chunk_ends(index + skipped, mask.chunk) - skipped)",
        "chunk_ends(index, mask.chunk)",
    ),
    Mutation(
        "score-scale-dropped",
        "kvcache",
        ATTEND,
        "_scaled(q, queries, options.score_scale)",
        "_scaled(q, queries, None)",
    ),
    Mutation(
        "value-scale-dropped",
        "kvcache",
        ATTEND,
        "_scaled(out, queries, options.value_scale)",
        "out",
    ),
    Mutation(
        "window-dropped", "kvcache", ATTEND, "                window=options.mask.window,\n", ""
    ),
    Mutation(
        "key-and-value-swapped",
        "kvcache",
        ATTEND,
        "                sequences.v_cache,\n                sequences.k_cache,\n",
        "                sequences.k_cache,\n                sequences.v_cache,\n",
    ),
    Mutation(
        "groups-reversed",
        "kvcache",
        QUERIES,
        "self.cu_seqlens[sequences, None] + index",
        "self.cu_seqlens[sequences + 1, None] - 1 - index",
    ),
    Mutation(
        "last-length-only",
        "kvcache",
        QUERIES,
        "for length in lengths:",
        "for length in lengths[-1:]:",
    ),
    Mutation("first-rope-for-all", "mla", LATENT, "rope_cache[:, :, h]", "rope_cache[:, :, 0]"),
    Mutation(
        "first-state-for-all",
        "mla",
        LATENT,
        "state_cache[:, :, h : h + 1]",
        "state_cache[:, :, :1]",
    ),
    Mutation(
        "heads-interleaved",
        "mla",
        LATENT,
        "slice(h * group, (h + 1) * group)",
        "slice(h, None, heads)",
    ),
    Mutation(
        "always-causal", "mla", MLA, '"causal": check.flag("causal", causal)', '"causal": True'
    ),
    Mutation("scale-of-the-latent", "mla", MLA, "scale = width**-0.5", "scale = head_dim_v**-0.5"),
    Mutation(
        "empty-row-is-minus-infinity",
        "mla",
        MLA,
        "-torch.inf, torch.inf)",
        "-torch.inf, -torch.inf)",
    ),
    Mutation("mla-lse-not-transposed", "mla", MLA, "lse.transpose(1, 2).contiguous()", "lse"),
    Mutation(
        "rope-first",
        "mla",
        MLA,
        "q_nope, q_rope = q.split((head_dim_v, width - head_dim_v), dim=-1)",
        "q_rope, q_nope = q.split((width - head_dim_v, head_dim_v), dim=-1)",
    ),
    Mutation("out-not-written", "combine", COMBINE, "out.copy_(result)", "result"),
    Mutation("out-dtype-ignored", "combine", COMBINE, "    result = result.to(dtype)\n", ""),
    Mutation("room-for-new-not-asked", "bad input", PAGES, "capacity - more:", "capacity:"),
    Mutation(
        "rows-not-distinct", "bad input", PAGES, "and not _distinct(cache", "and not len(cache"
    ),
    Mutation(
        "page-beyond-the-last",
        "bad input",
        PAGES,
        "(sequences.table >= num_pages)",
        "(sequences.table > num_pages)",
    ),
    Mutation("negative-page", "bad input", PAGES, "(sequences.table < 0) | ", ""),
    Mutation("inference-not-checked", "bad input", PAGES, "x.is_inference() and", "False and"),
    Mutation(
        "expanded-not-checked", "bad input", PAGES, "n > 1 and stride == 0", "n < 1 and stride == 0"
    ),
    Mutation("left-pad-not-checked", "bad input", PAGES, "(leftpad > before)", "(leftpad < 0)"),
    Mutation(
        "rotary-rows-not-checked",
        "bad input",
        ROTARY,
        "high >= cos.shape[0]",
        "high > cos.shape[0]",
    ),
    Mutation("sink-not-refused", "bad input", MLA, "if attn_sink is not None", "if False"),
    Mutation(
        "descale-of-bf16-ignored", "bad input", ARGUMENTS, "if q.dtype != check.FP8", "if False"
    ),
    Mutation("starts-not-checked", "bad input", QUERIES, "cu_seqlens[-1] != total or ", ""),
]


def problem(makers: str) -> str | None:
    """The first wrong result of the cases, or the first bad input that is not refused."""
    if makers == "bad input":
        return _not_refused()
    for seed in range(CASES[makers]):
        case = MAKERS[makers](seed)
        try:
            why = violation(case)
        except Exception as e:
            why = repr(e)
        if why:
            return why
    return None


def _not_refused() -> str | None:
    for make, name, change, error, _ in BAD:
        arguments = make()
        arguments[name] = change(arguments[name]) if callable(change) else change
        try:
            FUNCTIONS[make](**arguments)
        except error:
            continue
        except Exception as e:
            return f"{name}: {e!r}"
        return f"{name}: accepted"
    return None


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    torch.manual_seed(0)
    assert problem(bug.makers) is not None
