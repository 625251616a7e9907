"""A LightningModule is compiled itself: what its steps call runs compiled, whichever way they call it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.runtime.state.model import sites

lightning: Any = pytest.importorskip("lightning")
pytestmark = [
    # What Lightning itself does, and what it advises on loaders and loggers.
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # Dynamo looks at it
]


class Module(lightning.LightningModule):
    """Calls its network by itself or through its own forward; steps its optimizer or leaves that to Lightning."""

    def __init__(self, through: str, manual: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.through, self.automatic_optimization = through, not manual

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def answer(self, x: Tensor) -> Tensor:
        if self.through == "parts":
            for part in self.net:
                x = part(x)
            return x
        return {"self": self, "net": self.net, "forward": self.forward}[self.through](x)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.answer(batch[0]).square().mean()
        self.log("loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("validation", self.answer(batch[0]).square().mean())

    def predict_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.answer(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.long
@pytest.mark.parametrize(
    "through, manual",
    [("self", False), ("self", True), ("net", False), ("net", True), ("forward", False), ("parts", True)],
)
def test_every_step_is_compiled(through: str, manual: bool, tmp_path: Any) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 16)), batch_size=8)

    def trained(backend: str) -> tuple[nn.Module, dict[str, Tensor]]:
        torch.manual_seed(0)
        model = topkast.compile(Module(through, manual), min_size=1, refresh_every=3, backend=backend)
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, loader, loader)
        trainer.validate(model, loader, verbose=False)
        predicted = trainer.predict(model, loader)
        return model, topkast.dense_state_dict(model, "all") | {"predicted": torch.cat(predicted)}

    (model, ours), (_, eager) = trained("aot_eager"), trained("eager")
    for name, site in sites(model).items():
        assert not [what for what in site.ran if what[0].startswith("read")], name
        runs = {product: count for (product, *_), count in site.ran.items()}
        assert runs["weight gradient"] == 8 and runs["forward"] == 8 + 2 * 4 + 2 + 4 + 4, name  # 2: the sanity check
        assert [at for at, *_ in site.churn] == [3, 6]
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value, msg=name)
