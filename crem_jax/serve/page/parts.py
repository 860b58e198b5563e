"""The page's HTML components; scripts and style are in `crem_jax/assets/page`.

Gradio evaluates templates, with values inserted, as JavaScript. So no template here has a value;
the scripts set texts as text nodes.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from crem_jax.serve.inputs.pictures import data_uri

if TYPE_CHECKING:
    from crem_jax.library.entry import Entry
    from crem_jax.serve.service import Service

KINDS = ("compressed", "native")
CURSOR = " ▍"
"""Where an answer goes on."""

_TITLES = {"compressed": "Compressed", "native": "Native"}
_MEANING = {
    "compressed": "from the chorus tokens alone",
    "native": "sees all of the picture",
}
_ARROW = (
    '<svg viewBox="0 0 24 24" width="30" height="30" fill="none" stroke="currentColor" '
    'stroke-width="1.5"><path d="M4 16v3a1 1 0 0 0 1 1h14a1 1 0 0 0 1-1v-3M12 15V4m0 0L8 8m4-4 4 4"'
    "/></svg>"
)
_DROP = f"""
<div class="drop" tabindex="0" role="button" aria-label="a picture">
  <div class="hint">{_ARROW}<span>Drop a picture here, or click</span></div>
  <img alt="the picture"><button class="clear" aria-label="remove the picture">✕</button>
  <input type="file" accept="image/*" hidden>
</div>"""


def _asset(name: str) -> str:
    return files("crem_jax").joinpath("assets", "page", name).read_text(encoding="utf-8")


def _part(html: str, *scripts: str) -> dict[str, Any]:
    """Arguments of `gr.HTML` for a component with scripts."""
    script = "\n".join(map(_asset, scripts))
    return dict(html_template=html, js_on_load=script, apply_default_css=False)


CSS = _asset("style.css")
DROP = _part(_DROP, "drop.js")
HITS = _part('<div class="note" hidden></div><div class="hits"></div>', "make.js", "hits.js")
CHOSEN = _part('<div class="chosen"></div>', "make.js", "chosen.js")
ANSWER = _part('<div class="answer"></div>', "make.js", "answer.js")


def header(service: Service) -> str:
    """The HTML of the header line."""
    facts = [escape(service.name), f"{service.model.config.num_chorus} chorus tokens"]
    if service.library is not None:
        facts.append(f"{len(service.library):,} entries")
    return f'<div class="crem-head"><b>crem</b><span>{" · ".join(facts)}</span></div>'


def hit_card(entry: Entry | None = None, score: str = "") -> dict[str, str]:
    """The value of an entry's card."""
    if entry is None:
        return {"id": "", "score": "", "text": "", "picture": ""}
    picture = data_uri(entry.thumbnail) if entry.thumbnail else ""
    return {"id": entry.id, "score": score, "text": entry.text, "picture": picture}


def hit_cards(cards: list[dict[str, str]], error: str = "") -> dict[str, Any]:
    """The value of the gallery of hits."""
    return {"hits": cards, "error": error}


def answer_card(
    kind: str,
    text: str = "",
    memory_bytes: int = 0,
    first: float = 0.0,
    total: float = 0.0,
    tokens: int = 0,
    ended: str | None = None,
    error: str = "",
    hidden: bool = False,
) -> dict[str, Any]:
    """The value of an answer's card.

    Args:
      kind: one of KINDS. memory_bytes: size of the keys and values that the answer is read from.
      first, total: seconds to the first token, and so far. ended: finish reason, or None.
    """
    facts = []
    if tokens:
        facts = [
            {"amount": _bytes(memory_bytes), "of": "memory"},
            {"amount": f"{1000 * first:.0f} ms", "of": "to the first token"},
            {"amount": f"{1000 * total:.0f} ms", "of": f"for {tokens} tokens"},
        ]
        text = text if ended else f"{text}{CURSOR}"
    return {
        "kind": kind,
        "title": _TITLES[kind],
        "meaning": _MEANING[kind],
        "text": text,
        "facts": facts,
        "error": error,
        "hidden": hidden,
    }


def _bytes(count: int) -> str:
    for unit, size in (("MB", 1 << 20), ("KB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
