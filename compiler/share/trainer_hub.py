"""Folders that ``Trainer`` of transformers uploads: the card has the report's table, and the sets are those beside.

``Trainer.push_to_hub`` writes a ``README.md`` of its own over the card of ``save_pretrained``. An upload during
training copies the files of a checkpoint that transformers knows, without ``topkast.safetensors``.
"""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path
from typing import Any

from .card import add_card
from .sets_file import file_name

TRAINER = "transformers.trainer"


def extend_trainer() -> None:
    """Extend ``Trainer``, if its module is imported by now."""
    kind = getattr(sys.modules.get(TRAINER), "Trainer", None)
    if kind is not None and not hasattr(kind.create_model_card, "adds_section"):
        kind.create_model_card = _with_section(kind.create_model_card)
        kind._push_from_checkpoint = _with_sets(kind._push_from_checkpoint)


def _with_section(given: Any) -> Any:
    """``Trainer.create_model_card``, with the section about sparse weights."""

    @functools.wraps(given)
    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = given(self, *args, **kwargs)
        _add_section(self)
        return result

    create_model_card.adds_section = True  # type: ignore[attr-defined]
    return create_model_card


def _with_sets(given: Any) -> Any:
    """``Trainer._push_from_checkpoint``, with the sets of the checkpoint and a card."""

    @functools.wraps(given)
    def push(self: Any, checkpoint_folder: Any, *args: Any, **kwargs: Any) -> Any:
        sets = Path(checkpoint_folder) / file_name()
        if self.is_world_process_zero() and sets.is_file():
            shutil.copy(sets, Path(self.args.output_dir) / sets.name)
            _add_section(self)
        return given(self, checkpoint_folder, *args, **kwargs)

    return push


def _add_section(trainer: Any) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if "_topkast" in vars(model) and trainer.is_world_process_zero():
        add_card(Path(trainer.args.output_dir), model)
