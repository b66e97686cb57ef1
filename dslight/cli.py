"""``dslight``: one verb per thing to do with a recipe. Only argument parsing; what a verb does is in ``dslight.run``
and ``dslight.report``.

Imports wait until a verb needs them, so that ``dslight --help`` answers at once.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dslight.upstream import compiler, peft, scipy, torchmetrics
from dslight.upstream.later import wait_for
from dslight.verbs import parse_verb

RECIPE = "a YAML file, e.g. recipes/quickstart/deepstack_l.yaml"
OVERRIDES = "key=value pairs that win over the file, e.g. trainer.max_steps=100 model.stacking.init_args.start=2"
CHECKPOINT = "a checkpoint, weights in a layout of the field, or `latest` (default): the newest checkpoint of the run"


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser, and that of each verb."""
    made: dict[str, argparse.ArgumentParser] = {}
    parser = argparse.ArgumentParser(
        prog="dslight",
        description="Compose, train and compare DeepStack-style multimodal language models.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str) -> argparse.ArgumentParser:
        about = summary[0].upper() + summary[1:] + "."
        made[name] = verbs.add_parser(name, help=summary, description=about, allow_abbrev=False)
        return made[name]

    def recipe(to: argparse.ArgumentParser, also: str = ", or a run's folder") -> None:
        to.add_argument("recipe", type=Path, help=RECIPE + also)
        to.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)

    fit = verb("fit", "train what a recipe describes; the same command continues an interrupted run")
    recipe(fit)
    begin = fit.add_mutually_exclusive_group()
    begin.add_argument("--fresh", action="store_true", help="delete what the run's folder holds and start anew")
    begin.add_argument("--extend", action="store_true", help="train the run on, to a larger trainer.max_steps")
    begin.add_argument(
        "--branch", metavar="RUN[@STEP]", help="begin from a checkpoint of another run, with this recipe's settings"
    )

    validate = verb("validate", "score a trained model on the recipe's validation sources")
    recipe(validate)
    validate.add_argument("--ckpt", default="latest", help=CHECKPOINT)

    predict = verb("predict", "answer a question about images or a video")
    recipe(predict, ", a run's folder, or an export")
    predict.add_argument(
        "--image", type=Path, action="append", default=[], help="a picture; may be given several times"
    )
    predict.add_argument(
        "--video", type=Path, action="append", default=[], help="a video, or a folder of its frames; as --image"
    )
    predict.add_argument(
        "--frames", type=int, help="taken of a video, evenly (default: 6; with temporal patches, as data.video says)"
    )
    predict.add_argument(
        "--tile",
        metavar="ROWSxCOLUMNS",
        help="of the frames in one square (default: rows of 3); none: each is an image",
    )
    predict.add_argument("--question", required=True)
    predict.add_argument("--ckpt", default="latest", help=CHECKPOINT)
    predict.add_argument("--max-new-tokens", type=int, default=64)

    export = verb("export", "write a trained model as a Hugging Face folder")
    export.add_argument("source", type=Path, metavar="RUN_OR_CKPT", help="a run's folder, or one of its checkpoints")
    export.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    export.add_argument("--recipe", type=Path, help="of a checkpoint that does not lie in its run's folder")
    export.add_argument(
        "--release", action="store_true", help="as the released family whose shape it has, for transformers to open"
    )
    export.add_argument("--dtype", help="of the written weights, e.g. bfloat16 (default: the model's)")
    export.add_argument("--shard-size", default="5GB", help="of a weights file at most (default: 5GB)")

    upload = verb("push", "upload an export, or a run as one, to a repository of the Hub; what goes is listed first")
    upload.add_argument("source", type=Path, metavar="SOURCE", help="a run's folder, or what dslight export wrote")
    upload.add_argument("repository", metavar="OWNER/NAME", help="on the Hub; made, private, where there is none")
    upload.add_argument("--public", action="store_true", help="make it public, or upload to one that is")
    upload.add_argument("--list", action="store_true", help="list what would be uploaded and stop")
    upload.add_argument("--message", help="of the commit")

    released = verb("import", "begin from a released multimodal model: write it as a recipe and weights")
    released.add_argument("source", metavar="FOLDER_OR_NAME", help="a checkpoint of transformers, here or on the Hub")
    released.add_argument("--out", type=Path, required=True, help="the folder to write")

    judge = verb("judge", "let a language model judge a run's answers to MM-Vet, CharXiv, LLaVA-Bench, ...")
    judge.add_argument("run", type=Path, help="a run's folder, after dslight validate")
    judge.add_argument("--server", required=True, help="OpenAI-compatible, up to /v1: http://127.0.0.1:8000/v1")
    judge.add_argument("--model", required=True, help="the judge's name on the server; it stands in the score's name")
    judge.add_argument("--source", action="append", default=[], help="of data.val; may be repeated (default: all)")
    judge.add_argument(
        "--prompt",
        type=Path,
        help="a text with {question}, {reference} and {prediction} (and {context}), e.g. a paper's",
    )
    judge.add_argument("--key-variable", default="OPENAI_API_KEY", help="of the environment (default: OPENAI_API_KEY)")
    judge.add_argument("--concurrency", type=int, default=8, help="requests at a time (default: 8)")

    plan = verb("plan", "check a recipe and show its cost, without weights or data; exit code 1 if it is wrong")
    recipe(plan)
    plan.add_argument("--world-size", type=int, help="processes that share the parameters (default: the recipe's)")
    plan.add_argument("--text-tokens", type=int, default=64, help="text positions assumed for FLOPs and memory")
    plan.add_argument(
        "--image",
        metavar="HxW",
        help="of the image that the numbers are of, where each has its size (default: largest)",
    )
    plan.add_argument("--sizes", type=Path, metavar="SHARDS", help="also how long the images of a folder of shards are")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.add_argument("--no-cost", action="store_true", help="leave out FLOPs and memory: parts, tokens and sites only")

    sweep = verb("sweep", "run an ablation: every variant times every point of the grid; finished runs are skipped")
    recipe(sweep, "")
    sweep.add_argument("--jobs", type=int, default=1, help="runs at a time")
    sweep.add_argument("--index", type=int, help="only this run (for job arrays); see --list")
    sweep.add_argument("--list", action="store_true", help="list the runs and stop")
    sweep.add_argument("--fresh", action="store_true", help="start finished and interrupted runs anew")

    models = verb("models", "try every kind of decoder that transformers knows, tiny")
    models.add_argument(
        "kinds", nargs="*", metavar="TYPE", help="only these, e.g. llama mixtral; the page stays as it is"
    )
    models.add_argument(
        "--results", type=Path, default=Path("runs/models"), help="a file per type (default: runs/models)"
    )
    models.add_argument("--again", action="store_true", help="try also what was tried before with these versions")
    models.add_argument("--page", type=Path, help="where the table goes, e.g. docs/models.md")

    conformance = verb("conformance", "ask an implementation of DeepStack what has to come out, case by case")
    conformance.add_argument(
        "--of",
        default="dslight",
        metavar="WHAT",
        help="dslight (default), transformers, an OpenAI-compatible server up to /v1, or module:callable, an adapter",
    )
    conformance.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a case or a family; may be repeated (default: all)"
    )
    conformance.add_argument("--model", help="its name on the server (default: the one named like the family)")
    conformance.add_argument(
        "--out", type=Path, help="write the table there; of docs/conformance.md, the section of this implementation"
    )

    verb("data", "convert data in any form to shards, and look at them: convert, info, verify, inspect")

    report = verb("report", "one table and one page out of an ablation or of run folders")
    report.add_argument("paths", nargs="+", help="an ablation file (with its overrides), or folders of runs")
    report.add_argument("--out", type=Path, help="where report.html, its pages of questions and the tables go")
    report.add_argument("--baseline", help="the arm that others are compared with")
    report.add_argument(
        "--power", type=float, metavar="POINTS", help="say how many questions and seeds such a difference needs"
    )

    chat = verb("chat", "ask a model about pictures, in a browser or this terminal, with its stacks off and on")
    chat.add_argument(
        "source",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a run's folder, an export, or a checkpoint; two: side by side",
    )
    chat.add_argument("--text", action="store_true", help="in this terminal")
    chat.add_argument("--host", default="127.0.0.1", help="the page's address (default: this machine alone)")
    chat.add_argument("--port", type=int, default=7860, help="0: a free one (default: 7860)")
    chat.add_argument("--recipe", type=Path, help="of a checkpoint that brings none")
    chat.add_argument("--max-new-tokens", type=int, default=64)

    watch = verb("watch", "show the curves of runs in a browser while they are trained, and how long they will take")
    watch.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help="runs, folders of runs, or ablation files")
    watch.add_argument("--host", default="127.0.0.1", help="the page's address (default: this machine alone)")
    watch.add_argument("--port", type=int, default=7861, help="0: a free one (default: 7861)")

    serve = verb("serve", "answer OpenAI's protocol with an exported model, by transformers' server")
    serve.add_argument("folder", type=Path, metavar="FOLDER", help="what dslight export wrote")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine alone)")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--device", default="auto", help="e.g. cpu, cuda:0 (default: a GPU where there is one)")
    serve.add_argument("--dtype", default="auto", help="of the weights (default: as they were written)")

    migrate = verb("migrate", "rewrite old recipes in today's words; what they say stays, comments too")
    migrate.add_argument("files", nargs="+", type=Path, metavar="RECIPE", help="YAML files of recipes or ablations")
    return parser, made


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for a wrong recipe or a failed run, 130 after Ctrl-C."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["data"]:
        return _data(given[1:])
    parser, verbs = _parser()
    args = parse_verb(parser, verbs, given)
    _say_untested()
    wait_for(torchmetrics.KINDS | scipy.KINDS | (compiler.KINDS | peft.KINDS if args.verb == "plan" else {}))
    frozen = gc.get_freeze_count()
    try:
        return _VERBS[args.verb](args)
    except KeyboardInterrupt:
        print(f"{_below_bars()}interrupted; the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dslight plan ... | head`
        return 0
    except Exception as error:
        from dslight.errors import UnfinishedError
        from dslight.files.system import said_of

        if (said := said_of(error)) is None:
            raise
        print(f"{_below_bars()}dslight: {said}", file=sys.stderr)
        atexit.register(gc.freeze)  # what was imported goes with the process; to look through it takes seconds
        return 130 if isinstance(error, UnfinishedError) else 1
    finally:
        if not frozen:  # by the caller
            gc.unfreeze()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile: of what imports make, and models without memory, there is none worth a second."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor later, of what is there now
        if collects:
            gc.enable()


@cache
def _say_untested() -> None:
    """Once per process, and by the first of several: which libraries are not those that the tests ran with."""
    from dslight.versions import untested

    if os.environ.get("RANK", "0") == "0" and (found := untested()):
        print(f"dslight: not tested with {', '.join(found)}", file=sys.stderr)


def _below_bars() -> str:
    """A line break where a progress bar is on the last line, which a message would continue."""
    tqdm = sys.modules.get("tqdm")
    return "\n" if tqdm and any(not bar.disable for bar in getattr(tqdm.tqdm, "_instances", ())) else ""


def _data(arguments: list[str]) -> int:
    """Verbs with options of their own, in the room of what they need."""
    from data_prep.command import main as data

    try:
        data(arguments)
    except KeyboardInterrupt:
        print(f"{_below_bars()}interrupted; the same command continues", file=sys.stderr)
        return 130
    except SystemExit as left:
        if isinstance(left.code, str):
            print(f"{_below_bars()}dslight data: {left.code}", file=sys.stderr)
            return 1
        return int(left.code or 0)
    return 0


def _is_run(path: Path) -> bool:
    return os.path.isfile(path / "recipe.yaml")  # pathlib raises for a name that is too long


def _recipe(args: argparse.Namespace) -> Mapping[str, Any]:
    """The composed recipe, of a file or a run's folder, with its names looked at: before torch is imported, which
    takes seconds.
    """
    from dslight.recipe.compose import compose
    from dslight.recipe.spelling import check_spelling

    if _is_run(args.recipe):
        recipe = compose(args.recipe / "recipe.yaml", [f"run_dir={json.dumps(str(args.recipe))}", *args.overrides])
    else:
        recipe = compose(args.recipe, args.overrides)
    check_spelling(recipe)
    return recipe


def _fit(args: argparse.Namespace) -> int:
    recipe = _recipe(args)
    with _uncollected():
        from dslight.run.fit import fit

    fit(recipe, resume=not args.fresh, extend=args.extend, branch=args.branch)
    return 0


def _validate(args: argparse.Namespace) -> int:
    recipe = _recipe(args)
    from dslight.run.evaluate import validate

    validate(recipe, ckpt=args.ckpt)
    return 0


def _predict(args: argparse.Namespace) -> int:
    from dslight.texts import printable

    whole = os.path.isdir(args.recipe) and args.ckpt == "latest" and not args.overrides
    if whole and not _is_run(args.recipe):  # an export, or a sharded checkpoint
        from dslight.run.python import recipe_of

        recipe, ckpt = recipe_of(args.recipe)
        recipe["run_dir"], ckpt = str(args.recipe), str(ckpt)
    else:
        recipe, ckpt = _recipe(args), args.ckpt
    from dslight.run.evaluate import predict

    asked = (args.question, args.image, ckpt, args.max_new_tokens)
    print(printable(predict(recipe, *asked, videos=args.video, frames=args.frames, tile=args.tile)))
    return 0


def _export(args: argparse.Namespace) -> int:
    asked = (args.source, args.out, args.recipe, args.dtype, args.shard_size)
    if args.release:
        from dslight.run.release_back import export_release

        print(f"{args.out}: {export_release(*asked)} opens it")
        return 0
    from dslight.run.export import export

    why_not = export(*asked)
    opens = "LlavaForConditionalGeneration and dslight open it"
    if why_not is not None:
        opens = f"opens in transformers wherever dslight is imported; {why_not}"
    print(f"{args.out}: {opens}")
    return 0


def _push(args: argparse.Namespace) -> int:
    from dslight.run.push import push

    push(args.source, args.repository, args.public, args.list, args.message, key="OWNER/NAME")
    return 0


def _import(args: argparse.Namespace) -> int:
    from dslight.run.release import import_release
    from dslight.texts import printable

    for line in import_release(args.source, args.out):
        print(printable(line))
    print(f"{args.out}: written; dslight plan {args.out}/dslight.yaml shows it")
    return 0


def _plan(args: argparse.Namespace) -> int:
    recipe = _recipe(args)
    with _uncollected():
        from dslight.run.plan import plan
        from dslight.run.sizes import height_and_width, sizes

        image = None if args.image is None else height_and_width(args.image)
        made = plan(recipe, args.world_size, args.text_tokens, cost=not args.no_cost, image=image)
    found = None if args.sizes is None else sizes(recipe, args.sizes)
    print(made.to_json(found) if args.json else made.to_text())
    atexit.register(gc.freeze)
    if found is not None and not args.json:
        print(f"\n{found.to_text()}")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's Ctrl-C: the runs save, and it may go on
    from dslight.recipe.ablation import expand
    from dslight.run.sweep import check_all, show, sweep

    ablation = expand(args.recipe, args.overrides)
    if args.list:
        print(show(ablation))
        return 0
    check_all(ablation.runs if args.index is None else ablation.runs[max(args.index, 0) :][:1])
    return sweep(ablation, jobs=args.jobs, index=args.index, fresh=args.fresh)


def _judge(args: argparse.Namespace) -> int:
    from dslight.run.judge import judge, prompt_of
    from dslight.run.judge_server import JudgeServer

    cache = args.run / "judged" / "replies.jsonl"
    server = JudgeServer(args.server, args.model, cache, args.key_variable, args.concurrency)
    prompt = None if args.prompt is None else prompt_of(args.prompt)
    for source, facts in judge(args.run, server, args.source, prompt).items():
        for key, value in facts["scores"].items():
            print(f"{key}: {value:.4f}")
        cost = f"{facts['asked']} requests, {facts['prompt_tokens']:,} + {facts['completion_tokens']:,} tokens"
        unread = f", {facts['unread']} verdicts could not be read" if facts["unread"] else ""
        print(f"{source}: {facts['questions']} questions judged by {facts['judge']} ({cost}){unread}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from dslight.report import report

    paths = [Path(text) for text in args.paths if "=" not in text or Path(text).exists()]
    overrides = [text for text in args.paths if Path(text) not in paths]
    if overrides and len(paths) == 1 and paths[0].is_file():  # an ablation that was swept with the same overrides
        from dslight.recipe.ablation import expand

        made = report(expand(paths[0], overrides), out=args.out, baseline=args.baseline)
    else:
        made = report([Path(text) for text in args.paths], out=args.out, baseline=args.baseline)
    if args.power is not None:
        from dslight.report.power import lines

        print("\n".join(lines(made.benchmarks, args.power)))
    return 0


def _chat(args: argparse.Namespace) -> int:
    from dslight.recipe.errors import RecipeError
    from dslight.run.chat import chat
    from dslight.run.chat_page import chat_page

    if not args.text:
        chat_page(args.source, args.recipe, args.max_new_tokens, args.host, args.port)
        return 0
    if len(args.source) > 1:
        raise RecipeError("RUN: the terminal talks with one; two stand side by side on the page, without --text")
    chat(args.source[0], args.recipe, args.max_new_tokens)
    return 0


def _watch(args: argparse.Namespace) -> int:
    from dslight.run.watch import watch

    watch(args.runs, args.host, args.port)
    return 0


def _serve(args: argparse.Namespace) -> int:
    from dslight.run.serve import serve

    serve(args.folder, args.host, args.port, args.device, args.dtype)
    return 0


def _migrate(args: argparse.Namespace) -> int:
    from dslight.recipe.migrate import migrate_files

    for path, changed in migrate_files(args.files):
        print(f"{path}: {'rewritten' if changed else 'as it was'}")
    return 0


def _models(args: argparse.Namespace) -> int:
    from dslight.matrix.run import models

    return models(args.results, args.kinds, args.again, args.page)


def _conformance(args: argparse.Namespace) -> int:
    from dslight.conformance.command import conformance

    return conformance(args.of, args.only, args.out, args.model)


_VERBS = {
    "conformance": _conformance,
    "models": _models,
    "chat": _chat,
    "serve": _serve,
    "watch": _watch,
    "migrate": _migrate,
    "fit": _fit,
    "validate": _validate,
    "predict": _predict,
    "export": _export,
    "push": _push,
    "import": _import,
    "judge": _judge,
    "plan": _plan,
    "sweep": _sweep,
    "report": _report,
}
