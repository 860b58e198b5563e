"""The verbs of `crem`, one module each with `add_arguments(parser)`, `run(args)` and EXAMPLES.

Slow imports are inside `run`, so that `crem VERB --help` is quick.
"""
