"""How PyTorch computes in this process, as far as it decides the numbers: actors have to do it alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class Numbers:
    """Settings of the process, not of a run."""

    default_dtype: str
    matmul_precision: str
    deterministic: bool
    deterministic_warns: bool
    mkldnn: bool

    @classmethod
    def here(cls) -> Self:
        """Those of this process."""
        return cls(
            str(torch.get_default_dtype()).removeprefix("torch."),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            bool(torch.backends.mkldnn.enabled),
        )

    def apply(self) -> None:
        """Make them those of this process."""
        torch.set_default_dtype(getattr(torch, self.default_dtype))
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.deterministic_warns)
        torch.backends.mkldnn.set_flags(self.mkldnn)  # type: ignore[no-untyped-call]
