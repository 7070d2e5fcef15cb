"""The command line: one verb a command, errors in a few lines, exit codes that a scheduler can use."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from jobs.errors import JobError
from jobs.json_log import is_json, log_report, make_console, use_json
from udfs.errors import GristmillError

if TYPE_CHECKING:
    from jobs.telling.report import RunReport


def _choose_log(as_json: bool) -> bool:
    if as_json:
        use_json()
    return as_json


app = typer.Typer(
    name="gristmill",
    help="Score tables with AI models in batch, on Spark.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Conf = Annotated[Path, typer.Argument(metavar="CONF", help="The job's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: --set score.max_tokens=128"),
]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Keep a file in Prometheus' text format that says how the run stands."),
]
LogJson = Annotated[
    bool, typer.Option("--log-json", help="Log as JSON lines, without a bar.", callback=_choose_log, is_eager=True)
]
SparkLog = Annotated[
    str | None,
    typer.Option(metavar="LEVEL", help="Show Spark's log on the terminal, from this level on: error, warn, info."),
]

Result = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write run id, status, exit code, counts and the report's path there, as JSON."),
]


@app.command()
def score(
    conf: Conf,
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="Show schema, texts, tokens and plan; score nothing.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Start afresh in an output that holds a job's results.")] = False,
    accept_failures: Annotated[
        bool, typer.Option(help="Go on where the last run ended since too many rows failed.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option(help="Cancel what a batch engine has in flight at its provider; score nothing.")
    ] = False,
    show: Annotated[int, typer.Option(metavar="ROWS", min=0, help="Print the first rows of the answers.")] = 0,
    metrics: Metrics = None,
    log_json: LogJson = False,
    spark_log: SparkLog = None,
    result: Result = None,
) -> None:
    """Score what is new in a table; the same command goes on where a run before it ended."""
    from jobs.job import check_report
    from jobs.job_file import load_settings
    from jobs.run import cancel as run_cancel
    from jobs.run import score as run
    from jobs.spark.interrupts import run_interruptibly
    from jobs.telling.outlets import open_outlets
    from jobs.telling.result import ResultFile

    console, told = make_console(), ResultFile(result)
    with told.until_the_end():
        settings = told.begin(load_settings(conf, set_))
        if cancel:
            run_cancel(settings, console=console)
            return
        if dry_run:
            from jobs.hiding import hiding
            from jobs.telling.dry_run import show_plan

            with hiding(settings):
                show_plan(settings, console, overwrite=overwrite, spark_log=spark_log)
            return
        about: dict[str, Any] = {"spark_log": spark_log, "console": console, "result": told}
        with open_outlets(metrics, console) as outlets:
            about |= {"overwrite": overwrite, "accept_failures": accept_failures, "outlets": outlets}
            done = run_interruptibly(lambda stop: run(settings, stop=stop, **about))
        if show:
            from jobs.batch_files.lines import run_of
            from jobs.telling.show import answer_table

            Console().print(answer_table(run_of(settings), show), "")
        _tell(console, done)
        console.print(f"written to {settings.output.place}", style="dim", soft_wrap=True)
        check_report(done, settings)


@app.command("run-batch")
def run_batch(
    requests: Annotated[str, typer.Argument(metavar="REQUESTS", help="A file of requests, or a directory of them.")],
    results: Annotated[str, typer.Argument(metavar="RESULTS", help="The results file.")],
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODEL", help="A model, by the name that requests give it; as often as needed."),
    ] = None,
    errors: Annotated[
        str | None, typer.Option(metavar="FILE", help="Of OpenAI's: where failures go; RESULTS.errors.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="openai or anthropic, where the file itself does not tell.")
    ] = None,
    deadline: Annotated[str | None, typer.Option(help="As limits.deadline: requests after it expire.")] = None,
    set_: Overrides = None,
    overwrite: Annotated[bool, typer.Option(help="Start afresh, whatever there is.")] = False,
    retry: Annotated[bool, typer.Option(help="Run again what expired or failed through no fault of its own.")] = False,
    metrics: Metrics = None,
    log_json: LogJson = False,
    spark_log: SparkLog = None,
    result: Result = None,
) -> None:
    """Run a file of OpenAI's Batch API or Anthropic's Message Batches on models of your own.

    The results are a file as the service gives it. The same command goes on where a run before it ended.
    """
    from jobs.batch_files.command import make_settings
    from jobs.job import check_report
    from jobs.run import retry as run_again
    from jobs.run import score as run
    from jobs.spark.interrupts import run_interruptibly
    from jobs.telling.outlets import open_outlets
    from jobs.telling.result import ResultFile

    console, told = make_console(), ResultFile(result, command="retry" if retry else "score")
    with told.until_the_end():
        settings = told.begin(
            make_settings(
                requests, results, models=model or [], errors=errors, dialect=dialect, deadline=deadline, overrides=set_
            )
        )
        with open_outlets(metrics, console) as outlets:
            about: dict[str, Any] = {"spark_log": spark_log, "console": console, "result": told, "outlets": outlets}
            work = partial(run_again, settings) if retry else partial(run, settings, overwrite=overwrite)
            done = run_interruptibly(lambda stop: work(stop=stop, **about))
        _tell(console, done)
        console.print(f"written to {results}", style="dim", soft_wrap=True)
        check_report(done, settings)


@app.command()
def retry(
    conf: Conf,
    set_: Overrides = None,
    only: Annotated[str | None, typer.Option(metavar="CODES", help="Of these alone: expired,out_of_memory")] = None,
    again: Annotated[bool, typer.Option(help="Those too that a retry has failed on before.")] = False,
    metrics: Metrics = None,
    log_json: LogJson = False,
    spark_log: SparkLog = None,
    result: Result = None,
) -> None:
    """Score failed rows again; those that succeed now are appended."""
    from jobs.increments.retrying import check_codes
    from jobs.job import check_report
    from jobs.job_file import load_settings
    from jobs.run import retry as run
    from jobs.spark.interrupts import run_interruptibly
    from jobs.telling.outlets import open_outlets
    from jobs.telling.result import ResultFile

    console, told = make_console(), ResultFile(result, command="retry")
    with told.until_the_end():
        settings, codes = told.begin(load_settings(conf, set_)), check_codes(only)
        with open_outlets(metrics, console) as outlets:
            about: dict[str, Any] = {"spark_log": spark_log, "console": console, "result": told, "outlets": outlets}
            done = run_interruptibly(lambda stop: run(settings, only=codes, again=again, stop=stop, **about))
        _tell(console, done)
        check_report(done, settings)


@app.command("report")
def report_(
    out: Annotated[str, typer.Argument(metavar="OUT", help="An output directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write it as one page, with figures.")] = None,
) -> None:
    """Show what an output holds: runs, increments, rows, failures, tokens, engines, rates."""
    from jobs.telling.totals import read_totals, show_totals

    if html is not None:
        from jobs.telling.page import write_page

        write_page(out, html)
        Console(stderr=True).print(f"written to {html}", style="dim", soft_wrap=True, markup=False)
        if not as_json:
            return
    totals = read_totals(out)
    if as_json:
        print(json.dumps(totals.as_dict(), indent=2))
    else:
        show_totals(totals, Console())


@app.command()
def watch(
    out: Annotated[str, typer.Argument(metavar="OUT", help="An output directory.")],
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="For a run that is just being started.")] = 30.0,
) -> None:
    """Follow a run from another terminal, by what it commits, until it ends."""
    from jobs.telling.following import follow

    follow(out, Console(), wait_s=wait)


@app.command()
def doctor(
    conf: Annotated[Path | None, typer.Argument(metavar="[CONF]", help="A job, whose model is looked for too.")] = None,
) -> None:
    """Look at Java, Spark, torch, devices, precision, memory and models; say what is missing and what to do."""
    from jobs.telling.doctor import examine, show_findings

    findings = examine(conf)
    show_findings(findings, Console())
    if not all(finding.fine for finding in findings):
        raise typer.Exit(2)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As score.model names it.")],
    revision: Annotated[str | None, typer.Option(metavar="COMMIT", help="Of a hub id.")] = None,
    base_model: Annotated[str | None, typer.Option(metavar="MODEL", help="Of a LoRA adapter.")] = None,
    base_revision: Annotated[str | None, typer.Option(metavar="COMMIT", help="Of its base.")] = None,
    load: Annotated[bool, typer.Option(help="Load it and try it with texts, as an engine does.")] = False,
) -> None:
    """Look at a model: which tasks it can do, its longest text, precision, batches, end tokens, memory; without Spark.

    What a job would be refused for is told, with what to do.
    """
    from jobs.telling.inspection import inspect_model, show_inspection

    names = {"revision": revision, "base_model": base_model, "base_revision": base_revision}
    show_inspection(inspect_model(model, load=load, **names), Console())


@app.command("import")
def import_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a directory, or models:/NAME/VERSION.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where it goes; a new directory.")],
    revision: Annotated[str | None, typer.Option(metavar="COMMIT", help="Of a hub id.")] = None,
) -> None:
    """Bring a model in once whose weights are pickled: a directory of safetensors, to name as score.model.

    The pickle is read by torch's restricted unpickler in a process without a network, with bounds on time and memory;
    each tensor is compared with what was written. gristmill_import.json tells where all of it came from.
    """
    from udfs.model.importing import import_model

    made = import_model(model, target, revision=revision)
    console = Console(stderr=True)
    if made.tensors:
        told = f"{made.tensors} tensors written as safetensors and compared; unpickled with {made.network}"
    else:
        told = "its weights were safetensors; nothing had to be unpickled"
    console.print(f"{told}\nwritten to {made.target}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def bench(
    conf: Conf,
    set_: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the table to take.")] = 1500,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are shown.")] = 3,
    texts: Annotated[
        str,
        typer.Option(
            help="input (the job's own), docstrings (of the installed packages), or their first lines: short."
        ),
    ] = "input",
    spark: Annotated[bool, typer.Option(help="Run the rows through Spark as well.")] = True,
    engine: Annotated[bool, typer.Option("--engine", help="The engine alone, against its device's peak.")] = False,
    shape: Annotated[
        str | None,
        typer.Option(help="With --engine: random weights of minilm-l6, bert-base, bert-large or no-layers."),
    ] = None,
    host: Annotated[
        bool, typer.Option("--host", help="The whole Spark job with a model that does nothing: what the host costs.")
    ] = False,
    steps: Annotated[
        bool, typer.Option("--steps", help="Of a job that writes: a decoder's step by its parts, also without a model.")
    ] = False,
    structured: Annotated[
        bool,
        typer.Option("--structured", help="Of a job with a schema or choices: what it costs to hold answers to them."),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Another checkout, in turn: with --host, or of a job that writes."),
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to a file too.")] = None,
) -> None:
    """Time gristmill side by side with a row at a time, the Hugging Face pipeline and sentence-transformers.

    A job that writes: its engine, side by side with transformers' generate and its continuous batching.
    With --engine: no Spark and no Java; how near the model's time comes to what the device can multiply.
    With --host: CPU seconds a million tokens of the JVM, the workers and the engine's own code.
    """
    from jobs.bench.kinds import Asked, run_asked
    from jobs.job_file import load_settings

    asked = Asked(
        rows=rows,
        rounds=rounds,
        texts=texts,
        spark=spark,
        engine=engine,
        shape=shape,
        host=host,
        steps=steps,
        structured=structured,
        against=against,
        json_path=json_path,
    )
    run_asked(load_settings(conf, set_), asked, Console())


def main(args: list[str] | None = None) -> None:
    """Run a command, and exit where it has not gone well, with the codes of `jobs.errors`."""
    from jobs.spark.session import LOG_FILE

    code: int | None = None
    try:
        code = _run(args)
    finally:
        if code in (0, 4, 130, 143):  # it went as it was told to
            LOG_FILE.unlink(missing_ok=True)
        elif LOG_FILE.exists():
            _complain(f"Spark's log is in {LOG_FILE}")
    if code:  # a task of Databricks takes any SystemExit for a failure
        sys.exit(code)


def _run(args: list[str] | None) -> int:
    try:
        app(args)
    except SystemExit as ended:  # how click ends, well or not
        return ended.code if isinstance(ended.code, int) else 0
    except JobError as error:
        _complain(f"[bold red]error:[/] {escape(str(error))}")
        return error.exit_code
    except GristmillError as error:
        _complain(f"[bold red]error:[/] {escape(error.message)}")
        return 2
    except PermissionError as error:
        _complain(f"[bold red]error:[/] {escape(str(error))}; give this user the right, or take another path")
        return 2
    except OSError as error:  # of a file system: it is full, or does not answer
        _complain(f"[bold red]error:[/] {escape(str(error))}; what was committed stays, run the same command again")
        return 1
    return 0


def _complain(markup: str) -> None:
    make_console().print(markup, soft_wrap=True, highlight=False)


def _tell(console: Console, done: RunReport) -> None:
    """Show the report of a run."""
    from jobs.telling.report import summary_table

    if is_json():
        log_report(done.as_dict())
    else:
        console.print(summary_table(done))
