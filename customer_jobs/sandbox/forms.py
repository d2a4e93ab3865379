"""Bracketed form fields into nested values; judges their form, never their meaning."""

import re
from typing import Any
from urllib.parse import parse_qsl

from customer_jobs.sandbox.refusals import Refusal

#: Stripe's largest bodies have some hundred fields; more is a mistake or an attack.
MAX_FIELDS = 1000
#: Deeper than anything Stripe documents for customers.
MAX_DEPTH = 6

NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")

Params = dict[str, Any]


def decode(text: bytes | str) -> Params:
    """The fields as nested dicts, lists and strings.

    Raises:
        Refusal: 400 for wrong percent encodings, unbalanced brackets, or one name used as a value and as a container.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except UnicodeError as error:
        raise Refusal(400, "Invalid request: the parameters are not valid percent-encoded UTF-8.") from error
    except ValueError as error:
        raise Refusal(400, f"Invalid request: more than {MAX_FIELDS} parameters.") from error
    root: Params = {}
    for name, value in pairs:
        _put(root, name, value)
    # Keys of metadata are names, even where they look like positions.
    return {name: value if name == "metadata" else _listed(value) for name, value in root.items()}


def _put(root: Params, name: str, value: str) -> None:
    match = NAME.fullmatch(name)
    if match is None:
        raise Refusal(400, f"Invalid parameter name: {name}", param=name)
    path = [match[1], *match[2][1:-1].split("][")] if match[2] else [match[1]]
    if len(path) > MAX_DEPTH:
        raise Refusal(400, f"Invalid parameter name: {name} is nested too deeply", param=name)
    node = root
    for step in path[:-1]:
        node = node.setdefault(step or str(len(node)), {})
        if not isinstance(node, dict):
            raise Refusal(400, "Invalid object", param=path[0])
    last = path[-1] or str(len(node))
    if isinstance(node.get(last), dict):
        raise Refusal(400, "Invalid object", param=path[0])
    node[last] = value


def _listed(value: Any) -> Any:
    """Containers whose names are 0, 1, 2 … become lists."""
    if not isinstance(value, dict):
        return value
    children = {name: _listed(child) for name, child in value.items()}
    if children and all(name.isdigit() for name in children):
        return [children[name] for name in sorted(children, key=int)]
    return children
