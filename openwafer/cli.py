"""The `openwafer` command. Each subcommand's code is imported when it is called, so that help and mistakes are quick.

Strings become objects here and nowhere else; what a command does is in the package that it names.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from openwafer import __version__
from openwafer.base.errors import OpenwaferError

_MAIN_EPILOG = """\
a first run:
  openwafer demo                                     the whole thing on real text, in under five minutes

your own text, from nothing to a trained model:
  openwafer data prepare books/ --out shards         text, JSON lines or parquet to packed tokens
  openwafer fit config.yaml --dry-run                what it will take: memory, disk, seconds a step
  openwafer fit config.yaml                          train; Ctrl-C stops after the step in flight
  openwafer resume runs/books                        go on, after Ctrl-C, kill -9 or a power cut
  openwafer generate runs/books --prompt "Once"      text from what it has learned
  openwafer view runs/books                          loss and throughput curves as a PNG
  openwafer convert runs/books books-hf              a Hugging Face folder, or from one

CSL programs, compiled with cslc:
  openwafer wafer info out                           memory, tasks and routes; also run, trace and lint

a mistake is reported in one line with exit code 2; OPENWAFER_TRACEBACK=1 shows where it came from.
"""

_FIT_EPILOG = """\
a whole configuration:
  run: runs/books                  # everything the run writes goes here
  memory: 3GiB                     # the whole process stays below it; the rest of the state is on disk
  model:
    preset: cerebras-gpt-590m      # or vocab_size, hidden_size, num_layers, num_heads, max_positions
  data:
    path: shards                   # what `openwafer data prepare` wrote
    sequence_length: 1024
  optimizer: {name: adamw, lr: 6e-4, weight_decay: 0.1}
  schedule: {warmup_steps: 100, decay: cosine, end_ratio: 0.1}
  train: {steps: 2000, batch_tokens: 8192, micro_batches: 2, clip_norm: 1.0, precision: bf16}

examples:
  openwafer fit config.yaml --dry-run
  openwafer fit config.yaml run=runs/hot optimizer.lr=1e-3 train.steps=500

an unknown key is an error that names the nearest known one.
ModelZoo 2.x trainer files are taken as they are (docs/modelzoo.md): openwafer fit params.yaml --dry-run
"""

_RESUME_EPILOG = """\
examples:
  openwafer resume runs/books
  openwafer resume runs/books train.steps=4000       more steps than planned
  openwafer resume runs/books memory=6GiB            another memory budget; not a bit of the result changes
"""

_GENERATE_EPILOG = """\
examples:
  openwafer generate runs/books --prompt "Once upon a time"
  openwafer generate runs/books --prompt "def main(" --temperature 0 --max-new-tokens 200
"""

_CONVERT_EPILOG = """\
what SOURCE is, is found out: a run, a Hugging Face folder (gpt2, btlm, jais, llama, mistral, mixtral; safetensors,
never a pickle), a Cerebras checkpoint (.mdl), or a folder of ours. OUT appears whole or not at all. One parameter is
in memory at a time.

examples:
  openwafer convert runs/books books-hf --licence apache-2.0
  openwafer convert Cerebras-GPT-111M checkpoint --to openwafer
  openwafer convert checkpoint half --dtype bf16
  openwafer convert model_dir/checkpoint_9037.mdl checkpoint --to openwafer
  openwafer convert runs/books books.gguf --to gguf --dtype fp16
"""

_VIEW_EPILOG = """\
example:
  openwafer view runs/books            writes runs/books/curves.png; works while the run goes on
"""

_DEMO_EPILOG = """\
Trains a 111M Cerebras-GPT shape on the source of the Python standard library under a memory budget well below
its training state, kills it with SIGKILL in mid-run, resumes it, and lets it write. Nothing is downloaded.

examples:
  openwafer demo                       under five minutes on two cores
  openwafer demo --quick               a small model, under a minute
"""

_DATA_EPILOG = """\
example:
  openwafer data prepare books/ more.jsonl --out shards --tokenizer tokenizer.json
  openwafer data prepare books/ --out h5 --form packed --sequence-length 2048
  openwafer data prepare chats.jsonl --out sft --form packed --sequence-length 2048 --template chatml --tokenizer t.json
