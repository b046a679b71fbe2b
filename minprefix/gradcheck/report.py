"""What a check of gradients found, as text for people and as JSON for programs."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from minprefix.conformance.check import Finding
from minprefix.errors import counted

_wrapped = textwrap.TextWrapper(
    100, "   ", "     ", break_long_words=False, break_on_hyphens=False
).wrap


@dataclass
class Report:
    """True where nothing is wrong. `errors`: gradient -> its error, relative to its largest value,
    and `methods`: how the derivative that it was compared with was measured."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return not self.findings

    def say(self, kind: str, function: str, tensor: str, said: str, reproducer: str = "") -> None:
        """Note a finding that is no wrong number."""
        self.findings.append(Finding(function, tensor, kind, said, reproducer=reproducer))

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values(), default=0.0)

    def __str__(self) -> str:
        return self.text()

    def text(self, in_full: int | None = None) -> str:
        """`in_full`: so many findings are explained, and the others get a line each."""
        outcome = f"{counted(len(self.findings), 'finding')}" if self.findings else "passed"
        lines = [f"gradcheck of {self.name}: {outcome}"]
        for number, finding in enumerate(self.findings[:in_full], 1):
            lines += ["", *_in_full(number, finding, number == 1)]
        if rest := self.findings[len(self.findings) if in_full is None else in_full :]:
            lines += ["", "Also wrong (--all explains them, too):"]
            lines += [f"  {f.function}: {f.sentence}" for f in rest]
        if self.errors:
            lines.append("")
        wide = max(map(len, self.errors), default=0)
        for tensor, error in self.errors.items():
            lines.append(f"  {tensor:<{wide}}  error {error:.1e}, by {self.methods[tensor]}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs; numbers that are not finite as text."""
        told = {
            "name": self.name,
            "passed": bool(self),
            "findings": [asdict(finding) for finding in self.findings],
            "errors": self.errors,
            "methods": self.methods,
        }
        found: dict[str, Any] = json.loads(json.dumps(told), parse_constant=str)
        return found


def _in_full(number: int, finding: Finding, with_reproducer: bool) -> Sequence[str]:
    where = f"{finding.function}, {finding.tensor}" if finding.tensor else finding.function
    said = [finding.sentence, *(f"{finding.tensor} {hint}" for hint in finding.hints)]
    if finding.worst:
        entries = (f"{index} is {got:.9g}, not {want:.9g}" for index, got, want in finding.worst)
        said.append(f"worst: {'; '.join(entries)}")
    lines = [f"{number}. {where}", *(row for each in said for row in _wrapped(each))]
    if finding.reproducer and with_reproducer:
        lines.append("   to see it, in Python:")
        lines += [f"       {row}" for row in finding.reproducer.splitlines()]
    return lines
