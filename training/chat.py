"""The one owner of the chat template, its special tokens and the loss mask."""

import hashlib
from collections.abc import Sequence

from training.vocabulary import ASSISTANT, EOS, PAD, USER, Tokenizer

# <|user|>question<|assistant|>answer<|endoftext|>, again for each further turn.
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}"
    + ASSISTANT
    + "{{ m['content'] }}"
    + EOS
    + "{% else %}"
    + USER
    + "{{ m['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)
TEMPLATE_HASH = hashlib.sha256((TEMPLATE + PAD).encode()).hexdigest()[:16]

Messages = Sequence[dict[str, str]]


def render_prompt(tokenizer: Tokenizer, messages: str | Messages) -> list[int]:
    """Ids after which the assistant speaks. A text is one user message; a dict has role and content."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return [*render_conversation(tokenizer, messages)[0], tokenizer.assistant_id]


def render_response(tokenizer: Tokenizer, response: str) -> list[int]:
    """Ids of an answer and the EOS that ends it."""
    return [*tokenizer.encode(response), tokenizer.eos_id]


def render_example(tokenizer: Tokenizer, prompt: str | Messages, response: str) -> tuple[list[int], list[int]]:
    """Ids of prompt and answer, and a mask with 1 on the answer's tokens and its EOS."""
    before, answer = render_prompt(tokenizer, prompt), render_response(tokenizer, response)
    return before + answer, [0] * len(before) + [1] * len(answer)


def render_conversation(tokenizer: Tokenizer, messages: Messages) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation, and a mask with 1 on every answer's tokens and its EOS."""
    ids: list[int] = []
    mask: list[int] = []
    for message in messages:
        if message["role"] == "assistant":
            answer = render_response(tokenizer, message["content"])
            ids += [tokenizer.assistant_id, *answer]
            mask += [0] + [1] * len(answer)
        else:
            said = [tokenizer.user_id, *tokenizer.encode(message["content"])]
            ids += said
            mask += [0] * len(said)
    return ids, mask
