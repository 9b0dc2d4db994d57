"""The `launch` command: a table of verbs that are imported on use, and how errors end the program.

Imports click alone, so that --help and completion answer at once. Exit codes: see launcher.errors, 2 for a
wrong command line, 130 when Ctrl-C ended the program.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from click_default_group import DefaultGroup

from launcher import __version__

TABLE: dict[str, str] = {
    "init": "Write a job file that runs as it is, with data to try it on.",
    "run": "Train: check, plan, submit and follow a job (the default verb).",
    "plan": "Check a job and show what would run, without running it.",
    "cost": "What a job costs everywhere, before it runs: fit, time, total.",
    "rehearse": "Run a job here inside a vendor's container contract, nothing sent.",
    "list": "All jobs, newest first.",
    "status": "Where a job stands.",
    "logs": "What a job printed.",
    "watch": "Follow a job: progress, loss, speed, time left.",
    "cancel": "Ask a job to checkpoint and stop.",
    "resume": "Go on from the checkpoints of a job that ended early.",
    "fetch": "Download a job's output, every file verified.",
    "eval": "Judge a finished job's model again, also on other rows.",
    "show": "Everything about one job: figures before and after, cost, files.",
    "prices": "What machines cost: what is known, how old, from where; read it anew.",
    "backends": "Where jobs can run, and what each still needs.",
    "setup": "Tell a backend the facts of your account: role, bucket, project.",
    "secrets": "Put a secret where a backend's jobs read it by reference.",
    "orphans": "What runs, and costs, without a job of your record.",
    "release": "Remove what jobs left stored.",
    "doctor": "Check this machine; --fix builds what is missing.",
    "schema": "Print the job file's JSON Schema.",
    "completion": "Print the completion script for a shell.",
}
"""Verb -> its help line; the command itself is launcher.commands.VERB:command."""

DEFAULT = "run"
INTERRUPTED = 130


def debug_option() -> click.Option:
    """--debug, accepted before and after the verb; main reads it."""
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="Show tracebacks of errors.")


class Verbs(DefaultGroup):  # type: ignore[misc]
    """The verbs of TABLE; `launch --backend x` and `launch job.yaml` mean `launch run ...`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(TABLE)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in TABLE:
            if not name.startswith("-"):
                self._refuse_unknown(ctx, name)
            ctx.arg0 = name  # type: ignore[attr-defined]  # DefaultGroup makes it the default verb's first argument
            name = DEFAULT
        command = importlib.import_module(f"launcher.commands.{name}").command
        assert isinstance(command, click.Command)
        for one in (command, *getattr(command, "commands", {}).values()):
            if not any("--debug" in p.opts for p in one.params):
                one.params.append(debug_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(TABLE.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. A reader (head, less) that has seen enough is no error, as click and rich make it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:
            if not _reader_is_gone():  # another pipe, or a connection: click would end without a word
                raise ConnectionError(str(exc)) from exc
        except SystemExit as exc:
            if not isinstance(exc.__context__, BrokenPipeError):
                raise
        # The interpreter must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

    def _refuse_unknown(self, ctx: click.Context, word: str) -> None:
        """A bare word must be a verb or a file that is there: a typing error must not start a job."""
        if ctx.resilient_parsing or Path(word).is_file():
            return
        if Path(word).suffix in (".yaml", ".yml", ".json"):
            raise click.UsageError(f"there is no file {word}\n  launch init writes a job file", ctx)
        import difflib

        from launcher.commands.options import DEFAULT_JOB_FILE

        inside = Path(word) / DEFAULT_JOB_FILE
        if inside.is_file():
            raise click.UsageError(f"{word} is a folder; its job file is {inside}", ctx)
        close = difflib.get_close_matches(word, TABLE, n=1)
        guess = f"did you mean launch {close[0]}?" if close else "launch --help lists the commands"
        raise click.UsageError(f"{word!r} is neither a command nor a file; {guess}", ctx)


@click.group(
    cls=Verbs,
    default=DEFAULT,
    params=[debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="launch")
def cli() -> None:
    """Fine-tune a model here or on somebody else's GPUs: one job file, one command.

    \b
    launch init                   write launch.yaml and data to try it on
    launch                        this help
    launch run                    train what ./launch.yaml says
    launch job.yaml --dry-run     a few real steps of another job
    """


def main() -> NoReturn:
    """Run the command line and exit with the code that the error tree names."""
    _quiet_streams()
    try:
        code = cli.main(prog_name="launch", standalone_mode=False) or 0
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except Exception as exc:  # noqa: BLE001 - the one place where errors become words and a code
        code = _tell(exc, "--debug" in sys.argv)
    sys.exit(code)


def _tell(exc: Exception, debug: bool) -> int:
    """Print an error for a person; its exit code."""
    from launcher.errors import LaunchError

    if debug:
        import traceback

        traceback.print_exception(exc)
    if isinstance(exc, OSError) and exc.filename is not None and not isinstance(exc, LaunchError):
        exc = _in_words(exc)
    if not isinstance(exc, LaunchError):
        if not debug:
            click.echo(f"launch: unexpected {type(exc).__name__}: {exc}", err=True)
            click.echo("  this is a bug: the same command with --debug shows where", err=True)
        return 1
    colour = False if os.environ.get("NO_COLOR") else None
    click.secho(f"Error: {exc.message}", err=True, fg="red", bold=True, color=colour)
    for line in (*getattr(exc, "problems", ()), *getattr(exc, "log_tail", ())):
        click.echo(f"  {line}", err=True)
    if exc.hint:
        click.echo(f"  -> {exc.hint}", err=True)
    return exc.exit_code


def _reader_is_gone() -> bool:
    """Does nobody read what is printed? Only writing tells."""
    for stream in (sys.stdout, sys.stderr):
        try:
            os.write(stream.fileno(), b"\n")
        except BrokenPipeError:
            return True
        except (OSError, ValueError):  # it is no file
            continue
    return False


def _in_words(exc: OSError) -> Exception:
    """What the system says of a file or folder that can't be read or written."""
    import errno

    from launcher.errors import LaunchError

    full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
    return LaunchError(
        f"{exc.filename}: {exc.strerror}",
        "free space there, or set LAUNCH_HOME and LAUNCH_CACHE_DIR to another disk" if full
        else "look at its name and its permissions; --debug shows where it was needed",
    )  # fmt: skip


def _quiet_streams() -> None:
    """A terminal that can't show a character gets a replacement, never a crash."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    main()
