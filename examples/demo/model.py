"""A language model of 0.4 million parameters and its tokenizer, both of Qwen2's kind, and how it replies."""

from __future__ import annotations

from collections.abc import Sequence

import sums
import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.cache_utils import DynamicCache

CONTEXT_LENGTH = 4096
MAX_REPLY = 40
"""Tokens after which a reply is cut off; the longest good one takes 35."""

BOS, EOS, PAD, USER, ASSISTANT = SPECIAL = (
    "<|bos|>",
    "<|endoftext|>",
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
)
PIECES = ("<think>", "</think>", "<answer>", "</answer>", r"\boxed{")
"""Tokens of their own, but not special ones: a decoder that skips those must leave these in the text."""

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>' + message['content'] }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def build_tokenizer() -> Qwen2Tokenizer:
    """Make a tokenizer of bytes and of the words of the questions.

    Every question has the same number of tokens then, so that batches of prompts need no padding.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={entry: index for index, entry in enumerate([*SPECIAL, *alphabet])},
        merges=[],
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_LENGTH,
    )
    words = (*PIECES, *sums.OPENINGS, *(f" {request} " for request in sums.REQUESTS))
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Make an untrained model."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        # Wider than the usual 0.02, which suits larger models: this one learns twice as fast.
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def encode_questions(tokenizer: Qwen2Tokenizer, problems: Sequence[sums.Problem]) -> torch.Tensor:
    """Prompts as token ids, (problems, tokens)."""
    slot = "\0"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": slot}], tokenize=False, add_generation_prompt=True
    )
    return torch.tensor(
        tokenizer([chat.replace(slot, problem.question) for problem in problems])["input_ids"]
    )


def encode_replies(tokenizer: Qwen2Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Replies with their end as token ids, padded on the right."""
    return tokenizer(
        [text + EOS for text in texts], padding=True, padding_side="right", return_tensors="pt"
    )["input_ids"]


@torch.inference_mode()
def sample(
    model: Qwen2ForCausalLM, prompts: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Let the model reply to prompts of one length at temperature 1: token ids, padded on the right."""
    eos, pad = model.config.eos_token_id, model.config.pad_token_id
    cache = DynamicCache(config=model.config)
    last, done, said = prompts, torch.zeros(len(prompts), dtype=torch.bool), []
    while len(said) < MAX_REPLY and not done.all():
        hidden = model.model(last, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        drawn = torch.multinomial(model.lm_head(hidden).softmax(-1), 1, generator=generator)
        last = drawn.masked_fill(done[:, None], pad)
        done |= last[:, 0] == eos
        said.append(last)
    return torch.cat(said, dim=1)


def log_likelihoods(
    model: Qwen2ForCausalLM, prompts: torch.Tensor, replies: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-likelihood of every token of the replies, end tokens included, and which row it is of."""
    rows, places = (replies != model.config.pad_token_id).nonzero(as_tuple=True)
    # Padding is on the right, so nothing that counts can see it: no mask is needed.
    ids = torch.cat([prompts, replies[:, :-1]], dim=1)
    hidden = model.model(ids, use_cache=False).last_hidden_state[
        rows, prompts.shape[1] - 1 + places
    ]
    scores = model.lm_head(hidden).log_softmax(-1)
    return scores.gather(1, replies[rows, places][:, None])[:, 0], rows
