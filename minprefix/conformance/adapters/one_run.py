"""One problem on its way through a module: its numbers as tensors, what goes through together, the
loss and the gradients."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minprefix.conformance.adapters.prefixed import Entry, Prefixed
from minprefix.conformance.adapters.weights import Tensor, homes_by_value, in_checkpoint
from minprefix.conformance.contract import ModelProblem
from minprefix.ops.contract import Array

if TYPE_CHECKING:
    from minprefix.conformance.adapters.module import ModuleUnderTest


class Run:
    """`under_test` gives the modules; the default dtype of PyTorch is the problem's."""

    def __init__(self, under_test: "ModuleUnderTest", problem: ModelProblem) -> None:
        import torch

        dtype = torch.get_default_dtype()
        self._under_test, self.problem = under_test, problem
        self.weights = {n: torch.tensor(a, dtype=dtype) for n, a in problem.weights.items()}
        self.leaves = [torch.tensor(kv, dtype=dtype) for kv in problem.prefixes]
        for leaf in self.leaves:
            leaf.requires_grad_(True)
        self.total: Tensor = torch.zeros((), dtype=torch.float64)
        self.count = 0
        self.used: list[Prefixed] = []

    def P(self, b: int) -> int:
        """How many slots sequence b sees."""
        return int(self.problem.prefixes[self.problem.prefix_of[b]].shape[3])

    def groups(self, entry: Entry, of_one_length: bool = True) -> list[list[int]]:
        """The sequences that go through the module together: as many slots, the same rule for
        positions, as many tokens; and the same prefix if a batch can have no other."""
        p, found = self.problem, dict[tuple[Any, ...], list[int]]()
        for b, (ids, which) in enumerate(zip(p.sequences, p.prefix_of, strict=True)):
            shared = None if entry.of_all_rows else which
            length = len(ids) if of_one_length else None
            key = (length, self.P(b), p.position_offsets[which], shared)
            found.setdefault(key, []).append(b)
        return list(found.values())

    def prefixed(self, b: int) -> Prefixed:
        """The module for sequence b. What an earlier run has left in its gradients is gone."""
        found = self._under_test.module_for(self.problem, self.weights, max(self.P(b), 1))
        if found not in self.used:
            found.module.zero_grad(set_to_none=True)
            self.used.append(found)
        return found

    def kv(self, rows: Sequence[int]) -> Tensor | None:
        """The prefix of each row (B, L, 2, NH, P, hs); None where it has no slots."""
        import torch

        if self.P(rows[0]) == 0:
            return None
        return torch.stack([self.leaves[self.problem.prefix_of[b]] for b in rows])

    def ids(self, rows: Sequence[int]) -> Tensor:
        import torch

        return torch.tensor([self.problem.sequences[b] for b in rows])

    def positions(self, b: int, T: int, after: int = 0) -> dict[str, Tensor]:
        """position_ids (1, T) where the first token stands elsewhere than behind the slots: the
        usual place is the module's own to know. `after`: so many tokens came before these."""
        import torch

        offset = self.problem.position_offsets[self.problem.prefix_of[b]]
        if offset == self.P(b):
            return {}
        if not (prefixed := self.prefixed(b)).takes_positions:
            raise NotImplementedError(prefixed.without_positions)
        return {"position_ids": torch.arange(T)[None] + offset + after}

    def masked(self, rows: Sequence[int], real: Tensor, mask: str, left: bool) -> dict[str, Tensor]:
        """attention_mask for tokens of which some are `real` (B, T), and position_ids where those
        do not stand at the start."""
        import torch

        prefixed, P = self.prefixed(rows[0]), self.P(rows[0])
        if "attention_mask" not in prefixed.takes:
            raise NotImplementedError("forward takes no attention_mask")
        slots = torch.ones((len(rows), P if mask == "P+T" else 0), dtype=torch.long)
        given = {"attention_mask": torch.cat([slots, real], 1)}
        offset = self.problem.position_offsets[self.problem.prefix_of[rows[0]]]
        if left or offset != P:
            if not prefixed.takes_positions:
                raise NotImplementedError(prefixed.without_positions)
            given["position_ids"] = (real.cumsum(1) - 1).clamp(min=0) + offset
        return given

    def add_loss(self, rows: Sequence[int], logits: Tensor) -> None:
        """logits: (B, T, V), of sequences of T tokens. In float64, not by `labels`: transformers
        computes that loss in single precision."""
        import torch

        for j, b in enumerate(rows):
            start = self.problem.loss_from[b]
            targets = torch.tensor(self.problem.sequences[b][start:], dtype=torch.long)
            if len(targets):
                predicted = logits[j, start - 1 : -1].double()
                loss = torch.nn.functional.cross_entropy(predicted, targets, reduction="sum")
                self.total, self.count = self.total + loss, self.count + len(targets)

    def finished(self) -> dict[str, Array]:
        """The loss and the prefixes' gradients, after the backward."""
        import torch

        loss = self.total / self.count if self.problem.reduction == "mean" else self.total
        loss.backward()
        found = {"loss": loss.detach().numpy()}
        for j, leaf in enumerate(self.leaves):
            kv = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).numpy()
            found |= {f"prefix.{j}.dk": kv[:, 0], f"prefix.{j}.dv": kv[:, 1]}
        return found

    def weight_gradients(self) -> dict[str, Array]:
        """Of every weight of the checkpoint whose numbers a parameter of the module has."""
        import torch

        found: dict[str, Array] = {}
        for prefixed in self.used:
            parameters = dict(prefixed.module.named_parameters())

            def read(name: str, of: Mapping[str, Tensor] = parameters) -> Tensor:
                return torch.zeros_like(of[name]) if of[name].grad is None else of[name].grad

            homes = homes_by_value(prefixed.module, self.weights)
            for name, gradient in in_checkpoint(homes, read).items():
                found[f"d{name}"] = found.get(f"d{name}", 0) + gradient.detach().numpy()
        return found
