"""Train a small GLA model on text, then decode with it.

A byte-level decoder of two layers learns the source code of a module of Python's standard library
for a few seconds. Attention in training is Ridgeline's kernel on expanded latents; `generate`
decodes over the latents themselves. Prints the loss in nats a byte, the continuation of a prompt,
and what a token costs in the cache beside multi-head attention of the same width. `ridgeline train`
is the same with a tokenizer, checkpoints, held-out loss and a log.
"""

import argparse
import inspect

import torch

from ridgeline import CacheSpec, RidgelineConfig, RidgelineForCausalLM

STEPS, BATCH, CONTEXT = 60, 8, 96
torch.manual_seed(0)
config = RidgelineConfig(
    attention="gla",
    num_latent_heads=2,
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)
model = RidgelineForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
text = torch.tensor(list(inspect.getsource(argparse).encode()))

for step in range(STEPS):
    starts = torch.randint(len(text) - CONTEXT, (BATCH, 1))
    batch = text[starts + torch.arange(CONTEXT)]
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step % 20 == 0 or step == STEPS - 1:
        print(f"step {step:3}: loss {loss.item():.2f}")

prompt = torch.tensor([list(b"    def add_argument(self, ")])
model.eval()
out = model.generate(prompt, max_new_tokens=40, do_sample=True, temperature=0.5)
print(bytes(out[0].tolist()).decode(errors="replace"))

ours = model.model.layers[0].self_attn.cache_spec().bytes_per_token(torch.bfloat16)
mha = CacheSpec.gqa(config.num_attention_heads, config.head_dim).bytes_per_token(torch.bfloat16)
print(f"bytes a token and layer: {ours} (GLA-2), {mha} (MHA)")
