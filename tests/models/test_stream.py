"""``stream`` and ``ridgeline generate``: the text, its samples, the counts, the errors."""

import pytest
import torch
from model_cases import byte_tokenizer, tiny_model
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from ridgeline.cli import app
from ridgeline.models import generate
from ridgeline.models.generate import load, sample, stream

PROMPT = "def read"


@pytest.fixture(scope="module")
def pair():
    tokenizer = byte_tokenizer()
    return tiny_model(vocab_size=len(tokenizer), max_position_embeddings=128), tokenizer


@pytest.fixture
def directory(pair, tmp_path):
    model, tokenizer = pair
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_the_likeliest_text_is_that_of_generate(pair):
    model, tokenizer = pair
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=40, pad_token_id=0, eos_token_id=0)
    text = "".join(stream(model, tokenizer, PROMPT, max_new_tokens=40, temperature=0))
    assert text == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_seed_gives_the_same_text_and_another_seed_another(pair):
    def text(seed):
        return "".join(stream(*pair, PROMPT, max_new_tokens=30, temperature=1.5, seed=seed))

    assert text(1) == text(1)
    assert text(1) != text(2)
    assert text(None) != text(None)


def test_counts(pair):
    model, tokenizer = pair
    out = stream(model, tokenizer, PROMPT, max_new_tokens=70, seed=4)
    assert out.stats.new_tokens == 0
    list(out)
    stats = out.stats
    assert stats.prompt_tokens == len(tokenizer(PROMPT).input_ids)
    assert stats.new_tokens == 70
    assert stats.prefill_rate > 0
    assert stats.decode_rate > 0
    cached = stats.prompt_tokens + 69
    per_token = 2 * (2 * 32 + 8) * 8  # layers x (latents and RoPE key) x bytes of float64
    assert stats.cache_bytes == -(-cached // 64) * 64 * per_token
    assert f"cache {stats.cache_bytes:,} bytes for {cached} tokens" in stats.summary()


def test_the_text_ends_before_the_end_token(pair, monkeypatch):
    model, tokenizer = pair
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    new = model.generate(prompt, max_new_tokens=20)[0, prompt.shape[1] :].tolist()
    monkeypatch.setattr(model.generation_config, "eos_token_id", [new[6]])
    out = stream(model, tokenizer, PROMPT, max_new_tokens=20, temperature=0)
    assert "".join(out) == tokenizer.decode(new[: new.index(new[6])])
    assert out.stats.new_tokens == new.index(new[6]) + 1


def test_characters_of_several_tokens_come_whole():
    tokenizer = byte_tokenizer()
    text = "naïve “日本語” 🙂 end"
    detokenizer = generate._Detokenizer(tokenizer)
    ids = tokenizer(text).input_ids
    pieces = [detokenizer.add(token) for token in ids]
    assert "".join(pieces) + detokenizer.rest() == text
    assert len(ids) > len(text)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_spaces_that_depend_on_the_token_before():
    words = ["▁one", "▁two", "▁three"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.decoder = decoders.Metaspace()
    detokenizer = generate._Detokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert [detokenizer.add(i) for i in range(3)] == ["one", " two", " three"]


def test_bytes_that_never_become_a_character_are_not_lost():
    tokenizer = byte_tokenizer()
    detokenizer = generate._Detokenizer(tokenizer)
    half = tokenizer("🙂").input_ids[:2]
    assert [detokenizer.add(token) for token in half] == ["", ""]
    assert detokenizer.rest() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (0.0, 1.0, [1.0, 0.0, 0.0]),
        (1.0, 1.0, [0.5, 0.3, 0.2]),
        (1.0, 0.79, [0.625, 0.375, 0.0]),
        (1.0, 0.81, [0.5, 0.3, 0.2]),
        (1.0, 1e-6, [1.0, 0.0, 0.0]),
        (0.5, 1.0, [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]),
    ],
)
def test_samples_follow_temperature_and_top_p(temperature, top_p, expected):
    logits = torch.tensor([0.3, 0.5, 0.2]).log()
    draws = 4000
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(3)
    for _ in range(draws):
        counts[sample(logits, temperature, top_p, generator)] += 1
    for got, p in zip((counts / draws)[[1, 0, 2]].tolist(), expected, strict=True):
        # Five standard errors; a probability of 0 or 1 leaves no room at all.
        assert abs(got - p) <= 5 * (p * (1 - p) / draws) ** 0.5


BAD = {
    "no text": ({"prompt": ""}, "prompt"),
    "bytes": ({"prompt": b"def"}, "prompt"),
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens"),
    "too long": ({"max_new_tokens": 127}, "max_new_tokens"),
    "cold": ({"temperature": -1.0}, "temperature"),
    "not a temperature": ({"temperature": float("nan")}, "temperature"),
    "no probability": ({"top_p": 0.0}, "top_p"),
    "more than all": ({"top_p": 1.1}, "top_p"),
    "seed": ({"seed": 1.5}, "seed"),
    "impl": ({"impl": "fast"}, "impl"),
}


@pytest.mark.parametrize(("options", "culprit"), BAD.values(), ids=BAD.keys())
def test_bad_calls_name_the_argument_at_once(pair, options, culprit):
    with pytest.raises((ValueError, TypeError), match=f"^{culprit}"):
        stream(*pair, **({"prompt": PROMPT, "max_new_tokens": 5} | options))


def test_a_tokenizer_of_another_model_is_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match="tokenizer: expected tokens below"):
        stream(tiny_model(vocab_size=20), tokenizer, PROMPT)


def run(*arguments):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def test_the_command_prints_prompt_text_and_counts(directory, pair):
    options = {"max_new_tokens": 20, "seed": 5, "temperature": 1.0, "top_p": 0.9}
    expected = "".join(stream(*load(directory), PROMPT, **options))
    flags = [x for k, v in options.items() for x in (f"--{k.replace('_', '-')}", v)]
    result = run(directory, "--prompt", PROMPT, *flags, "--impl", "reference", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout == PROMPT + expected + "\n"
    assert "tokens/s" in result.stderr
    assert "cache" in result.stderr


def test_the_command_uses_the_shipped_model_by_default(directory, pair, tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "pretrained").mkdir(parents=True)
    monkeypatch.setattr("ridgeline.models.generate.resources.files", lambda _: package)
    result = run()
    assert isinstance(result.exception, FileNotFoundError)
    assert "no model is shipped" in str(result.exception)
    pair[0].save_pretrained(package / "pretrained" / "small")
    pair[1].save_pretrained(package / "pretrained" / "small")
    result = run("--max-new-tokens", 5)
    assert result.exit_code == 0, result.output


def test_the_command_names_a_directory_without_a_model(tmp_path):
    result = run(tmp_path / "none")
    assert isinstance(result.exception, FileNotFoundError)
    assert "none: expected a model's directory" in str(result.exception)


def test_the_command_refuses_an_altered_model(directory):
    (directory / "tokenizer.json").write_text("{}")
    result = run(directory)
    assert isinstance(result.exception, ValueError)
    assert "tokenizer.json: truncated or altered" in str(result.exception)
