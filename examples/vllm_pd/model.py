"""A small Llama with random weights and a tokenizer of numbered words."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 1024
LAYERS, HEADS, HEAD_SIZE = 4, 8, 64
KV_BYTES_PER_TOKEN = 2 * LAYERS * HEADS * HEAD_SIZE * 4


def write_model(folder: Path, longest: int) -> None:
    """Write what `vllm serve FOLDER` needs, without any download."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", eos_token="w1"
    ).save_pretrained(folder)

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * HEAD_SIZE,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=longest,
        bos_token_id=None,
        eos_token_id=1,
        # Large weights, so that the next token depends on the whole prompt.
        initializer_range=0.1,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
