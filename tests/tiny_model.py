"""Make a random Llama of a few thousand weights as a Hugging Face folder: `python tests/tiny_model.py FOLDER`.

Runs in the training environment. The same script gives the same bytes, so the folder is cached by its hash.
"""

from __future__ import annotations

import sys
from pathlib import Path

VOCABULARY = 300
SPECIAL = ["<pad>", "<bos>", "<eos>"]
LINES = [
    "My card was charged twice this month, please refund one of the payments.",
    "The app crashes as soon as I open the settings page on my phone.",
    "How do I change the address of my invoice?",
    "I can't log in: the password reset mail never arrives.",
    "billing technical account shipping",
    '{"name": "Ada", "amount": 12.5, "paid": true}',
]
TEMPLATE = (
    "{% for message in messages %}<bos>{{ message['role'] }}\n{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


def make_tiny_model(folder: Path) -> None:
    """Write config, weights, a byte-level BPE tokenizer and its chat template to `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(LINES * 4, trainer)
    pad, bos, eos = SPECIAL
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=pad, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


if __name__ == "__main__":
    make_tiny_model(Path(sys.argv[1]))
