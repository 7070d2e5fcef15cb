"""The command line: one verb a command, errors in a few lines, exit codes that a scheduler can use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from jobs.errors import JobError
from udfs.errors import GristmillError

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
SparkLog = Annotated[
    str | None,
    typer.Option(metavar="LEVEL", help="Show Spark's log on the terminal, from this level on: error, warn, info."),
]


@app.command()
def score(
    conf: Conf,
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="Show schema, texts, tokens and plan; score nothing.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Start afresh in an output that holds a job's results.")] = False,
    show: Annotated[int, typer.Option(metavar="ROWS", min=0, help="Print the first rows of the answers.")] = 0,
    spark_log: SparkLog = None,
) -> None:
    """Score a table."""
    from jobs import report
    from jobs.score import check_error_rate
    from jobs.score import score as run
    from jobs.settings import load_settings

    console = Console(stderr=True)
    settings = load_settings(conf, set_)
    if dry_run:
        from jobs.dry_run import show_plan

        show_plan(settings, console, spark_log=spark_log)
        return
    done = run(settings, overwrite=overwrite, spark_log=spark_log, console=console)
    if show:
        from jobs.show import answer_table

        Console().print(answer_table(settings, show), "")
    console.print(report.summary_table(done))
    console.print(f"written to {settings.output.path}", style="dim", soft_wrap=True)
    check_error_rate(done, settings)


@app.command()
def doctor(
    conf: Annotated[Path | None, typer.Argument(metavar="[CONF]", help="A job, whose model is looked for too.")] = None,
) -> None:
    """Look at Java, Spark, torch, devices, precision, memory and models; say what is missing and what to do."""
    from jobs.doctor import examine, show_findings

    findings = examine(conf)
    show_findings(findings, Console())
    if not all(finding.fine for finding in findings):
        raise typer.Exit(2)


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
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to a file too.")] = None,
) -> None:
    """Time gristmill side by side with a row at a time, the Hugging Face pipeline and sentence-transformers."""
    from jobs.bench import run_bench
    from jobs.settings import load_settings

    run_bench(
        load_settings(conf, set_),
        rows=rows,
        rounds=rounds,
        texts=texts,
        spark=spark,
        json_path=json_path,
        console=Console(),
    )


def main(args: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 unexpected, 2 bad configuration or input, 3 too many rows failed."""
    from jobs.session import LOG_FILE

    code = _run(args)
    if code == 1 and LOG_FILE.exists():
        _complain(f"Spark's log is in {LOG_FILE}")
    else:
        LOG_FILE.unlink(missing_ok=True)
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
    return 0


def _complain(markup: str) -> None:
    Console(stderr=True).print(markup, soft_wrap=True, highlight=False)
