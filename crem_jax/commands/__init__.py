"""The verbs of `crem`, one module each: `add_arguments(parser)`, `run(args)` and EXAMPLES.

What is slow to import is imported by `run`, so that `crem VERB --help` is quick.
"""
