"""DPO with every prompt computed once, by TRL's trainer.

The model that Ridgeline ships learns to prefer how a line of Python goes on over the same words in
reverse. `PrefixSharedDPOTrainer` packs the pairs into rows `prompt | chosen | prompt[-1] |
rejected`; losses and gradients are TRL's. Prints loss and reward accuracy of the first and the last
step, and the tokens that a step computed beside those that TRL would have.
"""

import tempfile

import torch
from datasets import Dataset

from ridgeline.models.generate import load
from ridgeline.trl import PrefixSharedDPOConfig, PrefixSharedDPOTrainer

LINES = [
    ("    def __init__(self, name, value=None, ", "default=None, **options):"),
    ("        for index, item in enumerate(", "self.items[start:stop]):"),
    ("        raise ValueError('expected a number, got ", "%r' % (value,))"),
    ("    with open(path, encoding='utf-8') as ", "stream: return stream.read()"),
    ("        return os.path.join(self.root, ", "name + '.py') if name else None"),
    ("    if not isinstance(value, (int, float)): ", "raise TypeError(type(value))"),
    ("        self.assertEqual(result.returncode, ", "0, result.stderr.decode())"),
    ("    parser.add_argument('--verbose', action=", "'store_true', help='say more')"),
]
pairs = [
    {"prompt": prompt, "chosen": line, "rejected": " ".join(reversed(line.split()))}
    for prompt, line in LINES
]

torch.manual_seed(0)
model, tokenizer = load()
with tempfile.TemporaryDirectory() as folder:
    trainer = PrefixSharedDPOTrainer(
        model.float(),
        args=PrefixSharedDPOConfig(
            folder,
            max_steps=4,
            per_device_train_batch_size=len(pairs),
            learning_rate=1e-4,
            logging_steps=1,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    trainer.train()

logged = [entry for entry in trainer.state.log_history if "loss" in entry]
first, last = logged[0], logged[-1]
print(f"loss: {first['loss']:.3f} -> {last['loss']:.3f}")
print(f"reward accuracy: {first['rewards/accuracies']:.2f} -> {last['rewards/accuracies']:.2f}")
print(f"tokens a step: {last['tokens/physical']:.0f}, TRL's {last['tokens/logical']:.0f}")
