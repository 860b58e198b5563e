"""The server: one model, and a library, behind OpenAI's HTTP API and a web page.

`crem serve` starts it; `docs/serve.md` describes it. Needs the extra `serve`, the page `ui`.
"""
