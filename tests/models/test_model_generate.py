"""transformers' ``generate`` over our cache, against loops and searches that have no cache."""

from threading import Thread

import pytest
import torch
from model_cases import VARIANTS, byte_tokenizer, greedy, left_padded, tiny_model, tokens
from transformers import TextIteratorStreamer, TextStreamer

# One row ends within a page, one crosses into the next, one starts from a single token.
ROWS = [tokens(9, seed=1), tokens(61, seed=2), tokens(1, seed=3)]
NEW = 6


def generate(model, ids, mask=None, seed=0, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    torch.manual_seed(seed)
    return model.generate(
        ids, attention_mask=mask, **({"max_new_tokens": NEW, "pad_token_id": 0} | options)
    )


@pytest.mark.parametrize("attention", VARIANTS)
def test_greedy_in_a_padded_batch_equals_each_row_alone_without_a_cache(attention):
    model = tiny_model(attention)
    ids, mask = left_padded(ROWS)
    out = generate(model, ids, mask)
    for b, row in enumerate(ROWS):
        assert torch.equal(out[b, ids.shape[1] - len(row) :], greedy(model, row, NEW))


SEARCHES = {
    "beams": {"num_beams": 3},
    "several of the beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "samples": {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
    "sampled beams": {"do_sample": True, "num_beams": 2, "temperature": 1.5},
}


@pytest.mark.parametrize("attention", VARIANTS)
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
def test_search_equals_the_one_without_a_cache(attention, search):
    model = tiny_model(attention)
    ids, mask = left_padded(ROWS)
    cached = generate(model, ids, mask, **search)
    assert torch.equal(cached, generate(model, ids, mask, use_cache=False, **search))
    assert len({tuple(row) for row in cached.tolist()}) > 1


def test_beams_share_the_pages_of_their_prompt():
    model, ids = tiny_model(), tokens(1, 128)
    out = generate(model, ids, num_beams=4, return_dict_in_generate=True, max_new_tokens=10)
    cache = out.past_key_values
    assert cache.batch_size == 4
    page = cache.pages.nbytes // cache.pages.num_pages
    # Two full pages for all, at most one more for each.
    assert 3 * page <= cache.nbytes <= 6 * page


def test_rows_may_end_early():
    model = tiny_model()
    ids, mask = left_padded(ROWS)
    plain = generate(model, ids, mask, max_new_tokens=10)
    end = int(plain[0, ids.shape[1] + 2])
    out = generate(model, ids, mask, max_new_tokens=10, eos_token_id=end)
    assert torch.equal(
        out, generate(model, ids, mask, max_new_tokens=10, eos_token_id=end, use_cache=False)
    )
    assert (out[0, ids.shape[1] + 3 :] == 0).all()


@pytest.mark.parametrize(
    "options",
    [{"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 16}, {"use_cache": False}],
    ids=["prompt lookup", "chunked prefill", "no cache"],
)
def test_other_ways_to_the_same_greedy_tokens(options):
    model = tiny_model()
    row = tokens(40, seed=4, vocab=6)
    out = generate(model, row[None], max_new_tokens=30, **options)
    assert torch.equal(out[0], greedy(model, row, 30))


def test_assisted_generation_crops_what_was_not_accepted():
    model, assistant = tiny_model(), tiny_model("gqa", num_hidden_layers=1)
    row = tokens(20, seed=5)
    out = generate(model, row[None], max_new_tokens=20, assistant_model=assistant)
    assert torch.equal(out[0], greedy(model, row, 20))


def test_a_second_turn_goes_on_from_the_first_ones_cache():
    model, row = tiny_model(), tokens(30, seed=6)
    first = generate(model, row[None], return_dict_in_generate=True)
    turn = torch.cat((first.sequences[0], tokens(5, seed=7)))
    out = generate(model, turn[None], past_key_values=first.past_key_values)
    assert torch.equal(out[0], greedy(model, turn, NEW))


def test_generation_beyond_the_planned_length_grows_the_cache():
    model, row = tiny_model(max_position_embeddings=64), tokens(60, seed=8)
    out = generate(model, row[None], max_new_tokens=70, return_dict_in_generate=True)
    assert out.past_key_values.pages.num_pages > 1
    assert torch.equal(out.sequences[0], greedy(model, row, 70))


def test_the_call_may_name_the_implementation():
    model, row = tiny_model(), tokens(5)
    expected = greedy(model, row, NEW)
    assert torch.equal(generate(model, row[None], impl="reference")[0], expected)
    with pytest.raises(ValueError, match="impl='hopper'"):
        generate(model, row[None], impl="hopper")


def test_caches_of_transformers_are_refused():
    with pytest.raises(ValueError, match="cache_implementation"):
        generate(tiny_model(), tokens(1, 4), cache_implementation="static")


def test_text_streamer_prints_what_is_returned(capsys):
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    ids = tokenizer("def read", return_tensors="pt").input_ids
    out = generate(model, ids, streamer=TextStreamer(tokenizer, skip_prompt=True))
    expected = tokenizer.decode(out[0, ids.shape[1] :])
    assert capsys.readouterr().out == expected + "\n"


def test_text_iterator_streamer_from_another_thread():
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    ids = tokenizer("return self", return_tensors="pt").input_ids
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    results = []
    thread = Thread(target=lambda: results.append(generate(model, ids, streamer=streamer)))
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(results[0][0, ids.shape[1] :])
