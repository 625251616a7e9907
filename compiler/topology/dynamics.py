"""Record how the sets of a model change during training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch.optim.optimizer import register_optimizer_step_post_hook

from topkast.runtime.layout import index_masks
from topkast.runtime.state.model import sites
from topkast.runtime.state.site_module import SiteModule

Bits = np.ndarray  # of a set, eight units a byte


@dataclass(frozen=True)
class Moved:
    """One look at one site, or at all of them. Everything but the step is a share from 0 to 1, counted in blocks.

    Attributes:
        step: optimizer steps made when the sets were chosen.
        new_a, new_b: churn: members that the set did not have at the previous look.
        from_first_a, from_first_b: distance to the set at the first look, ``|X Δ Y| / (|X| + |Y|)``.
        ever_active: of all blocks, those that have been in A since the model was converted.
    """

    step: int
    new_a: float
    new_b: float
    from_first_a: float
    from_first_b: float
    ever_active: float


@dataclass
class _Watched:
    site: SiteModule
    first: tuple[Bits, Bits]
    last: tuple[Bits, Bits]
    refreshed_at: int
    seen: list[Moved] = field(default_factory=list)


class Dynamics:
    """Records how the sets of a model move; the model itself is only read.

    As a context manager it looks after every optimizer step and records once for each refresh, whatever the backend::

        with topkast.Dynamics(model) as dynamics:
            train(model)
        dynamics.total[-1].from_first_a

    In a loop without a ``torch.optim`` optimizer call :meth:`observe` after each refresh. It holds four sets of bits a
    site: half a byte for every weight, with single weights as blocks.

    Attributes:
        total: all sites together, one :class:`Moved` a refresh.
        layers: original parameter name -> the same for that site alone.
    """

    def __init__(self, model: Any) -> None:
        """Record the current sets as the first sets.

        Args:
            model: a model converted by topkast, or a wrapper of it.

        Raises:
            ModelError: the model was not converted.
        """
        self._watched = {name: _watch(site) for name, site in sites(model).items()}
        self.total: list[Moved] = []
        self._handle: Any = None

    @property
    def layers(self) -> dict[str, list[Moved]]:
        return {name: watched.seen for name, watched in self._watched.items()}

    def __enter__(self) -> Dynamics:
        self._handle = register_optimizer_step_post_hook(lambda *_: self._look())
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _look(self) -> None:
        if any(watched.site.refreshed_at != watched.refreshed_at for watched in self._watched.values()):
            self.observe()

    def observe(self) -> None:
        """Record the sets as they are now, refreshed or not."""
        counts = []
        for watched in self._watched.values():
            counts.append(_count(watched))
            watched.seen.append(_moved(watched.site.refreshed_at, counts[-1]))
        self.total.append(_moved(max(w.refreshed_at for w in self._watched.values()), sum(counts)))

    def to_dict(self) -> dict[str, Any]:
        """All records as data that ``json.dumps`` accepts."""
        return {
            "total": [asdict(moved) for moved in self.total],
            "layers": {name: [asdict(moved) for moved in seen] for name, seen in self.layers.items()},
        }


def _bits(site: SiteModule) -> tuple[Bits, Bits]:
    fwd, bwd = index_masks(site.index, site.geometry)
    return np.packbits(fwd.cpu().numpy()), np.packbits(bwd.cpu().numpy())


def _watch(site: SiteModule) -> _Watched:
    now = _bits(site)
    return _Watched(site, now, now, site.refreshed_at)


def _size(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def _count(watched: _Watched) -> np.ndarray:
    """[new, members, apart from the first, members of both] of A, of B; then blocks ever in A, and blocks."""
    now = _bits(watched.site)
    counts = []
    for new, last, first in zip(now, watched.last, watched.first, strict=True):
        counts += [_size(new & ~last), _size(new), _size(new ^ first), _size(new) + _size(first)]
    watched.last, watched.refreshed_at = now, watched.site.refreshed_at
    return np.array([*counts, _size(watched.site.ever.cpu().numpy()), watched.site.geometry.units])


def _moved(step: int, counts: Any) -> Moved:
    new_a, apart_a, new_b, apart_b, ever = (float(part / whole) for part, whole in counts.reshape(5, 2))
    return Moved(step, new_a, new_b, apart_a, apart_b, ever)
