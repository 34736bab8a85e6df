"""A run on the terminal: bar with loss, tokens/s and ETA; a line for every evaluation."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ridgeline.training.log import Row


class TrainProgress:
    """Context manager whose ``update`` is ``pretrain``'s ``on_step``."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("", total=steps, loss=float("nan"), speed=0.0)

    def __enter__(self) -> "TrainProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, row: Row) -> None:
        speed = row.tokens_per_second
        self._bar.update(self._task, completed=row.step, loss=row.loss, speed=speed)
        if row.eval_loss is not None:
            self.console.print(
                f"step {row.step}: {row.tokens:,} tokens, loss {row.loss:.3f}, "
                f"held out {row.eval_loss:.3f}, {speed:,.0f} tokens/s, {row.seconds:.0f} s"
            )
