"""The verbs. Each lives in a module of its own that is imported when it is asked for, and PyTorch later still."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App

from convoy import __version__

_VERBS = {
    "train": "Train a network.",
    "plan": "What training would take under each strategy, without training.",
    "evaluate": "Loss and accuracy of a trained network.",
    "predict": "Classify images.",
    "export": "Write a trained network as safetensors or ONNX.",
    "compare": "Train under several strategies in turns, and say what the difference is.",
    "report": "Write one HTML page about a run or a comparison.",
    "simulate": "A training step on a modelled host and on units in its memory.",
    "doctor": "See whether this machine is fit for training.",
}


def build(arguments: Sequence[str]) -> App:
    """The command; ``arguments`` decide which options of ``train`` and ``plan`` their help shows."""
    app = App(
        name="convoy",
        help="Train PyTorch CNNs in parallel under five strategies, and see what each of them buys.",
        help_epilogue="For example: convoy train lenet5 --data digits --strategy pipelined --stages 2",
        version=__version__,
        version_flags=["--version"],
        help_format="plaintext",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for number, (verb, line) in enumerate(_VERBS.items()):
        if verb in ("train", "plan") and arguments[:1] == [verb]:
            from convoy.cli.options import command, example

            usage, last = f"Usage: convoy {verb} MODEL [OPTIONS]", example(arguments, verb)
            app.command(command(arguments[1:], verb), name=verb, usage=usage, help_epilogue=last)
        elif verb == "compare" and arguments[:1] == [verb]:
            from convoy.cli import compare_options

            app.command(compare_options.command(), name=verb, usage="Usage: convoy compare MODEL [OPTIONS]")
        else:
            app.command(f"convoy.cli.{verb}:{verb}", name=verb, help=line, sort_key=number)
    return app


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line; returns the exit code, raises for everything that goes wrong."""
    code = build(arguments)(list(arguments))
    return code if isinstance(code, int) else 0
