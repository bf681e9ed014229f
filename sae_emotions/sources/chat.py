"""Conversations, rendered as the model's own chat template writes them."""

from typing import Any

from sae_emotions.errors import UserError

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "system": "system",
}


def render_chat(messages: list[Any], tokenizer: Any, where: str, reply: bool = False) -> str:
    """The text of a conversation: a list of {role, content} or {from, value}; with `reply`, up to where an answer begins.

    An opening token that the tokenizer will add by itself is left out, so that it does not come twice.

    Raises `UserError` where the list is no conversation, or the model has no chat template or refuses this one.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{where} holds conversations, but this model has no chat template; choose a chat model or a text column."
        )
    try:
        known = [_message(m, where) for m in messages]
        text = (
            str(tokenizer.apply_chat_template(known, tokenize=False, add_generation_prompt=reply)) if messages else ""
        )
    except TemplateError as error:
        raise UserError(f"{where} holds a conversation that the model's chat template refuses: {error}.") from None
    opening = tokenizer.bos_token
    if opening and text.startswith(opening) and _adds_opening(tokenizer):
        text = text.removeprefix(opening)
    return text


def _adds_opening(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _message(message: Any, where: str) -> dict[str, str]:
    if isinstance(message, dict):
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if isinstance(role, str) and isinstance(content, str):
            return {"role": _ROLES.get(role.lower(), role), "content": content}
    raise UserError(
        f"{where} holds a list that is no conversation: each message needs role and content, or from and value."
    )