"""


_CARD_FACTS = {
    "name": "the model's name (default: that of OUT)",
    "licence": "such as apache-2.0",
    "data": "what it was trained on",
    "training": "how it was trained",
    "intended-use": "what it is for",
    "limits": "what it is not for, and where it fails",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 2 the user's mistake, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        return _dispatch(arguments)
    except OpenwaferError as error:
        return _report(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["wafer"]:
        from openwafer.cli_wafer import main as wafer

        return wafer(arguments[1:])
    parser = _parser(with_data_options=arguments[:2] == ["data", "prepare"])
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    return options.handler(options)


def _report(error: OpenwaferError) -> int:
    if os.environ.get("OPENWAFER_TRACEBACK") == "1":
        traceback.print_exception(error)
        return 2
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    print(f"openwafer: {error}{notes}", file=sys.stderr)
    return 2


def _parser(with_data_options: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="openwafer",
        description="Train a model larger than memory in plain PyTorch; run CSL programs without a wafer.",
        epilog=_MAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"openwafer {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")

    fit = _command(commands, "fit", "train the run that a YAML file describes", _FIT_EPILOG)
    fit.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the run's configuration")
    fit.add_argument("overrides", nargs="*", metavar="key=value", help="laid over it, such as train.steps=100")
    fit.add_argument("--dry-run", action="store_true", help="only say what the run will take, and leave nothing behind")
    fit.set_defaults(handler=_fit)

    resume = _command(commands, "resume", "go on with a run from its last commit", _RESUME_EPILOG)
    resume.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="what may change, such as train.steps=4000")
    resume.set_defaults(handler=_resume)

    generate = _command(commands, "generate", "text from the model of a run", _GENERATE_EPILOG)
    generate.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="what the text begins with")
    generate.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="how much (default %(default)s)")
    generate.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token (default %(default)s)"
    )
    generate.add_argument(
        "--top-k", type=int, default=50, metavar="K", help="among the K likeliest; 0 for all (default %(default)s)"
    )
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same text (default %(default)s)")
    generate.add_argument("--memory", metavar="SIZE", help="budget of the process (default: the run's)")
    generate.set_defaults(handler=_generate)

    view = _command(commands, "view", "loss and throughput curves of a run as a PNG", _VIEW_EPILOG)
    view.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    view.add_argument("--out", type=Path, metavar="PNG", help="where to (default RUN/curves.png)")
    view.set_defaults(handler=_view)

    _add_convert(commands)

    commands.add_parser("wafer", help="look at, run and trace compiled CSL programs", add_help=False)

    demo = _command(commands, "demo", "the main job on real text, killed and resumed, in minutes", _DEMO_EPILOG)
    demo.add_argument("--quick", action="store_true", help="a small model, under a minute")
    demo.add_argument(
        "--dir", type=Path, default=Path("runs/demo"), metavar="DIR", help="where to work (default %(default)s)"
    )
    demo.add_argument("--memory", metavar="SIZE", help="memory budget of the training process")
    demo.set_defaults(handler=_demo)

    data = _command(commands, "data", "turn text into token shards", _DATA_EPILOG)
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    prepare = _command(actions, "prepare", "text, JSON lines or parquet to packed token shards", _DATA_EPILOG)
    prepare.set_defaults(handler=_data_prepare)
    if with_data_options:
        from openwafer.data.cli import add_arguments

        add_arguments(prepare)
    return parser


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    convert = _command(commands, "convert", "checkpoints of other programs, in and out", _CONVERT_EPILOG)
    convert.add_argument("source", type=Path, metavar="SOURCE", help="a run or a checkpoint")
    convert.add_argument("out", type=Path, metavar="OUT", help="what to write; must not exist yet")
    convert.add_argument(
        "--to", default="hf", metavar="FORMAT", help="hf, openwafer, mdl or gguf (default %(default)s)"
    )
    convert.add_argument("--kind", metavar="TYPE", help="Hugging Face's model_type (default: the one that fits)")
    convert.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the parameters (default: as they are)")
    for name, what in _CARD_FACTS.items():
        convert.add_argument(f"--{name}", metavar="TEXT", help=f"for the model card: {what}")
    convert.set_defaults(handler=_convert)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _fit(options: argparse.Namespace) -> int:
    from openwafer.train.read_config import read_with_notes

    config, notes = read_with_notes(options.config, options.overrides)
    from openwafer.train.loop import fit

    return fit(config, dry_run=options.dry_run, notes=notes).exit_code


def _resume(options: argparse.Namespace) -> int:
    from openwafer.train.loop import resume

    return resume(options.run, options.overrides).exit_code


def _generate(options: argparse.Namespace) -> int:
    from openwafer.train.generate import Sampling, generate_text

    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_k or None, options.seed)
    generate_text(
        options.run,
        options.prompt,
        sampling,
        memory=options.memory,
        on_text=lambda text: print(text, end="", flush=True),
    )
    print()
    return 0


def _convert(options: argparse.Namespace) -> int:
    from openwafer.models.interchange import CardFacts
    from openwafer.train.convert import Options, convert
    from openwafer.train.progress import show_share

    facts = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in _CARD_FACTS}
    card = CardFacts(**(facts | {"name": facts["name"] or options.out.name}))
    with show_share("converting") as on_progress:
        read = convert(options.source, options.out, Options(options.to, options.kind, options.dtype, card), on_progress)
    if options.kind == "gpt2" and read.config.mup is not None:
        print("muP's factors are folded into the weights, which is one way; --kind btlm keeps them", file=sys.stderr)
    print(options.out)
    return 0


def _view(options: argparse.Namespace) -> int:
    from openwafer.view import run_view

    print(run_view(options.run, options.out))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from openwafer.train.demo import run_demo

    return run_demo(options.dir, quick=options.quick, memory=options.memory)


def _data_prepare(options: argparse.Namespace) -> int:
    from openwafer.data.cli import run

    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
