"""Have a teacher write question-answer pairs about retrieval records, as JSONL to train on.

The teacher is a model that crem runs (--teacher MODEL), or an OpenAI-compatible endpoint
(--endpoint URL --model NAME). Every record of SOURCE goes to OUT with the pairs as its turns, so
that one compressed context serves both losses. Pairs that are empty, too long, repeated, refusals
or leak the prompt are dropped and counted. Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse

from crem_jax.errors import CremError

EXAMPLES = """\
  crem synthesize pairs.jsonl pairs_qa.jsonl --teacher models/qwen2-vl-7b
  crem synthesize mmeb:MMEB-train,subset=MSCOCO_i2t coco_qa.jsonl --teacher models/7b --pairs 4
  crem synthesize pairs.jsonl pairs_qa.jsonl --endpoint https://example.org/v1 --model gpt-x
  crem synthesize photos photos_qa.jsonl --teacher runs/emoji --questions questions.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import non_negative_float, non_negative_int, positive_int

    parser.add_argument("source", metavar="SOURCE", help="PATH, or KIND:PATH,KEY=VALUE,…")
    parser.add_argument("out", metavar="OUT.jsonl", help="the file to write, or to go on with")
    teacher = parser.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--teacher", metavar="MODEL", help="a run or Hugging Face directory")
    teacher.add_argument("--endpoint", metavar="URL", help="of an API with /chat/completions")
    parser.add_argument("--model", metavar="NAME", help="the model's name at the endpoint")
    parser.add_argument(
        "--api_key_env",
        metavar="VARIABLE",
        default="",
        help="the environment variable that holds the endpoint's API key (default: no key)",
    )
    parser.add_argument("--pairs", type=positive_int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--questions", metavar="FILE", help="ask these, one a line, in place of the teacher's own"
    )
    parser.add_argument("--batch", type=positive_int, default=16, metavar="N", help="default: 16")
    parser.add_argument(
        "--parallel", type=positive_int, default=8, metavar="N", help="requests at once"
    )
    parser.add_argument("--timeout", type=positive_int, default=120, metavar="SECONDS")
    parser.add_argument(
        "--retries", type=non_negative_int, default=6, metavar="N", help="default: 6"
    )
    parser.add_argument("--max_new_tokens", type=positive_int, default=384, metavar="N")
    parser.add_argument(
        "--temperature",
        type=non_negative_float,
        default=0.0,
        metavar="T",
        help="0 is greedy (default)",
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, metavar="S")


def run(args: argparse.Namespace) -> int:
    from crem_jax.commands.output import counting, print_json
    from crem_jax.data.sources.command_line import parse_source
    from crem_jax.data.sources.registry import make_source
    from crem_jax.data.tools.synthesize import Task, synthesize
    from crem_jax.files import read_text

    if bool(args.endpoint) != bool(args.model):
        raise CremError("--endpoint and --model NAME belong together")
    if args.api_key_env and not args.endpoint:
        raise CremError(f"--api_key_env {args.api_key_env} needs --endpoint")
    questions: tuple[str, ...] = ()
    if args.questions:
        lines = read_text(args.questions).splitlines()
        questions = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not questions:
            raise CremError(f"{args.questions} has no questions; expected one a line")
    kind, arguments = parse_source(args.source)
    source = make_source(kind, arguments, args.source)
    teacher = _teacher(args)
    with counting(len(source), "synthesizing") as progress:
        task = Task(args.pairs, questions)
        report = synthesize(source, args.out, teacher, task, args.batch, progress)
    if args.json:
        values = {k: v for k, v in vars(report).items() if k != "last_error"}
        print_json({"data": args.out, **values, "dropped": dict(report.dropped)})
    else:
        print(f"{args.out}: {report.written} records with {report.pairs} question-answer pairs")
        told = (
            ("done before", report.before),
            ("left without a pair, see the .rejected.jsonl beside it", report.rejected),
            ("that the teacher failed on: run the same command again", report.failed),
            ("that cannot be read", report.unreadable),
            ("with the id of another", report.repeated),
        )
        for what, count in told:
            if count:
                print(f"{count} records {what}")
        for reason, count in report.dropped.most_common():
            print(f"{count} pairs dropped: {reason}")
        if report.failed or report.unreadable:
            print(f"last error: {report.last_error}")
    return 1 if report.failed else 0


def _teacher(args: argparse.Namespace):
    from crem_jax.data.tools.teachers import EndpointTeacher, ModelTeacher, key_from

    sampling = dict(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed
    )
    if args.endpoint:
        return EndpointTeacher(
            args.endpoint,
            args.model,
            key_from(args.api_key_env),
            parallel=args.parallel,
            timeout=args.timeout,
            retries=args.retries,
            **sampling,
        )
    from crem_jax.inference.model import load

    return ModelTeacher(load(args.teacher), **sampling)
