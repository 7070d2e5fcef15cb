"""What is looked at before Spark starts: the model."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from jobs.settings import Settings
from udfs.generation.own_settings import tell_ignored
from udfs.model.files import open_model, pin
from udfs.tasks.registry import make_task


def check_model(settings: Settings) -> Settings:
    """Look at the model before Spark starts: there, safe, of the task's kind, with room for chunks where texts are cut.

    Returns:
        The settings, with the commit that this machine has of a hub's model: all of the run takes that one.

    Raises:
        ModelError, SpecError: It is not.
    """
    spec = settings.spec()
    task = make_task(spec, open_model(spec.model, spec.revision))
    if spec.overflow == "chunk":
        task.tokenize([])
    pinned = settings.score.model_copy(update={"revision": pin(spec).revision})
    return settings.model_copy(update={"score": pinned})


def tell_ignored_settings(settings: Settings) -> list[str]:
    """Warns of what the model's own generation settings ask for in vain."""
    spec = settings.spec()
    told = tell_ignored(open_model(spec.model, spec.revision), spec)
    return [told] if told else []


def show_warning(console: Console, warning: str) -> None:
    console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
