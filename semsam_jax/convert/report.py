"""Report of a conversion: a table of all names, and the error that lists all problems."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from semsam_jax.core.errors import ConversionError

_MAX_LINES = 20


@dataclass
class ConversionReport:
    """What became of every original name and every parameter.

    Attributes:
        mapped: parameter path to the original names that it was made from.
        aliased: further names of a mapped tensor to the name it was read from.
        ignored: names that the model does not need, with the reason.
        defaulted: paths that files may lack, with the value used.
        unexpected: names that no rule knows.
        missing: original names that the model needs and the file lacks.
        misshaped: name to (got, wanted) shapes.
        conflicting: names to what they contradict.
        nonfinite: names to how many of their numbers are NaN or infinite.
    """

    mapped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    aliased: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    defaulted: dict[str, float] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    conflicting: dict[str, str] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every leaf that the model needs was found in the right shape."""
        return not (self.missing or self.misshaped or self.conflicting)

    def table(self) -> str:
        """Returns the report as text: counts, then every name that was not simply mapped."""
        tensors = sum(len(keys) for keys in self.mapped.values())
        counts = (
            ("mapped", f"{tensors} tensors to {len(self.mapped)} parameters"),
            ("aliases", f"{len(self.aliased)} further names of mapped tensors"),
            ("ignored", str(len(self.ignored))),
            ("defaulted", str(len(self.defaulted))),
            ("unexpected", str(len(self.unexpected))),
            ("missing", str(len(self.missing))),
            ("misshaped", str(len(self.misshaped))),
            ("conflicting", str(len(self.conflicting))),
            ("not finite", str(len(self.nonfinite))),
        )
        lines = [f"{name:<12} {value}" for name, value in counts]
        reasons: dict[str, list[str]] = {}
        for key, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(key)
        for reason, keys in reasons.items():
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            lines.append(f"  ignored      {keys[0]}{more}: {reason}")
        lines += [f"  defaulted    {path} = {value}" for path, value in self.defaulted.items()]
        return "\n".join(lines + [f"  {line}" for line in self._problems(limit=None)])

    def check(
        self, where: str, *, allow_unexpected: bool = False, allow_nonfinite: bool = False
    ) -> None:
        """Raises one ConversionError that lists all problems, if there are any."""
        if self.is_complete and self.nonfinite and not allow_nonfinite:
            names = [f"{key} ({count})" for key, count in self.nonfinite.items()]
            raise ConversionError(
                f"{where}: NaN or infinity in {len(names)} tensors: "
                f"{', '.join(_limited(names[:_MAX_LINES], _MAX_LINES, len(names)))}; these weights "
                f"are damaged or diverged (--allow-nonfinite takes them as they are)."
            )
        if self.is_complete and (allow_unexpected or not self.unexpected):
            return
        problems = self._problems(limit=_MAX_LINES)
        raise ConversionError(
            f"{where}: does not fit the model: {len(self.missing)} missing, "
            f"{len(self.misshaped)} misshaped, {len(self.conflicting)} conflicting, "
            f"{len(self.unexpected)} unexpected names; give the right --model-config or the "
            f"right file"
            + ("" if not self.is_complete else " (or --allow-unexpected)")
            + ":\n  "
            + "\n  ".join(problems)
        )

    def _problems(self, limit: int | None) -> list[str]:
        missing = [
            f"missing      {key}{_suggestion(key, self.unexpected)}" for key in self.missing[:limit]
        ]
        misshaped = [
            f"misshaped    {key}: got {got}, expected {wanted}"
            for key, (got, wanted) in self.misshaped.items()
        ]
        conflicting = [f"conflicting  {key}: {what}" for key, what in self.conflicting.items()]
        unexpected = [f"unexpected   {key}" for key in self.unexpected]
        nonfinite = [f"not finite   {key}: {count}" for key, count in self.nonfinite.items()]
        return [
            *_limited(missing, limit, len(self.missing)),
            *_limited(misshaped, limit, len(misshaped)),
            *_limited(conflicting, limit, len(conflicting)),
            *_limited(unexpected, limit, len(unexpected)),
            *_limited(nonfinite, limit, len(nonfinite)),
        ]


def _limited(lines: list[str], limit: int | None, total: int) -> Iterable[str]:
    shown = lines[:limit]
    return shown if total <= len(shown) else [*shown, f"... and {total - len(shown)} more"]


def _suggestion(key: str, names: list[str]) -> str:
    # The search is quadratic, which would take minutes for very many names.
    near = difflib.get_close_matches(key, names[:200], n=1, cutoff=0.8)
    return f" (the file has {near[0]})" if near else ""
