"""Rotary embedding against transformers' own functions, and what must not disturb it."""

import copy

import pytest
import torch

from ridgeline.layers import RotaryEmbedding, apply_rotary

DIM, MAX_POSITION = 16, 64
SCALINGS = {
    "none": None,
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5000.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
        "original_max_position_embeddings": 48,
    },
    "yarn-attention": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.25},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + i / 8 for i in range(DIM // 2)],
        "long_factor": [1.0 + 3 * i for i in range(DIM // 2)],
        "original_max_position_embeddings": 24,
    },
    "longrope-factor": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0] * (DIM // 2),
        "long_factor": [2.0] * (DIM // 2),
        "original_max_position_embeddings": 24,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}


def theirs(scaling: dict | None, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        max_position_embeddings=MAX_POSITION,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"} | (scaling or {}),
    )
    cos, sin = llama.LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    assert torch.equal(cos[..., : DIM // 2], cos[..., DIM // 2 :])
    return cos[..., : DIM // 2], sin[..., : DIM // 2]


@pytest.mark.parametrize("length", [1, 24, 25, 64, 65, 300])
@pytest.mark.parametrize("name", SCALINGS)
def test_equals_transformers(name, length):
    scaling = copy.deepcopy(SCALINGS[name])
    positions = torch.arange(length)[None]
    actual = RotaryEmbedding(DIM, 10000.0, scaling, MAX_POSITION)(positions)
    assert scaling == SCALINGS[name]
    for ours, expected in zip(actual, theirs(scaling, positions), strict=True):
        assert ours.shape == (1, length, DIM // 2)
        assert torch.equal(ours, expected)


def test_old_name_of_rope_type_is_read():
    positions = torch.arange(9)[None]
    new = RotaryEmbedding(DIM, scaling={"rope_type": "linear", "factor": 3.0})(positions)
    old = RotaryEmbedding(DIM, scaling={"type": "linear", "factor": 3.0})(positions)
    assert torch.equal(new[0], old[0])
    assert not torch.equal(new[0], RotaryEmbedding(DIM)(positions)[0])


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_a_sequence_does_not_depend_on_its_batch(name):
    rotary = RotaryEmbedding(DIM, 10000.0, SCALINGS[name], MAX_POSITION)
    positions = torch.stack((torch.arange(8), torch.arange(90, 98)))
    together = rotary(positions)
    for b in range(2):
        alone = rotary(positions[b : b + 1])
        assert torch.equal(together[0][b], alone[0][0])
        assert torch.equal(together[1][b], alone[1][0])


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_survive_casts_and_how_models_are_made(name):
    positions = torch.arange(200)[None]
    expected = RotaryEmbedding(DIM, scaling=SCALINGS[name])(positions)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            rotary = RotaryEmbedding(DIM, scaling=SCALINGS[name])
    finally:
        torch.set_default_dtype(torch.float32)
    rotary = rotary.to(torch.bfloat16)
    assert rotary.state_dict() == {}
    for a, e in zip(rotary(positions), expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, e)


def test_apply_equals_llama():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    x = torch.randn(2, 5, 3, DIM)
    cos, sin = RotaryEmbedding(DIM)(torch.arange(7, 12).expand(2, 5))
    wide = (torch.cat((t, t), -1) for t in (cos, sin))
    expected, _ = llama.apply_rotary_pos_emb(x, x, *wide, unsqueeze_dim=2)
    torch.testing.assert_close(apply_rotary(x, cos, sin), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_apply_rounds_once_to_the_dtype_of_its_input(dtype):
    x = torch.randn(2, 5, 3, DIM, dtype=torch.float64).to(dtype)
    cos, sin = RotaryEmbedding(DIM)(torch.arange(5).expand(2, 5))
    out = apply_rotary(x, cos, sin)
    exact = apply_rotary(x.double(), cos.double(), sin.double())
    assert out.dtype == dtype
    # Half a unit in the last place of a result, and the fp32 arithmetic before it.
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 4 * torch.finfo(torch.float32).eps
    assert ((out.double() - exact).abs() <= bound).all()


def test_rotation_depends_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, DIM, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        (cos_i, sin_i), (cos_j, sin_j) = (RotaryEmbedding(DIM)(torch.tensor([[p]])) for p in (i, j))
        return float((apply_rotary(q, cos_i, sin_i) * apply_rotary(k, cos_j, sin_j)).sum())

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"dim": 7}, ValueError, "^dim: expected an even"),
        ({"dim": 0}, ValueError, r"^dim: expected .*, got 0"),
        ({"base": -1.0}, ValueError, "^base: expected a number above 1"),
        ({"max_position": 0}, ValueError, "^max_position: "),
        ({"scaling": {"rope_type": "ntk"}}, ValueError, r"^scaling\['rope_type'\]: .* got 'ntk'"),
        ({"scaling": {"rope_type": "linear"}}, ValueError, r"^scaling\['factor'\]: .* got none"),
        ({"scaling": {"factor": 2.0}}, ValueError, "^scaling: unknown field 'factor'"),
        (
            {"scaling": {"rope_type": "linear", "factor": 0.0}},
            ValueError,
            r"^scaling\['factor'\]: expected a number above 0",
        ),
        (
            {"scaling": {"rope_type": "linear", "factor": "4"}},
            TypeError,
            r"^scaling\['factor'\]: expected a float",
        ),
        (
            {"scaling": SCALINGS["longrope"] | {"long_factor": [1.0, 2.0]}},
            ValueError,
            r"^scaling\['long_factor'\]: expected 8 numbers",
        ),
        (
            {"scaling": SCALINGS["llama3"] | {"original_max_position_embeddings": 0}},
            ValueError,
            r"^scaling\['original_max_position_embeddings'\]: expected .*, got 0",
        ),
        (
            {"scaling": SCALINGS["yarn"] | {"beta_fast": "32"}},
            TypeError,
            r"^scaling\['beta_fast'\]: expected a float",
        ),
        (
            {"scaling": SCALINGS["yarn"] | {"truncate": 1}},
            TypeError,
            r"^scaling\['truncate'\]: expected a bool",
        ),
        (
            {"scaling": SCALINGS["yarn"] | {"rope_theta": 1.0}},
            ValueError,
            r"^scaling\['rope_theta'\]: expected a number above 1",
        ),
        ({"dim": 2, "scaling": SCALINGS["dynamic"]}, ValueError, "^dim: expected at least 4"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, match):
    with pytest.raises(error, match=match):
        RotaryEmbedding(**{"dim": DIM} | kwargs)


def test_positions_of_a_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"^position_ids: expected shape \[B, L\]"):
        RotaryEmbedding(DIM)(torch.arange(4))
