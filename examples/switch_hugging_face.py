"""Switch a Hugging Face model to Ridgeline's attention.

A small Llama with random weights generates with transformers' own attention and with Ridgeline's,
then reads two documents packed into one row. Prints both generations, which are the same tokens,
and the largest difference between logits of the packed row and of each document alone. With a real
model, `AutoModelForCausalLM.from_pretrained(name, attn_implementation="ridgeline")` is the switch.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ridgeline.transformers  # registers "ridgeline"

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    initializer_range=0.2,  # random weights that have preferences
)
model = LlamaForCausalLM(config).eval()
prompt = torch.randint(512, (2, 30))
settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}

before = model.generate(prompt, **settings)
model.set_attn_implementation("ridgeline")
ridgeline.transformers.check_model(model)  # says so if a model cannot be switched
cache = ridgeline.transformers.GrowingCache(model.config)  # a step copies no cached token
after = model.generate(prompt, past_key_values=cache, **settings)
print("transformers:", before[0, 30:].tolist())
print("ridgeline:   ", after[0, 30:].tolist())
assert torch.equal(before, after)

documents = [torch.randint(512, (1, length)) for length in (20, 33)]
positions = torch.cat([torch.arange(document.shape[1]) for document in documents])
with torch.inference_mode():
    packed = model(torch.cat(documents, dim=1), position_ids=positions[None]).logits
    alone = torch.cat([model(document).logits for document in documents], dim=1)
print(f"packed against alone: {(packed - alone).abs().max():.1e}")
