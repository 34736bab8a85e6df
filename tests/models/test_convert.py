"""Conversion: exact where the target can hold the source, close where not, and never silent."""

import pytest
import torch
from model_cases import tiny_model, tokens

from planting import plant
from ridgeline.layers import GroupedQueryAttention
from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.models.convert import convert, output_errors
from ridgeline.models.convert.factor import Root, low_rank, shared_key

LENGTH = 24
# The slow half of the dims turns by less than 1e-6 in so many tokens: leaving it is exact.
STILL = {"rope_type": "default", "rope_theta": 1e38}
EXACT = {"rms_norm_eps": 1e-14}
WIDE = {"latent_dim": 32}  # as wide as the model: the latent holds all of its input
NARROW = {"mla": {"latent_dim": 16}}


def source(attention: str, **changes) -> RidgelineForCausalLM:
    """A float64 model whose heads' turning keys are multiples of one another."""
    changes = {"rope_parameters": STILL, **EXACT, **changes}
    model = tiny_model(attention, **changes)
    generator = torch.Generator().manual_seed(1)
    for layer in model.model.layers:
        attn = layer.self_attn
        half = attn.head_dim // 2
        keys = attn.k_proj.weight.data.view(attn.num_kv_heads, 2, half, -1)
        turning = torch.complex(*keys[:, :, : half // 2].unbind(1))
        factors = torch.randn(
            attn.num_kv_heads, half // 2, 1, generator=generator, dtype=turning.dtype
        )
        turning = factors * turning[:1]
        keys[:, :, : half // 2] = torch.stack((turning.real, turning.imag), dim=1)
    return model


def tie(model: RidgelineForCausalLM) -> RidgelineForCausalLM:
    """Still keys made of the values of the same head, as a tied state can hold them."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.model.layers:
        attn: GroupedQueryAttention = layer.self_attn
        dim = attn.head_dim
        keys = attn.k_proj.weight.data.view(attn.num_kv_heads, 2, dim // 2, -1)
        values = attn.v_proj.weight.data.view(attn.num_kv_heads, dim, -1)
        mix = torch.randn(
            attn.num_kv_heads, dim // 2, dim, generator=generator, dtype=torch.float64
        )
        still = (mix @ values / dim**0.5).unflatten(1, (2, dim // 4))
        keys[:, :, dim // 4 :] = still
    return model


def gap(model: RidgelineForCausalLM, target: RidgelineForCausalLM) -> float:
    """Largest difference of the logits, in units of the largest logit."""
    ids = tokens(2, LENGTH)
    with torch.no_grad():
        ours, theirs = target(ids).logits, model(ids).logits
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


# --- exactness


@pytest.mark.parametrize("attention", ["mha", "mqa", "gqa"])
@pytest.mark.parametrize(
    ("to", "sizes"),
    [("mla", WIDE), ("gla", WIDE), ("gla", {**WIDE, "num_latent_heads": 4})],
    ids=["mla", "gla-2", "gla-4"],
)
def test_a_latent_as_wide_as_the_model_is_exact(attention, to, sizes):
    model = source(attention)
    target, errors = convert(model, to, **sizes)
    assert gap(model, target) < 1e-5
    assert all(max(e.key, e.value) < 1e-10 for e in errors)
    assert max(output_errors(model, target, tokens(2, LENGTH))) < 1e-5


@pytest.mark.parametrize(
    ("attention", "sizes"),
    [("gqa", {}), ("mqa", {}), ("mha", {}), ("mqa", {"num_key_value_heads": 2})],
    ids=["gqa", "mqa", "mha", "mqa to gta-2"],
)
@pytest.mark.parametrize("with_text", [False, True], ids=["weights", "text"])
def test_keys_made_of_the_values_are_exact_as_gta(attention, sizes, with_text):
    model = tie(source(attention))
    rows = tokens(8, LENGTH, seed=3) if with_text else None
    target, errors = convert(model, "gta", rows=rows, **sizes)
    assert gap(model, target) < 1e-5
    assert all(max(e.key, e.value) < 1e-10 for e in errors)


def test_heads_with_the_same_keys_and_values_share_a_tied_state():
    """Eight query heads, four kv heads of which pairs are equal up to a mix: GTA-2 holds them."""
    model = tie(source("gqa", num_attention_heads=8, num_key_value_heads=4, head_dim=8))
    for layer in model.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            heads = projection.weight.data.view(4, 8, -1)
            heads[1::2] = heads[::2]
    target, _ = convert(model, "gta", num_key_value_heads=2)
    assert target.config.num_key_value_heads == 2
    assert gap(model, target) < 1e-5


def test_all_dims_may_turn():
    """With a RoPE key of a whole head nothing is left standing, at any base."""
    model = tiny_model("mqa", **EXACT)
    target, _ = convert(model, "mla", rope_dim=16, **WIDE)
    assert target.config.rope_parameters["rope_theta"] == 10000.0
    assert gap(model, target) < 1e-5


def test_decoding_from_the_cache_gives_the_same_tokens():
    model = tie(source("gqa"))
    ids = tokens(1, 8)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    for to, sizes in (("gta", {}), ("gla", WIDE)):
        target, _ = convert(model, to, **sizes)
        assert torch.equal(target.generate(ids, max_new_tokens=12, do_sample=False), expected)


def test_the_kept_frequencies_are_the_fastest_ones():
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    for rope in ({"rope_type": "default", "rope_theta": 10000.0}, scaled):
        model = tiny_model("gqa", rope_parameters=rope)
        target, _ = convert(model, "gla")
        theirs = model.model.rotary.frequencies.inv_freq
        torch.testing.assert_close(target.model.rotary.frequencies.inv_freq, theirs[:4])


# --- what is approximate


def test_a_text_makes_the_error_on_it_smaller():
    """Two of the directions carry nearly all of the inputs; the weights alone do not know."""
    model = tiny_model("gqa")
    spread = torch.full((32,), 0.05, dtype=torch.float64)
    spread[:2] = 3.0
    model.model.embed_tokens.weight.data *= spread
    rows = tokens(8, LENGTH, seed=3)
    blind, informed = (convert(model, "gta", rows=x)[0] for x in (None, rows))
    held_out = tokens(8, LENGTH, seed=4)
    errors = [output_errors(model, target, held_out)[0] for target in (blind, informed)]
    assert errors[1] < 0.8 * errors[0]


def test_narrower_latents_lose_more():
    model = source("gqa")
    found = [convert(model, "mla", latent_dim=width)[1][0] for width in (4, 12, 20, 32)]
    values = [error.value for error in found]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.5
    assert values[-1] < 1e-10


def test_joint_factors_lose_less_than_mean_pooling():
    """Pooling the kv heads is one of the tied states that the search covers."""
    model = tiny_model("mha")
    _, errors = convert(model, "gta", num_key_value_heads=2)
    for layer, error in zip(model.model.layers, errors, strict=True):
        values = layer.self_attn.v_proj.weight.unflatten(0, (2, 2, 16))
        pooled = values.mean(1, keepdim=True).expand_as(values)
        assert error.value < ((pooled - values).norm() / values.norm()).item()


def test_low_rank_is_the_best_product_and_its_state_is_white():
    generator = torch.Generator().manual_seed(0)
    weight, mix = (torch.randn(n, 12, generator=generator).double() for n in (9, 12))
    moment = mix @ mix.T
    root = Root.of(moment)
    torch.testing.assert_close(root.half @ root.half, moment)
    up, down = low_rank(weight, root, 4)
    torch.testing.assert_close(down @ moment @ down.T, torch.eye(4).double(), atol=1e-9, rtol=0)
    lost = ((weight - up @ down) @ root.half).norm()
    beyond = torch.linalg.svdvals(weight @ root.half)[4:]
    torch.testing.assert_close(lost, beyond.norm())


def test_one_key_for_several_heads_is_the_best_one():
    """No other factors and key come nearer, in the metric of the queries that meet them."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.complex128}
    keys, energy = torch.randn(3, 2, 8, **draw), torch.rand(3, 2, generator=generator).double()
    root = Root.of(torch.eye(8).double())

    def loss(factor, key):
        return (energy[..., None] * (keys - factor[..., None] * key).abs().square()).sum()

    factor, key = shared_key(keys, energy, root)
    torch.testing.assert_close(factor.abs().square().mean(0), torch.ones(2).double())
    best = loss(factor, key)
    for _ in range(20):
        near = factor + 0.01 * torch.randn(3, 2, **draw), key + 0.01 * torch.randn(2, 8, **draw)
        assert loss(*near) > best


# --- what is kept, and training it


@pytest.mark.parametrize("to", ["gta", "mla", "gla"])
def test_the_rest_of_the_model_is_kept(to):
    model = tiny_model("gqa", dtype=torch.bfloat16, tie_word_embeddings=True, eos_token_id=3)
    target, _ = convert(model, to, **NARROW.get(to, {}))
    assert target.dtype == torch.bfloat16
    assert target.config.eos_token_id == 3
    assert target.lm_head.weight is target.model.embed_tokens.weight
    theirs = model.state_dict()
    for name, weight in target.state_dict().items():
        if ".self_attn." not in name:
            assert torch.equal(weight, theirs[name]), name
            assert weight.data_ptr() != theirs[name].data_ptr(), name
    assert RidgelineConfig(**target.config.to_diff_dict()).to_dict() == target.config.to_dict()


@pytest.mark.parametrize("to", ["gta", "mla", "gla"])
def test_every_weight_gets_a_gradient(to):
    target, _ = convert(tiny_model("gqa"), to, **NARROW.get(to, {}))
    ids = tokens(2, LENGTH)
    target(ids, labels=ids).loss.backward()
    for name, parameter in target.named_parameters():
        rows = parameter.grad.flatten(0, -2) if parameter.dim() > 1 else parameter.grad[:, None]
        if "q_proj" not in name and "embed" not in name and "lm_head" not in name:
            assert (rows.abs().sum(-1) > 0).all(), name


# --- refusals


@pytest.mark.parametrize(
    ("attention", "to", "sizes", "message"),
    [
        ("gqa", "gqa", {}, "to: expected one of gta, mla, gla, got 'gqa'"),
        ("gla", "mla", {}, "attention: expected a model with one of mha, mqa, gqa"),
        ("gqa", "gta", {"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor"),
        ("gqa", "gta", {"num_latent_heads": 2}, "num_latent_heads: expected None"),
        ("gqa", "gla", {"num_latent_heads": 3}, "num_latent_heads: expected a divisor"),
        ("gqa", "mla", {"latent_dim": 33}, "latent_dim: expected at most hidden_size"),
        ("gqa", "mla", {"rope_dim": 18}, "rope_dim: expected at most head_dim"),
        ("gqa", "gta", {"rope_dim": 16}, "rope_dim: expected less than head_dim"),
        ("gqa", "gla", {"rope_dim": 7}, "rope_dim: expected an even number"),
    ],
)
def test_what_cannot_be_converted_is_named(attention, to, sizes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        convert(tiny_model(attention), to, **sizes)


def test_frequencies_that_cannot_be_kept_are_refused():
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ValueError, match=r"^rope_parameters: expected a rope_type of default"):
        convert(tiny_model("gqa", rope_parameters=yarn), "gla")
    with pytest.raises(ValueError, match=r"^rows: expected shape \[B, L\]"):
        convert(tiny_model("gqa"), "gla", rows=tokens(5))


# --- planted bugs

LAYERS, FACTOR = "ridgeline.models.convert.layers", "ridgeline.models.convert.factor"
BUGS = {
    "the query's factor is not conjugated": (
        LAYERS,
        "factor.conj()[source.kv_head]",
        "factor[source.kv_head]",
    ),
    "the query's factor is another head's": (
        LAYERS,
        "factor.conj()[source.kv_head]",
        "factor.conj().flip(0)[source.kv_head]",
    ),
    "the source's softmax scale": (LAYERS, "((dim + rope) / dim) ** 0.5", "1.0"),
    "heads of the kv heads interleaved": (LAYERS, "h // group", "h % len(self.k)"),
    "the slow pairs turn": (
        LAYERS,
        "pairs = torch.arange(rope // 2)\n",
        "pairs = torch.arange(dim // 2 - rope // 2, dim // 2)\n",
    ),
    "neighbouring dims are pairs": (
        LAYERS,
        "torch.complex(*x.chunk(2, dim=-2))",
        "torch.complex(x[..., ::2, :], x[..., 1::2, :])",
    ),
    "the balance is not undone": (LAYERS, "(count, dim - rope)) / balance", "(count, dim - rope))"),
    "the tied basis is transposed": (LAYERS, "down = turn @ (", "down = turn.T @ ("),
    "the query's key factor is transposed": (LAYERS, "k_up[:, :nope].T @", "k_up[:, :nope] @"),
    "the tied sizes are not undone": (LAYERS, "v / sizes @ turn.T", "v @ turn.T"),
    "the latents' basis is not undone": (LAYERS, "(k @ undo, v @ undo)", "(k @ basis, v @ undo)"),
    "the output's value factor is transposed": (
        LAYERS,
        "source.o[:, h] @ v_up",
        "source.o[:, h] @ v_up.T",
    ),
    "the state is not whitened back": (FACTOR, "vh[:rank] @ root.inverse", "vh[:rank]"),
    "the shared key is conjugated": (
        FACTOR,
        "(vh[:, 0] @ inverse)",
        "(vh[:, 0].conj() @ inverse)",
    ),
}


def _exact(model_of, to, **sizes) -> bool:
    model = model_of()
    for layer in model.model.layers:  # a moment that is not the identity
        layer.input_layernorm.weight.data = torch.linspace(0.5, 2.0, 32).double()
    target, _ = convert(model, to, rows=tokens(8, LENGTH, seed=3), **sizes)
    return gap(model, target) < 1e-5


def _all_exact() -> bool:
    tied = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    return _exact(
        lambda: source("gqa", num_attention_heads=8, head_dim=8), "gla", **WIDE
    ) and _exact(lambda: tie(source("gqa", **tied)), "gta")


def test_without_a_bug_all_is_exact():
    assert _all_exact()


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug, monkeypatch):
    module, old, new = BUGS[bug]
    plant(monkeypatch, module, old, new, "ridgeline.models.convert")
    try:
        exact = _all_exact()
    except (RuntimeError, IndexError):
        exact = False
    assert not exact
