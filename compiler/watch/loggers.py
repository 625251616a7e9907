"""Bring the figures of a sparse model to a logger: the user's own function, Trainer's reports, Lightning's loggers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from topkast.runtime.errors import ModelError
from topkast.runtime.state.model import find, sites
from topkast.runtime.state.refresh_hooks import add_hook

from .sparse_figures import metrics


def on_refresh(model: Any, function: Callable[[nn.Module, list[str]], Any]) -> RemovableHandle:
    """Call a function after each refresh of the model. The new sets are complete then.

    The function runs between two steps: before the forward that follows a step, or at the end of the step if the method
    is ``rigl`` or the model is sharded. An error in the function reaches the training loop. A copy of the model has no
    hooks.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.
        function: called as ``function(model, names)`` with the converted model and the names of the refreshed weights.

    Returns:
        A handle; ``handle.remove()`` ends the calls.

    Raises:
        ModelError: the model was not converted.
    """
    return add_hook(find(model)[1].family, function)


def every_refresh(model: Any, write: Callable[[int, dict[str, float]], Any] | None = None) -> RemovableHandle:
    """Log the figures of :func:`metrics` after each refresh.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.
        write: called as ``write(step, figures)``; ``step`` is the number of completed optimizer steps. None: a line is
            printed. For TensorBoard: ``lambda step, figures: [writer.add_scalar(name, value, step) for name, value in
            figures.items()]``.

    Returns:
        A handle; ``handle.remove()`` ends the logging.

    Raises:
        ModelError: the model was not converted.
    """
    put = _print if write is None else write
    return on_refresh(model, lambda root, names: put(_step(root), metrics(root)))


def trainer(trainer: Any) -> Any:
    """Let a ``Trainer`` of transformers add the figures of :func:`metrics` to everything that it logs.

    The figures reach ``state.log_history``, and every place that ``report_to`` names, such as TensorBoard.

    Args:
        trainer: the Trainer; its model was converted by topkast.

    Returns:
        The same Trainer.

    Raises:
        ModelError: the Trainer's model was not converted.
    """
    from transformers import TrainerCallback

    find(trainer.model)

    class SparseFigures(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **rest: Any) -> None:
            figures = metrics(model)
            logs.update(figures)
            state.log_history[-1].update(figures)

    # First, because the callbacks of TensorBoard and others write the logs when their turn comes.
    trainer.callback_handler.callbacks.insert(0, SparseFigures())
    return trainer


def lightning_callback(every: int | None = None) -> Any:
    """A callback for ``Trainer(callbacks=[...])`` of Lightning: the figures of :func:`metrics` go to every logger.

    Args:
        every: steps between two entries; None: the Trainer's ``log_every_n_steps``.

    Returns:
        The callback. It raises ModelError at the start of training if neither the LightningModule nor one of its
        children was converted.
    """
    from lightning.pytorch import Callback

    class SparseFigures(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            _converted(pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            if trainer.global_step % (every or trainer.log_every_n_steps) == 0:
                figures = metrics(_converted(pl_module))
                for logger in trainer.loggers:
                    logger.log_metrics(figures, step=trainer.global_step)

    return SparseFigures()


def _converted(module: nn.Module) -> nn.Module:
    """The converted model inside a LightningModule, which can have other parts too."""
    found = next((part for part in module.modules() if "_topkast" in vars(part)), None)
    if found is None:
        raise ModelError(f"topkast.watch: nothing in this {type(module).__name__} was converted by topkast.compile")
    return found


def _step(model: nn.Module) -> int:
    return max(site.step for site in sites(model).values())


def _print(step: int, figures: dict[str, float]) -> None:
    shown = ", ".join(f"{name.removeprefix('sparse/')} {value:.4g}" for name, value in figures.items())
    print(f"topkast, step {step}: {shown}")
